"""What a writer of loop-nest kernels knows and does, in whatever language it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from minigrad.backend.launch import Pointer, Program, Word
from minigrad.backend.loopnest import Access, Affine, LoopNest
from minigrad.dtype import DType


class NestWriter:
    """The kernel of one nest as it is written: its lines, and the words of its table.

    Locals of a kernel: i0 is the position along axis 0, p0 the address of access 0, s0_1 its stride
    along axis 1 in elements, e0 expression 0. An index x0 + x0_1 * i1 has its offset and its
    coefficients in x0 and x0_1. Strides of 0, and of 1 along the innermost axis, are not read from
    the table: they are part of the kernel's structure.
    """

    opens, closes = "", ""  # what follows the head of a block, and what ends it
    # An elementwise op by its name, its dtype and that of its arguments, and the arguments; and a
    # sum of integers as a value of a dtype.
    render: Callable[[str, DType, DType, list[str]], str]
    index: Callable[[DType, str], str]

    def __init__(self, program: Program, nest: LoopNest):
        self.program, self.nest = program, nest
        self.rank = len(nest.shape)
        self.lane = self.rank - 1  # the innermost axis
        self.kept = [a for a in range(self.rank) if nest.kept[a]]
        self.reduced = [a for a in range(self.rank) if not nest.kept[a]]
        self.accesses = {a: j for j, a in enumerate(nest.accesses())}
        self.varies = nest.dependencies()
        self.lines: list[str] = []
        self.depth = 1
        self.words: list[Word] = []

    # --- what a language spells ------------------------------------------------------------------

    def word(self, value: Word, name: str) -> None:
        """A table entry, read into the local `name`: an extent, or a stride."""
        raise NotImplementedError

    def coefficient(self, value: int, name: str) -> None:
        """A table entry that an index is computed from."""
        self.word(value, name)

    def pointer(self, access: Access, word: Pointer, name: str) -> None:
        """A table entry that is an address."""
        raise NotImplementedError

    def constant(self, k: int, slot: int) -> None:
        """A table entry that is the value of expression k, a run-time constant."""
        raise NotImplementedError

    def define(self, k: int, text: str) -> None:
        """The local e{k}."""
        raise NotImplementedError

    def load(self, access: Access) -> str:
        """The element of an access at the point where the writer is."""
        raise NotImplementedError

    def position(self, axis: int) -> str:
        """The local that holds the position along an axis."""
        return f"i{axis}"

    # --- text ------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line at the current depth."""
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A loop or a condition; what is written meanwhile is its body."""
        self.line(head + self.opens)
        self.depth += 1
        yield
        self.depth -= 1
        if self.closes:
            self.line(self.closes)

    @property
    def name(self) -> str:
        """What the kernel is called, so that a profile can be read: the ops that it computes."""
        return "_".join(self.nest.ops)[:60] or "copy"

    # --- table -----------------------------------------------------------------------------------

    def declare(self) -> None:
        """Read addresses, strides, constants and the coefficients of indices."""
        for access, j in self.accesses.items():
            word = Pointer(access.slot, access.offset * access.dtype.itemsize)
            self.pointer(access, word, f"p{j}")
            for a, s in enumerate(access.strides):
                if s and not self.is_unit(access, a):
                    self.word(s, f"s{j}_{a}")
        for k, e in enumerate(self.nest.expressions):
            if e[0] == "const":
                self.constant(k, e[1])
            elif e[0] == "index":
                self.coefficient(e[1].offset, f"x{k}")
                for a, c in enumerate(e[1].coefficients):
                    if c:
                        self.coefficient(c, f"x{k}_{a}")

    def is_unit(self, access: Access, axis: int) -> bool:
        """Whether the kernel knows that an access moves by 1 along the axis."""
        return axis == self.lane and access.strides[axis] == 1

    # --- places and values -----------------------------------------------------------------------

    def offset(self, access: Access, axes: Iterable[int]) -> str:
        """How far along `axes` an access has moved, in elements; "" if it does not move."""
        j = self.accesses[access]
        return " + ".join(
            self.position(a) if self.is_unit(access, a) else f"{self.position(a)} * s{j}_{a}"
            for a in axes
            if access.strides[a]
        )

    def index_terms(self, k: int, index: Affine) -> list[str]:
        """What the index that expression k is adds up."""
        moving = [a for a, c in enumerate(index.coefficients) if c]
        return [f"x{k}", *(f"x{k}_{a} * {self.position(a)}" for a in moving)]

    def assign(self, k: int) -> None:
        """Compute expression k into e{k}, unless the table or a reduction gives it."""
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "load":
            self.define(k, self.load(e[1]))
        elif e[0] == "index":
            self.define(k, self.index(dtype, " + ".join(self.index_terms(k, e[1]))))
        elif e[0] not in ("const", "reduction"):
            arguments = [f"e{a}" for a in e[2:]]
            self.define(k, self.render(e[0], dtype, self.nest.types[e[-1]], arguments))

    def assign_fixed(self, level: int, axes: Iterable[int], known: set[int]) -> None:
        """Compute what pass `level` needs and does not change but along `axes`; it gets known."""
        for k in self.nest.cone(self.nest.roots(level)):
            if k not in known and self.varies[k] <= set(axes):
                self.assign(k)
                known.add(k)
