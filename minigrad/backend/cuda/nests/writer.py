"""What every shape of CUDA's loop-nest kernels shares: spelling, packs, the work at one point."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import prod

from minigrad.backend.cuda import expressions
from minigrad.backend.cuda.expressions import memory_type, register_type
from minigrad.backend.cuda.prelude import bounded, divisor_words
from minigrad.backend.cuda.runtime.jit import compile_kernel
from minigrad.backend.launch import Constant, Pointer, Program, Word
from minigrad.backend.loopnest import Access, Affine, LoopNest
from minigrad.backend.nests.writer import NestWriter
from minigrad.dtype import int64

PACK_BYTES = 16  # the largest access of one thread
MOST_LANES = 8


class CudaWriter(NestWriter):
    """Writes the kernel of one nest. Subclasses write the loops.

    Along the innermost axis a thread has `lanes` elements at once, from its position on; `j` counts
    them. Arrays without gaps along it are read and written in packs of that many. Besides what
    `NestWriter` lists, v0 is the pack read from access 0, and w0 the one that store 0 writes.
    """

    opens, closes = " {", "}"
    render = staticmethod(expressions.render)
    index = staticmethod(partial(expressions.cast, source=int64))

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        self.index_type = "int" if self._reach() < 1 << 31 else "i64"
        self.lanes = 1
        self.walked = list(range(self.rank))  # axes along which `place` goes, from o0 or p0
        self.moved: set[Access] = set()  # those with a local o0, o1, ...: how far they have moved
        self.packed: set[Access] = set()  # those that have been read into v0, v1, ...

    # --- spelling --------------------------------------------------------------------------------

    def word(self, value: Word, name: str, kind: str | None = None) -> None:
        """A table entry, read into a local as an index, or as `kind`."""
        kind = kind or self.index_type
        self.line(f"const {kind} {name} = ({kind})table[{len(self.words)}];")
        self.words.append(value)

    def coefficient(self, value: int, name: str) -> None:
        """A number of 64 bits, since an index is a value of the user's."""
        self.word(value, name, "i64")

    def pointer(self, access: Access, word: Pointer, name: str) -> None:
        """A typed address, of constants if the kernel only reads there."""
        kind = memory_type(access.dtype)
        if all(access != x.access for x in (*self.nest.reductions, *self.nest.stores)):
            kind = f"const {kind}"
        self.line(f"{kind}* {name} = array_at<{kind}>(table[{len(self.words)}]);")
        self.words.append(word)

    def constant(self, k: int, slot: int) -> None:
        """The value of a constant."""
        self.define(k, expressions.constant(self.nest.types[k], f"table[{len(self.words)}]"))
        self.words.append(Constant(slot))

    def divisor(self, n: int, name: str) -> None:
        """A number to divide by, as a local."""
        kind = "Divisor" if self.index_type == "int" else "WideDivisor"
        self.line(f"const {kind} {name}(table + {len(self.words)});")
        self.words += divisor_words(n)

    def define(self, k: int, text: str) -> None:
        """The local of an expression, in the type that its dtype is computed in."""
        self.line(f"const {register_type(self.nest.types[k])} e{k} = {text};")

    def index_terms(self, k: int, index: Affine) -> list[str]:
        """Those of the thread's first element, and that of lane j."""
        terms = super().index_terms(k, index)
        if self.lanes > 1 and index.coefficients[self.lane]:
            terms.append(f"x{k}_{self.lane} * j")
        return terms

    def load(self, access: Access) -> str:
        """An element of lane j, from memory or from the pack that holds it."""
        if access in self.packed:
            return f"load(&v{self.accesses[access]}.at[{self.lane_number}])"
        return f"read({self._stepped(access)})"

    def launch(self, blocks: int, threads: int) -> None:
        """Append the kernel as it is written, and its launch, to the program."""
        source = bounded(threads) + "\n".join(["KERNEL {", *self.lines, "}"]) + "\n"
        kernel = compile_kernel(self.name, source)
        self.program.launch(kernel, tuple(self.words), blocks, threads)

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

    def divisors(self, axes: list[int], lanes: int = 1) -> None:
        """What `decode` divides by: the extents of all but the first, in packs on the innermost."""
        for a in axes[1:]:
            self.divisor(self.nest.shape[a] // (lanes if a == self.lane else 1), f"d{a}")

    def decode(self, axes: list[int], flat: str, lanes: int = 1) -> None:
        """Positions along `axes` from one flat position; the innermost counts packs of `lanes`."""
        kind = self.index_type
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

    @property
    def lane_number(self) -> str:
        """Which of the thread's elements the writer is at."""
        return "j" if self.lanes > 1 else "0"

    def place(self, access: Access) -> str:
        """The address of an access at the thread's first element."""
        j, offset = self.accesses[access], self.offset(access, self.walked)
        terms = [f"o{j}"] if access in self.moved else []
        terms += [offset] if offset else []
        return f"p{j} + ({' + '.join(terms)})" if terms else f"p{j}"

    def _stepped(self, access: Access) -> str:
        """The address of lane j where lanes are not next to each other."""
        address = self.place(access)
        if self.lanes > 1 and access.strides[self.lane]:
            return f"{address} + j * s{self.accesses[access]}_{self.lane}"
        return address

    def work(self, level: int, known: set[int]) -> None:
        """What pass `level` does at a point whose positions along all axes are known.

        Args:
            known: expressions that have been computed before.
        """
        todo = [k for k in self.nest.cone(self.nest.roots(level)) if k not in known]
        moving = [k for k in todo if self.lane in self.varies[k]]
        for k in todo:
            if self.lane not in self.varies[k]:
                self.assign(k)
        self._read_packs(moving)
        stores = list(enumerate(self.nest.stores_of(level)))
        packed = [(n, s) for n, s in stores if self.is_unit(s.access, self.lane)]
        for n, s in packed:
            self.line(f"Pack<{memory_type(s.access.dtype)}, {self.lanes}> w{n};")
        with self._each_lane():
            for k in moving:
                self.assign(k)
            for n, s in stores:
                is_packed = (n, s) in packed
                at = f"&w{n}.at[{self.lane_number}]" if is_packed else self._stepped(s.access)
                self.line(f"store({at}, e{s.expression});")
            self.accumulate(level)
        for n, s in packed:
            self.line(f"store_pack({self.place(s.access)}, w{n});")

    def _read_packs(self, expressions: list[int]) -> None:
        """Read what lies side by side along the lanes, each array by one access."""
        chosen = map(self.nest.expressions.__getitem__, expressions)
        loaded = dict.fromkeys(e[1] for e in chosen if e[0] == "load")  # two may load the same
        self.packed = {access for access in loaded if self.is_unit(access, self.lane)}
        for access in loaded:
            if access in self.packed:
                pack = f"v{self.accesses[access]}"
                self.line(f"const auto {pack} = read_pack<{self.lanes}>({self.place(access)});")

    def _each_lane(self) -> AbstractContextManager[None]:
        """A loop over the thread's elements, if it has several."""
        if self.lanes == 1:
            return nullcontext()
        self.line("#pragma unroll")
        return self.block(f"for (int j = 0; j < {self.lanes}; ++j)")

    def accumulate(self, level: int) -> None:
        """Add one element to the reductions of a pass."""
