"""The head of a kernel that works on strided operands, the words its table holds, its shares.

An operand `x` of rank n has n + 1 words: its address, the strides of all axes but the last in
bytes, and that of the last axis in elements, since a load takes a byte address and an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.launch import Operand, Word

# Operations below which a region is not worth its start, which takes about 1.5 us.
_PARALLEL_WORK = 16384


def shares(work: int, extent: int) -> int:
    """Shares for `work` operations spread evenly over a range of `extent`; 1 means serially."""
    return max(1, min(num_threads(), extent)) if work >= _PARALLEL_WORK else 1


def words(operands: Mapping[str, Operand]) -> list[Word]:
    """The table's words for the operands, as `source` reads them."""
    row: list[Word] = []
    for operand in operands.values():
        itemsize = operand.dtype.itemsize
        row += [operand.pointer, *(s * itemsize for s in operand.strides[:-1])]
        row.append(operand.strides[-1])
    return row


def source(
    operands: Mapping[str, Operand],
    sizes: Iterable[str],
    body: str,
    *,
    imports: str = "",
    constants: Mapping[str, Any] | None = None,
    unit: Iterable[str] = (),
) -> str:
    """The text of a kernel whose table holds the operands' words, then `sizes`, and more at TAIL.

    An operand `x` of rank 2 brings the variables x (its address), x_0 and x_1 (its strides) and
    the functions load_x, store_x and x_type of its dtype. The operands named in `unit` have a last
    stride of 1, which is then known to the compiler. `constants` are compile-time, too.
    """
    names = [f"{x}{part}" for x in operands for part in ("", *_parts(operands[x]))]
    names += sizes
    head = [imports] if imports else []
    for x, operand in operands.items():
        kind = operand.dtype.name
        head.append(f"load_{x}, store_{x}, {x}_type = load_{kind}, store_{kind}, types.{kind}")
    head += [f"{name} = {value}" for name, value in (constants or {}).items()]
    head += [f"TAIL = {len(names)}", "", "", "def kernel(table, begin, end):"]
    head += [f"    {name} = load_int64(table, {i})" for i, name in enumerate(names)]
    head += [f"    {x}{_parts(operands[x])[-1]} = 1" for x in unit]
    return "\n".join(head) + "\n" + body


def _parts(operand: Operand) -> list[str]:
    return [f"_{axis}" for axis in range(len(operand.shape))]
