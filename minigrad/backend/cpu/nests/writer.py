"""What every shape of loop-nest kernel shares: the table, addresses, expressions, accumulators."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from minigrad.backend.cpu.expressions import cast, constant, render
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.cpu.runtime.jit import compile_kernel
from minigrad.backend.cpu.vector.intrinsics import SCOPES
from minigrad.backend.launch import Constant, Pointer, Program, Word
from minigrad.backend.loopnest import Access, LoopNest, Reduction
from minigrad.dtype import DType, float64, int64

PARALLEL_FROM = 1 << 15  # operations below which a parallel region costs more than it saves


class Source:
    """Lines of a kernel at a current depth, and the words of its table."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.words: list[Word] = []

    def line(self, text: str) -> None:
        """One line."""
        self.lines.append("    " * self.depth + text)

    def loop(self, header: str) -> None:
        """The head of a loop; what follows is its body until `depth` is set back."""
        self.line(header)
        self.depth += 1

    def word(self, value: Word, name: str, kind: str = "int64") -> None:
        """A table entry, read into the local `name` at the top of the kernel."""
        self.line(f"{name} = load_{kind}(table, {len(self.words)})")
        self.words.append(value)


class NestWriter:
    """Writes and launches the kernel of one nest. Subclasses write the loops (`body`).

    Locals of a kernel: n0 is the extent of axis 0, i0 the position along it (`i` along the
    innermost), p0 the address of access 0, s0_1 its stride along axis 1, e0 expression 0.
    """

    outer: int  # what [begin, end) is a share of
    row_points = 0  # points that take about as long as what each of `outer` costs besides

    def __init__(self, program: Program, nest: LoopNest):
        self.program, self.nest = program, nest
        self.out = Source()
        self.rank = len(nest.shape)
        self.lane = self.rank - 1
        self.kept = [a for a in range(self.rank) if nest.kept[a]]
        self.reduced = [a for a in range(self.rank) if not nest.kept[a]]
        self.accesses = {a: j for j, a in enumerate(nest.accesses())}
        self.varies = nest.dependencies()
        self._scopes: dict[object, int] = {}

    def body(self) -> None:
        """Write the loops."""
        raise AssertionError("a subclass writes the loops")

    def emit(self) -> None:
        """Append the launch to the program."""
        self._declare()
        self.body()
        source = "\n".join(["def kernel(table, begin, end):", *self.out.lines]) + "\n"
        name = "_".join(self.nest.ops)[:60] or "copy"  # a profile can be read by it
        kernel = compile_kernel(name, source)
        self.program.launch(kernel, tuple(self.out.words), self.outer, self.tasks)

    @property
    def tasks(self) -> int:
        """Parallel shares of the outer range."""
        points = prod(self.nest.shape) + self.row_points * self.outer
        work = points * max(len(self.nest.expressions), 4) // 4
        return min(num_threads(), self.outer) if work >= PARALLEL_FROM else 1

    # --- table -----------------------------------------------------------------------------------

    def _declare(self) -> None:
        out, nest = self.out, self.nest
        for a, n in enumerate(nest.shape):
            out.word(n, f"n{a}")
        for access, j in self.accesses.items():
            offset = access.offset * access.dtype.itemsize
            out.word(Pointer(access.slot, offset), f"p{j}")
            for a, s in enumerate(access.strides):
                if s and not (a == self.lane and s == 1):
                    out.word(s, f"s{j}_{a}")
        for k, e in enumerate(nest.expressions):
            if e[0] == "const":
                kind, text = constant(nest.types[k])
                out.word(Constant(e[1]), f"w{k}", kind)
                out.line(f"e{k} = {text.format(f'w{k}')}")
            elif e[0] == "index":
                out.word(e[1].offset, f"x{k}")
                for a, c in enumerate(e[1].coefficients):
                    if c:
                        out.word(c, f"x{k}_{a}")

    # --- addresses -------------------------------------------------------------------------------

    def address(self, name: str, j: int, access: Access, axes: list[int], start: str) -> None:
        """A local `name`: the address `start` moved along `axes`."""
        terms = [f"i{a} * s{j}_{a}" for a in axes if access.strides[a]]
        size = access.dtype.itemsize
        moved = f" + {size} * ({' + '.join(terms)})" if terms else ""
        self.out.line(f"{name} = {start}{moved}")

    def move(self, axis: int, used: set[Access], here: dict[int, str]) -> None:
        """Inside the loop over a reduced axis: the addresses of the accesses in `used`."""
        for access, j in self.accesses.items():
            if access in used and access.strides[axis]:
                name = f"b{j}_{axis}"
                self.address(name, j, access, [axis], here[j])
                here[j] = name

    def used_in(self, level: int, inner: Iterable[int]) -> set[Access]:
        """The accesses of the pass that computes `inner`, loads and stores."""
        used = {e[1] for e in (self.nest.expressions[k] for k in inner) if e[0] == "load"}
        return used | {s.access for s in self.nest.stores if s.level == level}

    def lane_index(self, access: Access, j: int) -> str:
        """The index along the innermost axis."""
        stride = access.strides[self.lane]
        if stride == 0:
            return "0"
        return "i" if stride == 1 else f"i * s{j}_{self.lane}"

    def scope(self, key: object) -> int:
        """The alias scope of an array that the kernel writes."""
        return self._scopes.setdefault(key, min(len(self._scopes), SCOPES - 1))

    def decode(self, axes: list[int], flat: str) -> None:
        """Positions along the kept `axes` from one flat position."""
        for position, a in enumerate(reversed(axes)):
            if position == len(axes) - 1:
                self.out.line(f"i{a} = {flat}")
            else:
                self.out.line(f"i{a} = {flat} % n{a}")
                self.out.line(f"{flat} = {flat} // n{a}")

    # --- expressions -----------------------------------------------------------------------------

    def assign(self, k: int, addresses: dict[int, str]) -> None:
        """Compute expression k into the local e{k}."""
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "load":
            j = self.accesses[e[1]]
            at_lane = self.lane_index(e[1], j)
            self.out.line(f"e{k} = read_{dtype.name}({addresses[j]}, {at_lane})")
        elif e[0] == "index":
            terms = [f"x{k}"]
            for a, c in enumerate(e[1].coefficients):
                if c:
                    terms.append(f"x{k}_{a} * {'i' if a == self.lane else f'i{a}'}")
            self.out.line(f"e{k} = {cast(dtype, ' + '.join(terms))}")
        elif e[0] not in ("const", "reduction"):
            arguments = [f"e{a}" for a in e[2:]]
            argument_type = self.nest.types[e[-1]]
            self.out.line(f"e{k} = {render(e[0], dtype, argument_type, arguments)}")

    def settle(self, axis: int, pending: list[int], here: dict[int, str]) -> list[int]:
        """Assign what no longer changes inside the loop over `axis`; gives the rest.

        Nothing that changes along the innermost axis settles in the loop over another.
        """
        later = {a for a in self.reduced if a > axis} | {self.lane}
        settled = [k for k in pending if not self.varies[k] & later]
        for k in settled:
            self.assign(k, here)
        return [k for k in pending if self.varies[k] & later]

    def store(self, level: int, here: dict[int, str]) -> None:
        """The stores of a pass at one point."""
        for s in self.nest.stores:
            if s.level == level:
                j = self.accesses[s.access]
                at, name = self.lane_index(s.access, j), s.access.dtype.name
                scope = self.scope(s.access)
                self.out.line(f"write_{name}_{scope}({here[j]}, {at}, e{s.expression})")


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
