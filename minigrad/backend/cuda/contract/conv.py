"""Lowering of convolutions: to cuDNN where it is installed, else to kernels of our own.

The semantics are those of XLA's conv_general_dilated, so a convolution and both of its gradients
are instances of the one function `conv2d`. There are three kernels of ours, see `conv_kernels`, and
the choice is by estimated time:

* tiled: a product in shared-memory tiles of one of a few shapes;
* each: a thread for each output, for depthwise convolutions and their gradients for x;
* dots: a block for a few outputs, for gradients of depthwise weights.

Where outputs are few and terms are many (weight gradients, deep layers of small images), terms are
shared out over blocks, and a second kernel adds up what the parts give: no atomics, so the same
program gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from minigrad.backend.checks import require_convolution
from minigrad.backend.cuda.contract import conv_kernels as kernels
from minigrad.backend.cuda.contract import cudnn
from minigrad.backend.cuda.contract.conv_kernels import POINTS
from minigrad.backend.cuda.contract.conv_problems import (
    PlaceAxes,
    Problem,
    packs,
    problems,
    sectors,
)
from minigrad.backend.cuda.contract.conv_tiled import Tile, tiled
from minigrad.backend.cuda.prelude import THREADS
from minigrad.backend.cuda.runtime.jit import compile_kernel
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Pointer, Program, Word
from minigrad.dtype import DType

INDEX_LIMIT = (1 << 31) - (
    1 << 20
)  # elements; larger operands have 64-bit indices (a tile may pass the end)

TILES = (
    Tile(128, 128, 16, 8, 8),
    Tile(128, 64, 16, 8, 4),
    Tile(64, 64, 16, 4, 4),
    Tile(128, 32, 16, 4, 4),
    Tile(256, 16, 8, 4, 4),
    Tile(256, 8, 8, 4, 2),
    Tile(64, 16, 8, 4, 4),
)
# With more results of 8 bytes, a thread would take the registers of a second block.
MOST_WIDE_RESULTS = 16

# Costs, in lane-cycles of one multiprocessor: cycles times the lanes that are busy.
LOAD = 8  # one element from memory into shared memory
EACH_TERM = 10  # a term of the `each` kernel
DOT_PLACE, DOT_TERM = 30, 8  # a product's place in the `dots` kernel, and a term with one pixel
STORE = 40  # one element to memory, or from it
BLOCK = 1 << 15  # what a block does before and after its sums
LAUNCH = 1 << 19  # a second kernel
BUSY = 512  # threads that keep a multiprocessor's arithmetic busy

WARP = 32  # threads that load side by side
LEAST_TERMS = 64  # terms of an output that one part of a tiled sum has, at least
LEAST_DOT = 8 * THREADS  # and of a `dots` sum


def conv2d(
    program: Program,
    x: Operand,
    w: Operand,
    out: Operand,
    *,
    window: Window,
    groups: int,
    processors: int,
) -> None:
    """Append the launches of a cross-correlation of x with w on a chip of so many multiprocessors.

    Operands may have any strides. `out` must not overlap x or w; all of it is written, whatever it
    held.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW) -> out (N, O, OH, OW).
    Raises: ValueError if shapes do not fit together; TypeError if dtypes differ.
    """
    require_convolution(x, w, out, window, groups)
    if not out.size:
        return
    if not cudnn.convolve(program, x, w, out, window, groups, processors):
        parts = problems(x, w, out, window)
        _Convolution(program, x, w, out, parts, groups, processors).emit()


@dataclass(frozen=True)
class _Choice:
    """A kernel for a convolution, and into how many parts its sums are cut."""

    tile: Tile | None
    dots: bool
    parts: int
    share: int  # products of a part
    blocks: int  # of one part of one group of one problem
    cost: float


class _Convolution:
    """One convolution with a nonempty output."""

    def __init__(
        self,
        program: Program,
        x: Operand,
        w: Operand,
        out: Operand,
        parts: list[Problem],
        groups: int,
        processors: int,
    ):
        self.program, self.x, self.w, self.out = program, x, w, out
        self.problems, self.groups, self.processors = parts, groups, processors
        self.dtype: DType = out.dtype
        self.channels = out.shape[1] // groups
        self.pixels = max(p.pixels for p in parts)
        self.products = max(p.products for p in parts)
        self.units = len(parts) * groups
        tile_reach = max(t.channels for t in TILES) * abs(w.strides[0])
        self.wide = max(p.reach() for p in parts) + tile_reach >= INDEX_LIMIT

    # --- the choice ------------------------------------------------------------------------------

    def _choices(self) -> Iterator[_Choice]:
        accumulator_bytes = 16 // kernels.lanes_of(self.dtype)
        for tile in TILES:
            results = tile.thread_pixels * tile.thread_channels
            if accumulator_bytes == 4 or results <= MOST_WIDE_RESULTS:
                yield from self._tilings(tile)
        blocks = -(-self.pixels // THREADS) * self.channels
        yield _Choice(
            None, False, 1, self.products, blocks,
            self._time(blocks, THREADS, THREADS * self.products * EACH_TERM),
        )  # fmt: skip
        blocks = -(-self.pixels // POINTS) * self.channels
        for parts, share in self._splits(blocks, LEAST_DOT, THREADS):
            work = share * (DOT_PLACE + POINTS * DOT_TERM)
            cost = self._time(blocks * parts, THREADS, work) + self._combining(parts)
            yield _Choice(None, True, parts, share, blocks, cost)

    def _tilings(self, tile: Tile) -> Iterator[_Choice]:
        blocks = -(-self.pixels // tile.pixels) * -(-self.channels // tile.channels)
        results = tile.thread_pixels * tile.thread_channels
        reads = (tile.thread_pixels + tile.thread_channels) / 2
        loads = LOAD * (tile.pixels + tile.channels) / tile.threads
        for parts, share in self._splits(blocks, LEAST_TERMS, tile.products):
            work = tile.threads * share * (results + reads + loads)
            work += tile.pixels * tile.channels * STORE / 4
            cost = self._time(blocks * parts, tile.threads, work) + self._combining(parts)
            yield _Choice(tile, False, parts, share, blocks, cost)

    def _splits(self, blocks: int, least: int, multiple: int) -> Iterator[tuple[int, int]]:
        """The numbers of parts that may be fastest, each with the products of a part."""
        wanted = {round(k * self.processors / (blocks * self.units)) for k in (1, 2, 3, 4, 6)}
        for parts in sorted({1, *wanted}):
            if parts == 1 or 1 < parts <= self.products // least:
                share = max(-(-self.products // (parts * multiple)) * multiple, multiple)
                yield max(-(-self.products // share), 1), share

    def _time(self, blocks: int, threads: int, work: float) -> float:
        """Cycles until so many blocks of each unit have done `work` lane-cycles each."""
        rounds = -(-blocks * self.units // self.processors)
        busy = min(1.0, (rounds * threads / BUSY) ** 0.5)
        return rounds * (work + BLOCK * threads / THREADS) / busy

    def _combining(self, parts: int) -> float:
        moved = 2 * parts * self.units * self.channels * self.pixels
        return LAUNCH + STORE * moved / self.processors if parts > 1 else 0.0

    # --- launches --------------------------------------------------------------------------------

    def emit(self) -> None:
        """Append the launches of the fastest kernel."""
        choice = min(self._choices(), key=lambda c: c.cost)
        partial: Pointer | int = 0
        if choice.parts > 1:
            size = self.units * choice.parts * self.channels * self.pixels
            item = 16 // kernels.lanes_of(self.dtype)
            partial = Pointer(self.program.scratch_slot(size * item))
        if choice.tile is not None:
            name, threads = "conv", choice.tile.threads
            source = tiled(self.dtype, self.wide, choice.tile, *self._directions(choice))
        else:
            name, threads = ("conv_dots" if choice.dots else "conv_each"), THREADS
            make = kernels.dots if choice.dots else kernels.each
            source = make(self.dtype, self.wide)
        words = self._words(choice, choice.blocks, partial)
        blocks = choice.blocks * choice.parts * self.units
        self.program.launch(compile_kernel(name, source), words, blocks, threads)
        if choice.parts > 1:
            source = kernels.combined(self.dtype, self.wide)
            blocks = -(-self.channels * self.pixels // THREADS)
            words = self._words(choice, blocks, partial)
            kernel = compile_kernel("conv_combine", source)
            self.program.launch(kernel, words, blocks * self.units, THREADS)

    def _directions(self, choice: _Choice) -> tuple[bool, bool]:
        """Whether threads side by side load x along pixels, and w along channels."""
        assert choice.tile is not None
        first, side = self.problems[0], choice.tile.products

        def ordered(axes: PlaceAxes, of_x: bool) -> list[tuple[int, int]]:
            return [(a.extent, a.x if of_x else a.other) for a in reversed(axes)]

        x_pixels = sectors(ordered(first.pixel_axes, of_x=True), WARP)
        x_products = sectors(ordered(first.product_axes, of_x=True), side)
        w_channels = sectors([(self.channels, self.w.strides[0])], min(WARP, choice.tile.channels))
        w_products = sectors(ordered(first.product_axes, of_x=False), side)
        return x_pixels <= x_products, w_channels < w_products

    def _words(self, choice: _Choice, tiles: int, partial: Pointer | int) -> tuple[Word, ...]:
        x, w, out = self.x, self.w, self.out
        channels_of_tile = choice.tile.channels if choice.tile else 1
        out_group = self.channels * out.strides[1]
        lanes = kernels.lanes_of(self.dtype)
        offsets = out.offset, out.strides[1], out_group
        packed = all(packs(p, lanes, *offsets) for p in self.problems)
        call = {
            "x": x.pointer,
            "w": w.pointer,
            "out": out.pointer,
            "partial": partial,
            "plane": self.pixels,
            "tiles": tiles,
            "parts": choice.parts,
            "groups": self.groups,
            "channels": self.channels,
            "channel_tiles": -(-self.channels // channels_of_tile),
            "height": x.shape[2],
            "width": x.shape[3],
            "x_group": w.shape[1] * x.strides[1],
            "w_group": self.channels * w.strides[0],
            "out_group": out_group,
            "w_channel": w.strides[0],
            "out_channel": out.strides[1],
            "packed": int(packed),
        }
        words: list[Word] = [call[name] for name in kernels.TABLE]
        for p in self.problems:
            fields = {
                "x": p.x,
                "w": p.w,
                "out": p.out,
                "pixels": p.pixels,
                "products": p.products,
                "share": choice.share,
            }
            words += [*(fields[name] for name in kernels.PROBLEM), *p.words()]
        return tuple(words)
