"""What every shape of loop-nest kernel shares: the table, addresses, and the work at one point."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from minigrad.backend.cuda.expressions import (
    cast,
    constant,
    memory_type,
    register_type,
    render,
)
from minigrad.backend.cuda.prelude import bounded, divisor_words
from minigrad.backend.cuda.runtime.jit import compile_kernel
from minigrad.backend.launch import Constant, Pointer, Program, Word
from minigrad.backend.loopnest import Access, LoopNest
from minigrad.dtype import int64

PACK_BYTES = 16  # the largest access of one thread
MOST_LANES = 8


class NestWriter:
    """Writes the kernel of one nest. Subclasses write the loops.

    Locals of a kernel: n0 is the extent of axis 0 and i0 the position along it, p0 the address of
    access 0, s0_1 its stride along axis 1 in elements, e0 expression 0. Along the innermost axis a
    thread has `lanes` elements at once, from its position on; `j` counts them.
    """

    def __init__(self, program: Program, nest: LoopNest):
        self.program, self.nest = program, nest
        self.rank = len(nest.shape)
        self.lane = self.rank - 1
        self.kept = [a for a in range(self.rank) if nest.kept[a]]
        self.reduced = [a for a in range(self.rank) if not nest.kept[a]]
        self.accesses = {a: j for j, a in enumerate(nest.accesses())}
        self.varies = nest.dependencies()
        self.index = "int" if self._reach() < 1 << 31 else "i64"
        self.lanes = 1
        self.moved: set[Access] = set()  # those with a local o0, o1, ...: how far they have moved
        self.lines: list[str] = []
        self.depth = 1
        self.words: list[Word] = []

    # --- text ------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line at the current depth."""
        self.lines.append("    " * self.depth + text)

    def open(self, head: str) -> None:
        """The head of a block."""
        self.line(head + " {")
        self.depth += 1

    def close(self) -> None:
        """The end of a block."""
        self.depth -= 1
        self.line("}")

    def word(self, value: Word, name: str, kind: str | None = None) -> None:
        """A table entry, read into the local `name` as an index, or as `kind`."""
        kind = kind or self.index
        self.line(f"const {kind} {name} = ({kind})table[{len(self.words)}];")
        self.words.append(value)

    def divisor(self, n: int, name: str) -> None:
        """A number to divide by, as the local `name`."""
        kind = "Divisor" if self.index == "int" else "WideDivisor"
        self.line(f"const {kind} {name}(table + {len(self.words)});")
        self.words += divisor_words(n)

    def launch(self, blocks: int, threads: int) -> None:
        """Append the kernel as it is written, and its launch, to the program."""
        source = bounded(threads) + "\n".join(["KERNEL {", *self.lines, "}"]) + "\n"
        name = "_".join(self.nest.ops)[:60] or "copy"  # a profile can be read by it
        self.program.launch(compile_kernel(name, source), tuple(self.words), blocks, threads)

    # --- structure -------------------------------------------------------------------------------

    def _reach(self) -> int:
        """More than any index that the kernel computes, in elements or points."""
        spans = [
            sum(abs(s) * n for s, n in zip(a.strides, self.nest.shape, strict=True))
            for a in self.accesses
        ]
        # Threads may lie beyond the last point, by no more than a launch has of them at a time.
        return max([prod(self.nest.shape) + (1 << 22), *spans])

    def widest(self) -> int:
        """How many elements along the innermost axis can move at once."""
        moving = [a for a in self.accesses if a.strides[self.lane]]
        in_a_row = [a for a in moving if a.strides[self.lane] == 1]
        itemsize = max([a.dtype.itemsize for a in in_a_row], default=4)
        lanes = min(MOST_LANES, max(1, PACK_BYTES // itemsize))
        while lanes > 1:
            steps = [a.offset for a in in_a_row]
            steps += [s for a in in_a_row for s in a.strides[: self.lane]]
            if all(n % lanes == 0 for n in (self.nest.shape[self.lane], *steps)):
                break
            lanes //= 2
        return lanes

    # --- table -----------------------------------------------------------------------------------

    def declare(self) -> None:
        """Read strides, addresses and constants."""
        for access, j in self.accesses.items():
            writes = any(access == x.access for x in (*self.nest.reductions, *self.nest.stores))
            kind = memory_type(access.dtype) if writes else f"const {memory_type(access.dtype)}"
            self.line(f"{kind}* p{j} = array_at<{kind}>(table[{len(self.words)}]);")
            self.words.append(Pointer(access.slot, access.offset * access.dtype.itemsize))
            for a, s in enumerate(access.strides):
                if s and not (a == self.lane and s == 1):
                    self.word(s, f"s{j}_{a}")
        for k, e in enumerate(self.nest.expressions):
            dtype = self.nest.types[k]
            if e[0] == "const":
                value = constant(dtype, f"table[{len(self.words)}]")
                self.line(f"const {register_type(dtype)} e{k} = {value};")
                self.words.append(Constant(e[1]))
            elif e[0] == "index":
                self.word(e[1].offset, f"x{k}", "i64")
                for a, c in enumerate(e[1].coefficients):
                    if c:
                        self.word(c, f"x{k}_{a}", "i64")

    def divisors(self, axes: list[int], lanes: int = 1) -> None:
        """What `decode` divides by: the extents of all but the first, in packs on the innermost."""
        for a in axes[1:]:
            self.divisor(self.nest.shape[a] // (lanes if a == self.lane else 1), f"d{a}")

    def decode(self, axes: list[int], flat: str, lanes: int = 1) -> None:
        """Positions along `axes` from one flat position; the innermost counts packs of `lanes`."""
        kind = self.index
        rest = flat
        for place, a in enumerate(reversed(axes)):
            scale = f" * {lanes}" if a == self.lane and lanes > 1 else ""
            if place == len(axes) - 1:
                self.line(f"const {kind} i{a} = {rest}{scale};")
            else:
                self.line(f"const {kind} q{a} = d{a}.quotient({rest});")
                inner = f"{rest} - q{a} * ({kind})d{a}.d"
                self.line(f"const {kind} i{a} = {f'({inner})' if scale else inner}{scale};")
                rest = f"q{a}"

    # --- the work at one point -------------------------------------------------------------------

    def offset(self, access: Access, axes: Iterable[int]) -> str:
        """How far along `axes` an access has moved, in elements."""
        j = self.accesses[access]
        terms = []
        for a in axes:
            if access.strides[a]:
                unit = a == self.lane and access.strides[a] == 1
                terms.append(f"i{a}" if unit else f"i{a} * s{j}_{a}")
        return " + ".join(terms)

    def place(self, access: Access, axes: Iterable[int]) -> str:
        """The address of an access moved along `axes`, and by what `moved` says."""
        j = self.accesses[access]
        terms = [f"o{j}"] if access in self.moved else []
        offset = self.offset(access, axes)
        terms += [offset] if offset else []
        return f"p{j} + ({' + '.join(terms)})" if terms else f"p{j}"

    def assign(self, k: int, loaded: str = "") -> None:
        """Compute expression k, which does not change along the lanes, or lane j of it.

        Args:
            loaded: how, if it is a load.
        """
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "load":
            text = loaded
        elif e[0] == "index":
            terms = [f"x{k}"] + [f"x{k}_{a} * i{a}" for a, c in enumerate(e[1].coefficients) if c]
            if self.lanes > 1 and e[1].coefficients[self.lane]:
                terms.append(f"x{k}_{self.lane} * j")
            text = cast(dtype, " + ".join(terms), int64)
        else:
            text = render(e[0], dtype, self.nest.types[e[-1]], [f"e{a}" for a in e[2:]])
        self.line(f"const {register_type(dtype)} e{k} = {text};")

    def work(self, level: int, known: set[int], axes: list[int]) -> None:
        """What pass `level` does at a point whose positions along all axes are known.

        Args:
            known: expressions that have been computed before.
            axes: those along which addresses have not moved yet.
        """
        needed = self.nest.cone(self.nest.roots(level))
        todo = [k for k in needed if k not in known and self._computes(k)]
        fixed = [k for k in todo if self.lane not in self.varies[k]]
        moving = [k for k in todo if self.lane in self.varies[k]]
        for k in fixed:
            e = self.nest.expressions[k]
            self.assign(k, f"read({self.place(e[1], axes)})" if e[0] == "load" else "")
        packs = {}
        for k in moving:
            e = self.nest.expressions[k]
            if e[0] == "load" and e[1].strides[self.lane] == 1:
                packs[k] = f"v{k}"
                address = self.place(e[1], axes)
                self.line(f"const auto v{k} = read_pack<{self.lanes}>({address});")
        stores = [s for s in self.nest.stores if s.level == level]
        for n, s in enumerate(stores):
            if s.access.strides[self.lane] == 1:
                self.line(f"Pack<{memory_type(s.access.dtype)}, {self.lanes}> w{n};")
        if self.lanes > 1:
            self.line("#pragma unroll")
            self.open(f"for (int j = 0; j < {self.lanes}; ++j)")
        at = "j" if self.lanes > 1 else "0"
        for k in moving:
            e = self.nest.expressions[k]
            if k in packs:
                self.assign(k, f"load(&v{k}.at[{at}])")
            else:
                self.assign(k, f"read({self._stepped(e[1], axes)})" if e[0] == "load" else "")
        for n, s in enumerate(stores):
            if s.access.strides[self.lane] == 1:
                self.line(f"store(&w{n}.at[{at}], e{s.expression});")
            else:
                self.line(f"store({self._stepped(s.access, axes)}, e{s.expression});")
        self.accumulate(level)
        if self.lanes > 1:
            self.close()
        for n, s in enumerate(stores):
            if s.access.strides[self.lane] == 1:
                self.line(f"store_pack({self.place(s.access, axes)}, w{n});")

    def _computes(self, k: int) -> bool:
        return self.nest.expressions[k][0] not in ("const", "reduction")

    def _stepped(self, access: Access, axes: list[int]) -> str:
        """The address of lane j where lanes are not next to each other."""
        address = self.place(access, axes)
        if self.lanes > 1 and access.strides[self.lane]:
            return f"{address} + j * s{self.accesses[access]}_{self.lane}"
        return address

    def accumulate(self, level: int) -> None:
        """Add one element to the reductions of a pass."""
