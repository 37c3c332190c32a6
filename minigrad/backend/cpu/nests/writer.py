"""What every shape of the CPU's loop-nest kernels shares: Numba's spelling, current addresses."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from minigrad.backend.cpu import expressions
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.cpu.runtime.jit import compile_kernel
from minigrad.backend.cpu.vector.intrinsics import SCOPES
from minigrad.backend.launch import Constant, Pointer, Program, Word
from minigrad.backend.loopnest import Access, LoopNest, Reduction
from minigrad.backend.nests.writer import NestWriter
from minigrad.dtype import DType, float64, int64

PARALLEL_FROM = 1 << 15  # operations below which a parallel region costs more than it saves


class NumbaWriter(NestWriter):
    """Writes and launches the kernel of one nest. Subclasses write the loops (`body`).

    Besides what `NestWriter` lists, n0 is the extent of axis 0, and the position along the
    innermost axis is `i`. `here` holds the local that is the current address of each access.
    """

    outer: int  # what [begin, end) is a share of
    row_points = 0  # what each of `outer` costs apart from its points, as so many more points
    render = staticmethod(expressions.render)
    index = staticmethod(expressions.cast)

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        self.here: dict[Access, str] = {}
        self._scopes: dict[object, int] = {}

    def body(self) -> None:
        """Write the loops."""
        raise NotImplementedError

    def emit(self) -> None:
        """Append the launch to the program."""
        for a, n in enumerate(self.nest.shape):
            self.word(n, f"n{a}")
        self.declare()
        self.body()
        source = "\n".join(["def kernel(table, begin, end):", *self.lines]) + "\n"
        kernel = compile_kernel(self.name, source)
        self.program.launch(kernel, tuple(self.words), self.outer, self.tasks)

    @property
    def tasks(self) -> int:
        """Parallel shares of the outer range."""
        points = prod(self.nest.shape) + self.row_points * self.outer
        work = points * max(len(self.nest.expressions), 4) // 4
        return min(num_threads(), self.outer) if work >= PARALLEL_FROM else 1

    # --- spelling --------------------------------------------------------------------------------

    def word(self, value: Word, name: str, kind: str = "int64") -> None:
        """A table entry, read into a local."""
        self.line(f"{name} = load_{kind}(table, {len(self.words)})")
        self.words.append(value)

    def pointer(self, access: Access, word: Pointer, name: str) -> None:
        """An address, as a number."""
        self.word(word, name)

    def constant(self, k: int, slot: int) -> None:
        """The value of a constant, and that as its dtype."""
        kind, text = expressions.constant(self.nest.types[k])
        self.word(Constant(slot), f"w{k}", kind)
        self.define(k, text.format(f"w{k}"))

    def define(self, k: int, text: str) -> None:
        """The local of an expression."""
        self.line(f"e{k} = {text}")

    def load(self, access: Access) -> str:
        """An element of an input."""
        return f"read_{access.dtype.name}({self.here[access]}, {self.lane_index(access)})"

    def write(self, access: Access, value: str) -> None:
        """Store an element of an output."""
        call = f"write_{access.dtype.name}_{self.scope(access)}"
        self.line(f"{call}({self.here[access]}, {self.lane_index(access)}, {value})")

    def position(self, axis: int) -> str:
        """`i` along the innermost axis, whose loop may be cut into blocks."""
        return "i" if axis == self.lane else f"i{axis}"

    def lane_index(self, access: Access) -> str:
        """How far an access has moved along the innermost axis, in elements."""
        return self.offset(access, [self.lane]) or "0"

    def scope(self, key: object) -> int:
        """The alias scope of an array that the kernel writes."""
        return self._scopes.setdefault(key, min(len(self._scopes), SCOPES - 1))

    # --- addresses -------------------------------------------------------------------------------

    def decode(self, axes: list[int], flat: str) -> None:
        """Positions along `axes`, all but the innermost, from one flat position, which changes."""
        for position, a in enumerate(reversed(axes)):
            if position == len(axes) - 1:
                self.line(f"i{a} = {flat}")
            else:
                self.line(f"i{a} = {flat} % n{a}")
                self.line(f"{flat} = {flat} // n{a}")

    def start(self, axes: list[int]) -> None:
        """The addresses of all accesses moved along the outer `axes`."""
        self.here = {access: f"p{j}" for access, j in self.accesses.items()}
        for access, j in self.accesses.items():
            self._move(access, f"a{j}", axes)

    def move(self, axis: int, used: set[Access]) -> None:
        """Inside the loop over a reduced axis: the addresses of the accesses in `used`."""
        for access, j in self.accesses.items():
            if access in used and access.strides[axis]:
                self._move(access, f"b{j}_{axis}", [axis])

    def _move(self, access: Access, name: str, axes: list[int]) -> None:
        offset = self.offset(access, axes)
        moved = f" + {access.dtype.itemsize} * ({offset})" if offset else ""
        self.line(f"{name} = {self.here[access]}{moved}")
        self.here[access] = name

    def used_in(self, level: int, inner: Iterable[int]) -> set[Access]:
        """The accesses of the pass that computes `inner`, loads and stores."""
        used = {e[1] for e in (self.nest.expressions[k] for k in inner) if e[0] == "load"}
        return used | {s.access for s in self.nest.stores_of(level)}

    def settle(self, axis: int, pending: list[int]) -> list[int]:
        """Assign what no longer changes inside the loop over `axis`; gives the rest.

        Nothing that changes along the innermost axis settles in the loop over another.
        """
        later = {a for a in self.reduced if a > axis} | {self.lane}
        for k in pending:
            if not self.varies[k] & later:
                self.assign(k)
        return [k for k in pending if self.varies[k] & later]

    def store(self, level: int) -> None:
        """The stores of a pass at one point."""
        for s in self.nest.stores_of(level):
            self.write(s.access, f"e{s.expression}")


def wide(r: Reduction) -> DType:
    """The type that a reduction's results over blocks are combined in."""
    if r.kind != "sum" or r.dtype.kind == "bool":
        return r.dtype
    return float64 if r.dtype.is_floating else int64


def initial(kind: str, dtype: DType) -> str:
    """The neutral element of a reduction."""
    name = dtype.name
    if name == "bool":
        return "False"
    if kind == "sum":
        return f"types.{name}(0)"
    if dtype.is_floating:
        return f"types.{name}(-math.inf)"
    low = 0 if dtype.kind == "uint" else -(1 << (8 * dtype.itemsize - 1))
    return f"types.{name}({low})"


def accumulated(kind: str, dtype: DType, total: str, value: str) -> str:
    """`total` combined with one more `value`, both of `dtype`."""
    name = dtype.name
    if name == "bool":
        return f"({total} | {value})"
    if kind == "sum" and dtype.is_floating:
        return f"accumulate(types.{name}({total}), types.{name}({value}))"
    if kind == "sum":
        return f"types.{name}({total} + {value})"
    return f"take_maximum(types.{name}({value}), types.{name}({total}))"
