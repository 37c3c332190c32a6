"""Elementwise loop nests of which some arrays lie across the others.

[Note: transposed tiles] Threads side by side along the innermost axis would read such an array in
steps, and of each 32 bytes that memory gives use one element. So a block of 8 by 32 threads reads a
tile of it along the axis in which it lies, and hands the elements on in shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from minigrad.backend.cuda.expressions import memory_type
from minigrad.backend.cuda.nests.writer import CudaWriter
from minigrad.backend.cuda.prelude import THREADS
from minigrad.backend.launch import Program
from minigrad.backend.loopnest import Access, LoopNest

SIDE = 32  # of a tile
ROWS = THREADS // SIDE  # that a block has at a time
MOST_TILES = 4  # of one kernel: what shared memory holds, of any dtype


def across(nest: LoopNest, access: Access) -> int | None:
    """The axis in which an access lies side by side, if that is not the innermost one."""
    inner = len(nest.shape) - 1
    if access.strides[inner] in (0, 1) or nest.shape[inner] < SIDE:
        return None
    axes = [a for a in range(inner) if access.strides[a] == 1 and nest.shape[a] >= SIDE]
    return axes[0] if axes else None


class Transposed(CudaWriter):
    """Every axis is kept, and some loads lie across: see [Note: transposed tiles]."""

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        found = [(k, across(nest, e[1])) for k, e in enumerate(nest.expressions) if e[0] == "load"]
        self.axis = next((a for _, a in found if a is not None), None)
        self.tiles = [k for k, a in found if a is not None and a == self.axis][:MOST_TILES]

    def emit(self) -> None:
        """Append the launch."""
        axis, lane, shape = self.axis, self.lane, self.nest.shape
        assert axis is not None
        outer = [a for a in range(self.rank) if a not in (axis, lane)]
        extents = {a: shape[a] for a in outer} | {a: -(-shape[a] // SIDE) for a in (lane, axis)}
        kind = self.index_type
        self.word(shape[axis], "height")
        self.word(shape[lane], "width")
        rest = f"({kind})blockIdx.x"
        places = list(extents)
        for place, a in reversed(list(enumerate(places))):
            name = f"i{a}" if a in outer else f"c{a}"
            if place:
                self.divisor(extents[a], f"d{a}")
                self.line(f"const {kind} q{a} = d{a}.quotient({rest});")
                self.line(f"const {kind} {name} = {rest} - q{a} * ({kind})d{a}.d;")
                rest = f"q{a}"
            else:
                self.line(f"const {kind} {name} = {rest};")
        self.declare()
        types = {k: f"Pack<{memory_type(self.nest.types[k])}, 1>" for k in self.tiles}
        for k, type_ in types.items():
            self.line(f"__shared__ {type_} tile{k}[{SIDE}][{SIDE + 1}];")
        self.line(f"const int x = threadIdx.x % {SIDE}, y = threadIdx.x / {SIDE};")
        with self._tile(axis, lane):
            for k in self.tiles:
                address = self.place(self.nest.expressions[k][1])
                self.line(f"tile{k}[y + row][x] = read_pack<1>({address});")
        self.line("__syncthreads();")
        with self._tile(lane, axis):
            for k in self.tiles:
                self.define(k, f"load(&tile{k}[x][y + row].at[0])")
            self.work(0, set(self.tiles))
        self.launch(prod(extents.values()), THREADS)

    @contextmanager
    def _tile(self, along: int, down: int) -> Iterator[None]:
        """The loop over a tile, neighbours side by side along one axis."""
        self.line("#pragma unroll")
        with self.block(f"for (int row = 0; row < {SIDE}; row += {ROWS})"):
            for a, position in ((along, "x"), (down, "y + row")):
                self.line(f"const {self.index_type} i{a} = c{a} * {SIDE} + {position};")
            with self.block(f"if (i{self.axis} < height && i{self.lane} < width)"):
                yield
