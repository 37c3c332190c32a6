"""Python numbers to the bytes of a dtype and back: the one place that knows how each is stored."""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Sequence
from typing import Any

from minigrad.dtype import DType, bfloat16, bool_, float16


def encode(numbers: Sequence[float], dtype: DType) -> memoryview:
    """The numbers as `dtype`, as bytes in the host's order. The halves round to nearest even.

    Raises:
        OverflowError: a number is out of the range of an integer type or of a half.
        ValueError: NaN, for an integer type.
    """
    if dtype is bool_:
        packed: Any = bytes(map(bool, numbers))
    elif dtype is float16:
        packed = bytearray(struct.pack(f"={len(numbers)}e", *map(float, numbers)))
    elif dtype is bfloat16:
        exact = memoryview(array.array("f", map(_rounded_to_bfloat16, numbers))).cast("B")
        packed = bytearray(2 * len(numbers))
        packed[::2], packed[1::2] = exact[2::4], exact[3::4]  # the upper halves
    elif dtype.is_floating:
        packed = array.array(_code(dtype), numbers)
    else:
        packed = array.array(_code(dtype), map(int, numbers))
    return memoryview(packed).cast("B")


def decode(data: memoryview, dtype: DType, shape: tuple[int, ...] | None = None) -> Any:
    """Bytes as a memoryview of Python numbers, of `shape` (not empty) or flat.

    float32 holds every value of the halves, so they come in it, and as a copy: before Python 3.12
    memoryviews do not read float16, and bfloat16 they never do. Other types share the memory.
    """
    if dtype is float16:
        values = array.array("f", struct.unpack(f"={data.nbytes // 2}e", data))
        data, code = memoryview(values).cast("B"), "f"
    elif dtype is bfloat16:
        wide = bytearray(2 * data.nbytes)
        wide[2::4], wide[3::4] = data[::2], data[1::2]
        data, code = memoryview(wide), "f"
    else:
        code = _code(dtype)
    flat: Any = data
    return flat.cast(code) if shape is None else flat.cast(code, shape)


def _code(dtype: DType) -> str:
    assert dtype.format is not None, dtype
    return dtype.format


def _rounded_to_bfloat16(value: float) -> float:
    """The nearest bfloat16, of two equally near the even one.

    In one step: rounded to float32 first, what lies just beside the middle would come to lie on it.
    """
    x = float(value)
    if x == 0 or not math.isfinite(x):
        return x
    spacing = math.ldexp(1.0, max(math.frexp(x)[1] - 8, -133))  # 8 digits; 2**-133 is the least
    nearest = math.copysign(round(abs(x) / spacing) * spacing, x)
    if abs(nearest) >= 2.0**128:
        raise OverflowError("float too large for bfloat16")
    return nearest
