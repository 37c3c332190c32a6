"""What the compiler hands a backend to run: operands, and launches of compiled kernels.

A kernel is a native function `void(table, begin, end)`. The table is a row of int64 words: sizes,
strides, pointers and the bits of float64 constants. `begin` and `end` bound its share of an outer
range. Pointers are named by slot, since a plan is made before the memory it runs on is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from minigrad.dtype import DType


@dataclass(frozen=True)
class Pointer:
    """The address of `slot`'s memory plus `offset` bytes, filled in when the plan runs."""

    slot: int
    offset: int = 0


@dataclass(frozen=True)
class Constant:
    """The value of the plan's constant number `slot`: float64 bits, or an int64 word."""

    slot: int


@dataclass(frozen=True)
class Operand:
    """A strided view of a slot. `strides` (perhaps 0 or negative) and `offset` are in elements."""

    slot: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def pointer(self) -> Pointer:
        """The address of the first element."""
        return Pointer(self.slot, self.offset * self.dtype.itemsize)

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it shows: what a stride of 0 repeats counts once."""
        shown = [n for n, s in zip(self.shape, self.strides, strict=True) if s or not n]
        return prod(shown) * self.dtype.itemsize


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of a dense array, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


Word = int | float | Pointer | Constant  # an entry of a kernel's table, before the plan runs


class Kernel(Protocol):
    """Compiled code of a backend's own, of which people see the name and the source."""

    name: str
    source: str


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: run the range [0, extent) in `tasks` parallel shares (1 = serially).

    Its arguments name every slot that it uses by a Pointer: they say what is alive when.
    """

    kernel: Kernel
    args: tuple[Word, ...]
    extent: int
    tasks: int = 1


@dataclass(frozen=True)
class CallRecord:
    """What launches in a row do together, for people to see: it changes nothing that runs.

    `reads` and `writes` leave out scratch memory that only these launches use.
    """

    ops: tuple[str, ...]
    space: tuple[int, ...]  # extents of its loops
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    launches: range  # positions among the program's
    passes: int = 1  # how often it runs over what it reduces


@dataclass
class Program:
    """The launches of a plan in order, the scratch slots they asked for, and their constant tables.

    Slots below `first_scratch` belong to the caller. A scratch slot lives from the launch list it
    was asked for; code that lowers never frees it.
    """

    first_scratch: int
    launches: list[Launch] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    scratch: list[int] = field(default_factory=list)  # bytes of slot first_scratch + i
    keep: list[Any] = field(default_factory=list)  # objects whose addresses appear in the launches
    checks: list[tuple[int, str]] = field(default_factory=list)  # status slot, message

    def launch(self, kernel: Kernel, args: tuple[Word, ...], extent: int, tasks: int = 1) -> None:
        """Append a launch; see `Launch`."""
        self.launches.append(Launch(kernel, args, extent, tasks))

    def scratch_slot(self, nbytes: int) -> int:
        """A new slot of `nbytes` uninitialised bytes, 64-byte aligned, with slack past its end."""
        self.scratch.append(nbytes)
        return self.first_scratch + len(self.scratch) - 1

    def status_slot(self, message: str) -> int:
        """A slot of one int64 word, zeroed before each run.

        A kernel that stores a nonzero word there makes the run raise IndexError(message), with
        `{value}` replaced by the word minus 1.
        """
        slot = self.scratch_slot(8)
        self.checks.append((slot, message))
        return slot
