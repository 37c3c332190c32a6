"""The data types, and the Array API's promotion rules between them."""

# pyright: reportUnnecessaryIsInstance=false, reportUnnecessaryContains=false
# users' arguments are checked at run time

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DType", "bfloat16", "float16", "float32", "float64", "int32", "int64", "uint8"]


@dataclass(frozen=True)
class DType:
    """A fixed-width number type. `itemsize` is in bytes.

    `format` is the buffer protocol's code, None where it has none. `everywhere` says that every
    device computes with the type; any device can hold it. See `minigrad.device.computes`.
    """

    name: str
    kind: str  # "bool", "uint", "int" or "float"
    itemsize: int
    format: str | None
    everywhere: bool = True

    def __repr__(self) -> str:
        return f"minigrad.{self.name}"

    @property
    def is_floating(self) -> bool:
        """Whether it is a floating-point type."""
        return self.kind == "float"

    @property
    def typestr(self) -> str | None:
        """The type as NumPy's array-interface protocol spells it, None if it cannot."""
        if self.format is None:
            return None
        code = {"bool": "b", "uint": "u", "int": "i", "float": "f"}[self.kind]
        return ("|" if self.itemsize == 1 else "<") + code + str(self.itemsize)


bool_ = DType("bool", "bool", 1, "?")
uint8 = DType("uint8", "uint", 1, "B")
int32 = DType("int32", "int", 4, "i")
int64 = DType("int64", "int", 8, "q")
# The halves. bfloat16 is a float32 without its lower 16 bits: the same range, 8 bits of precision.
float16 = DType("float16", "float", 2, "e", everywhere=False)
bfloat16 = DType("bfloat16", "float", 2, None, everywhere=False)
float32 = DType("float32", "float", 4, "f")
float64 = DType("float64", "float", 8, "d")

ALL = (bool_, uint8, int32, int64, float16, bfloat16, float32, float64)
BY_NAME = {d.name: d for d in ALL}
BY_TYPESTR = {d.typestr: d for d in ALL if d.typestr is not None}

# Binary digits of a significand, the leading one included: 1 + 2**(1 - p) is the next after 1.
PRECISION = {float16: 11, bfloat16: 8, float32: 24, float64: 53}

_RANK = {"bool": 0, "uint": 1, "int": 2, "float": 3}


def as_dtype(value: DType | str, caller: str = "dtype") -> DType:
    """A DType from itself or its name."""
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    if value in (bool, int, float):
        return {bool: bool_, int: int64, float: float32}[value]
    raise TypeError(f"{caller}: expected one of {', '.join(BY_NAME)}, got {value!r}.")


def promote(a: DType, b: DType) -> DType:
    """The Array API's promotion: the wider of the higher kind.

    What the standard leaves open is as in PyTorch: of int and float the float type wins, and
    float16 with bfloat16 gives float32, since neither holds the other's values.
    """
    if a is b:
        return a
    if _RANK[a.kind] != _RANK[b.kind]:
        return a if _RANK[a.kind] > _RANK[b.kind] else b
    if a.itemsize == b.itemsize:
        return float32
    return a if a.itemsize > b.itemsize else b


def accumulator(dtype: DType) -> DType:
    """What intermediate results of `dtype` are kept in: float32 for the halves."""
    return float32 if dtype is float16 or dtype is bfloat16 else dtype


def of_scalar(value: complex, like: DType | None = None) -> DType:
    """The type a Python number takes beside a tensor of type `like`: weak, as the standard says."""
    if isinstance(value, bool):
        return like or bool_
    if isinstance(value, int):
        return like if like is not None and like.kind != "bool" else int64
    if isinstance(value, float):
        return like if like is not None and like.is_floating else float32
    raise TypeError(f"expected a bool, int or float, got {type(value).__name__}.")
