"""How a tensor prints: values in NumPy's layout, then dtype and device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from minigrad.backend.launch import contiguous_strides
from minigrad.interop.encoding import decode

if TYPE_CHECKING:
    from minigrad.dtype import DType
    from minigrad.tensor import Tensor

_FULL_SIZE = 1000  # elements; a larger tensor shows the ends of each axis only
_EDGE = 3
_WIDTH = 90  # characters
_DIGITS = 4  # after the point


def describe(x: Tensor) -> str:
    """The `repr` of a tensor. Looking at values computes them."""
    from minigrad.execution.compute import export_bytes

    shape = x.shape
    about = f"dtype={x.dtype.name}, device={x.device}"
    if x.requires_grad:
        about += ", requires_grad=True"
    if 0 in shape:
        return f"tensor([], shape={shape}, {about})"
    kept = [_shown(n, x.size) for n in shape]
    strides = contiguous_strides(shape)
    offsets = list(_offsets(kept, strides))
    data, size = export_bytes(x), x.dtype.itemsize
    shown = b"".join([data[i * size : (i + 1) * size] for i in offsets])
    values: dict[int, Any] = dict(zip(offsets, decode(memoryview(shown), x.dtype), strict=True))
    show = _formatter(list(values.values()), x.dtype)

    def block(axis: int, offset: int, indent: int) -> str:
        if axis == len(shape):
            return show(values[offset])
        if axis == len(shape) - 1:
            row = ("..." if i is None else show(values[offset + i]) for i in kept[axis])
            return "[" + _row(row, indent + 1) + "]"
        # Blank lines between blocks, more of them further out.
        between = "," + "\n" * (len(shape) - axis - 1) + " " * (indent + 1)
        parts = [
            "..." if i is None else block(axis + 1, offset + i * strides[axis], indent + 1)
            for i in kept[axis]
        ]
        return "[" + between.join(parts) + "]"

    text = block(0, 0, len("tensor("))
    if "\n" in text:
        return f"tensor({text},\n       {about})"
    return f"tensor({text}, {about})"


def _shown(n: int, size: int) -> list[int | None]:
    """The indices along an axis that are shown; None for those left out."""
    if size <= _FULL_SIZE or n <= 2 * _EDGE:
        return list(range(n))
    return [*range(_EDGE), None, *range(n - _EDGE, n)]


def _offsets(kept: list[list[int | None]], strides: tuple[int, ...]) -> Iterator[int]:
    if not kept:
        yield 0
        return
    for i in kept[0]:
        if i is not None:
            for rest in _offsets(kept[1:], strides[1:]):
                yield i * strides[0] + rest


def _row(items: Iterator[str], indent: int) -> str:
    """Items separated by commas, broken into lines."""
    lines: list[str] = []
    line = ""
    for item in items:
        if line and indent + len(line) + len(item) + 2 > _WIDTH:
            lines.append(line)
            line = item
        else:
            line = f"{line}, {item}" if line else item
    lines.append(line)
    return (",\n" + " " * indent).join(lines)


def _formatter(values: list[Any], dtype: DType) -> Callable[[Any], str]:
    """One way of writing a number that lines all of them up."""
    write: Callable[[Any], str] = _float_style(values) if dtype.is_floating else str
    width = max(len(write(v)) for v in values)
    return lambda v: write(v).rjust(width)


def _float_style(values: list[float]) -> Callable[[float], str]:
    sizes = [abs(v) for v in values if math.isfinite(v) and v != 0]
    if sizes and (max(sizes) >= 1e8 or min(sizes) < 1e-4 or max(sizes) / min(sizes) > 1e6):
        return lambda v: f"{v:.{_DIGITS}e}" if math.isfinite(v) else str(v)
    texts = [f"{v:.{_DIGITS}f}".rstrip("0") for v in values if math.isfinite(v)]
    decimals = max((len(t) - t.index(".") - 1 for t in texts), default=0)

    def write(v: float) -> str:
        if not math.isfinite(v):
            return str(v)
        return f"{v:.{decimals}f}" if decimals else f"{v:.0f}."

    return write
