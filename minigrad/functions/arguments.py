"""Arguments become nodes here and nowhere else: numbers, promotion, broadcasting, axes, shapes."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minigrad import ops
from minigrad.context import context
from minigrad.device import Device
from minigrad.dtype import DType, accumulator, of_scalar, promote
from minigrad.graph import Node, Number, Shape, const
from minigrad.ops.control import stop_gradient
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

    Operand = Tensor | Number
    Axis = int | Sequence[int] | None
    Extents = int | Sequence[int]
    DTypeLike = DType | str
    Place = Device | str | None

_RANGES = {"uint8": (0, 2**8 - 1), "int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


def node_of(caller: str, x: Any) -> Node:
    """The node of a Tensor argument."""
    if isinstance(x, TensorBase):
        node = x._node
        return node if context.grad_enabled else stop_gradient(node)
    raise TypeError(
        f"{caller}: expected a Tensor, got {type(x).__name__}. Make one with minigrad.asarray()."
    )


def number(caller: str, value: Any) -> Number:
    """A Python number of any real number, NumPy's scalars among them."""
    if type(value) in (float, int, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(
        f"{caller}: expected a Tensor or a real number, got {type(value).__name__}. "
        "Make a Tensor of array data with minigrad.asarray()."
    )


def constant(caller: str, value: Number, dtype: DType, device: Device, shape: Shape) -> Node:
    """`value` as a node; an integer must fit its dtype."""
    if dtype.kind in ("int", "uint"):
        low, high = _RANGES[dtype.name]
        if not low <= value <= high:
            raise ValueError(
                f"{caller}: expected a number that {dtype.name} can hold, got {value}. "
                "Use astype() on the tensor."
            )
    return const(value, dtype, device, shape)


def pair(caller: str, a: Operand, b: Operand) -> tuple[Node, Node]:
    """Two operands in one dtype and one shape. A Python number takes the tensor's dtype."""
    if isinstance(a, TensorBase):
        x = a._node
        y = b._node if isinstance(b, TensorBase) else None
    elif isinstance(b, TensorBase):
        x, y = None, b._node
    else:
        raise TypeError(
            f"{caller}: expected at least one Tensor, got {type(a).__name__} and "
            f"{type(b).__name__}. Make one with minigrad.asarray()."
        )
    if not context.grad_enabled:
        x = None if x is None else stop_gradient(x)
        y = None if y is None else stop_gradient(y)
    if x is None:
        assert y is not None
        value = number(caller, a)
        dtype = of_scalar(value, y.dtype)
        y = as_type(y, dtype)
        return constant(caller, value, dtype, y.device, y.shape), y
    if y is None:
        value = number(caller, b)
        dtype = of_scalar(value, x.dtype)
        x = as_type(x, dtype)
        return x, constant(caller, value, dtype, x.device, x.shape)
    if x.dtype is not y.dtype:
        dtype = promote(x.dtype, y.dtype)
        x, y = as_type(x, dtype), as_type(y, dtype)
    if x.shape != y.shape:
        shape = broadcast_shape(caller, x.shape, y.shape)
        x, y = expand_to(x, shape), expand_to(y, shape)
    return x, y


def as_type(x: Node, dtype: DType) -> Node:
    """`x` cast, if it has another dtype."""
    return x if x.dtype is dtype else ops.cast(x, dtype=dtype)


def as_float(x: Node) -> Node:
    """`x`, or float32 of integers and booleans."""
    from minigrad.dtype import float32

    return x if x.dtype.kind == "float" else ops.cast(x, dtype=float32)


def as_accumulator(x: Node) -> Node:
    """`x`, or float32 of a half: what sums and statistics of it are computed in.

    In float16 the sum behind a mean would overflow at 65504, in bfloat16 keep 8 binary digits.
    """
    return as_type(x, accumulator(x.dtype))


def as_truth(x: Node) -> Node:
    """Which elements are not zero."""
    if x.dtype.kind == "bool":
        return x
    return ops.bitwise_invert(ops.equal(x, ops.zeros_like(x)))


def broadcast_shape(caller: str, *shapes: Shape) -> Shape:
    """The shape that all of `shapes` broadcast to."""
    ndim = max(len(s) for s in shapes)
    result = [1] * ndim
    for shape in shapes:
        for axis, n in enumerate(shape, ndim - len(shape)):
            if n != 1 and result[axis] not in (1, n):
                listed = " and ".join(str(s) for s in shapes)
                raise ValueError(
                    f"{caller}: expected shapes that broadcast, got {listed}: axis {axis - ndim} "
                    f"has extents {result[axis]} and {n}. Line the axes up from the right, or "
                    "insert one with expand_dims()."
                )
            if n != 1:
                result[axis] = n
    return tuple(result)


def expand_to(x: Node, shape: Shape) -> Node:
    """`x` broadcast to a shape it is known to broadcast to."""
    if x.shape == shape:
        return x
    missing = len(shape) - len(x.shape)
    if missing:
        x = ops.reshape(x, shape=(1,) * missing + x.shape)
    return x if x.shape == shape else ops.expand(x, shape=shape)


def one_axis(caller: str, axis: int, ndim: int) -> int:
    """An axis counted from the left, from one counted from either end."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"{caller}: expected an integer axis, got {type(axis).__name__}.") from None
    if not -ndim <= index < ndim:
        if ndim == 0:
            raise ValueError(f"{caller}: expected no axis for a tensor of shape (), got {index}.")
        raise ValueError(f"{caller}: expected an axis in {-ndim}..{ndim - 1}, got {index}.")
    return index + ndim if index < 0 else index


def some_axes(caller: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """Axes in ascending order; None means all."""
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, int):
        return (one_axis(caller, axis, ndim),)
    axes = sorted(one_axis(caller, a, ndim) for a in axis)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{caller}: expected distinct axes, got {tuple(axis)}.")
    return tuple(axes)


def as_shape(caller: str, shape: int | Sequence[int]) -> Shape:
    """A shape from one extent or several."""
    try:
        single = hasattr(shape, "__index__") and not isinstance(shape, TensorBase)
        extents: Any = (shape,) if single else shape
        result = tuple([operator.index(n) for n in extents])
    except TypeError:
        raise TypeError(f"{caller}: expected a shape of integers, got {shape!r}.") from None
    if any(n < 0 for n in result):
        raise ValueError(f"{caller}: expected extents of 0 or more, got {result}.")
    return result


def drop_axes(x: Node, axes: tuple[int, ...]) -> Node:
    """`x` without some axes of extent 1."""
    kept = tuple([n for i, n in enumerate(x.shape) if i not in axes])
    return ops.reshape(x, shape=kept) if axes else x


def count(x: Node, axes: tuple[int, ...]) -> int:
    """How many elements one reduction over `axes` takes."""
    return math.prod(x.shape[a] for a in axes)
