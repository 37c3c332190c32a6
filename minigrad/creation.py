"""Tensors from data, and tensors of known content."""

from __future__ import annotations

import math
import numbers
import operator
from typing import TYPE_CHECKING, Any

from minigrad import ops
from minigrad.device import Device, as_device, backend_of, computes, cpu
from minigrad.dtype import DType, as_dtype, float32, float64, int64, of_scalar, promote
from minigrad.functions.arguments import as_shape, as_type, constant, expand_to, node_of, number
from minigrad.graph import Node, Number, Shape, leaf
from minigrad.interop.encoding import encode
from minigrad.ops.control import stop_gradient
from minigrad.tensor import Tensor
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import DTypeLike, Extents, Place

__all__ = [
    "arange",
    "asarray",
    "empty",
    "empty_like",
    "eye",
    "from_dlpack",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
]

_NESTED = (list, tuple, range)


def tensor(
    data: Any, dtype: DTypeLike | None = None, device: Place = None, requires_grad: bool = False
) -> Tensor:
    """A new tensor with a copy of `data`.

    Args:
        data: a number, nested lists, a Tensor, or anything that offers the buffer protocol,
            `__array_interface__`, `__cuda_array_interface__` or DLPack.
        dtype: by default the data's own; Python floats give float32, ints int64, bools bool.
        device: by default that of a Tensor or of another library's array on a GPU, else
            `default_device()`.
        requires_grad: make it a point at which derivatives are taken.

    Raises:
        ValueError: nested lists of unequal length.
        TypeError: elements that are not real numbers, or an unknown dtype.
    """
    node = _node_from("tensor", data, dtype, device, copy=True)
    if requires_grad and node.dtype.is_floating and node.storage is not None:
        node = leaf(node.storage, node.shape, node.dtype, node.device, needs_grad=True)
    return Tensor(node, requires_grad=requires_grad)


def asarray(
    obj: Any, dtype: DTypeLike | None = None, device: Place = None, copy: bool | None = None
) -> Tensor:
    """`obj` as a tensor, sharing its memory where that is possible.

    Memory can be shared when it is contiguous, in the host's byte order, of a dtype of ours, and
    on `device`. Do not write to it afterwards: tensors computed from it may or may not follow.
    On a GPU, what the other library has launched on it comes first; nobody waits for that.

    Args:
        obj: as for `tensor`.
        dtype: as for `tensor`.
        device: as for `tensor`.
        copy: True always copies; False raises ValueError where a copy would be needed.
    """
    if copy is None and isinstance(obj, Tensor) and dtype is None and device is None:
        return obj
    return wrap(_node_from("asarray", obj, dtype, device, copy))


def from_dlpack(x: Any, device: Place = None, copy: bool | None = None) -> Tensor:
    """The tensor that another library exports through DLPack, sharing its memory where possible."""
    if isinstance(x, Tensor):
        return asarray(x, device=device, copy=copy)
    from minigrad.interop import arrays

    node = arrays.from_dlpack("from_dlpack", x, copy)
    return _moved(wrap(node), device)


def _moved(x: Tensor, device: Place) -> Tensor:
    return x if device is None else x.to(device)


def _node_from(
    caller: str, data: Any, dtype: DTypeLike | None, device: Place, copy: bool | None
) -> Node:
    from minigrad.interop import arrays

    target = None if dtype is None else as_dtype(dtype, f"{caller}: dtype")
    if isinstance(data, TensorBase):
        node = arrays.unshared(node_of(caller, data)) if copy else node_of(caller, data)
        node = stop_gradient(node) if caller == "tensor" else node
    elif isinstance(data, _NESTED) or _is_number(data):
        return _from_lists(caller, data, target, _usable(device), copy)
    else:
        node = arrays.from_object(caller, data, copy)
        if device is None and node.device == cpu:  # host data goes to the default device
            device = as_device(None)
    place = node.device if device is None else as_device(device, caller)
    target = target or node.dtype
    if target is not node.dtype:
        _refuse_copy(caller, copy, f"{node.dtype.name} to {target.name}")
    if place != node.device:
        _refuse_copy(caller, copy, f"{node.device} to {place}")
    x = wrap(node)
    # A half is cast on the device that computes with it. Other values are cast before they move:
    # the cast may make them smaller.
    if not all(computes(node.device.type, dtype) for dtype in (node.dtype, target)):
        x = x.to(place)
    return node_of(caller, x.astype(target).to(place))


def _is_number(data: Any) -> bool:
    """NumPy's scalars are arrays as well, and keep their dtype as such."""
    return isinstance(data, numbers.Real) and not hasattr(data, "__array_interface__")


def _refuse_copy(caller: str, copy: bool | None, change: str) -> None:
    if copy is False:
        raise ValueError(f"{caller}: expected no copy to be needed, got {change}. Pass copy=None.")


def _usable(device: Place) -> Device:
    """The device, once its backend is known to work here."""
    found = as_device(device)
    backend_of(found)
    return found


# Python numbers and nested lists


def _from_lists(
    caller: str, data: Any, dtype: DType | None, device: Device, copy: bool | None
) -> Node:
    if copy is False:
        raise ValueError(f"{caller}: expected data that can be shared, got Python numbers.")
    shape, flat = _flattened(caller, data)
    if dtype is None:
        dtype = _common_dtype(flat)
    try:
        data = encode(flat, dtype)
    except OverflowError:
        worst = next(v for v in flat if not _fits(v, dtype))
        raise ValueError(
            f"{caller}: expected numbers that {dtype.name} can hold, got {worst}."
        ) from None
    except ValueError as error:  # int(nan)
        raise ValueError(f"{caller}: expected integers for {dtype.name}, got: {error}.") from None
    return leaf(backend_of(device).from_bytes(data), shape, dtype, device)


def filled(value: float, shape: Shape, dtype: DType, device: Device) -> Tensor:
    """A stored tensor with memory of its own: equal constants would be one node, and one state."""
    data = bytes(encode([value], dtype)) * math.prod(shape)
    return wrap(leaf(backend_of(device).from_bytes(memoryview(data)), shape, dtype, device))


def _fits(value: Number, dtype: DType) -> bool:
    try:
        encode([value], dtype)
    except OverflowError:
        return False
    return True


def _common_dtype(flat: list[Number]) -> DType:
    dtype = None
    for kind in set(map(type, flat)):
        found = of_scalar(kind(0))
        dtype = found if dtype is None else promote(dtype, found)
    return dtype or float32


def _flattened(caller: str, data: Any) -> tuple[Shape, list[Number]]:
    """The shape of nested lists and their numbers in row-major order."""
    shape: list[int] = []
    level: list[Any] = [data]
    while True:
        kinds = set(map(type, level))
        if any(hasattr(k, "tolist") and not issubclass(k, numbers.Real) for k in kinds):
            level = [v.tolist() if hasattr(v, "tolist") else v for v in level]  # arrays, tensors
            kinds = set(map(type, level))
        if not any(issubclass(k, _NESTED) for k in kinds):
            break
        lengths = [_length(v) for v in level]
        for i, n in enumerate(lengths):
            if n != lengths[0]:
                raise ValueError(
                    f"{caller}: expected nested lists of equal length, got {_extent(lengths[0])} "
                    f"at {_place(0, shape)} and {_extent(n)} at {_place(i, shape)}. Pad the short "
                    "rows."
                )
        shape.append(len(level[0]))
        level = [v for row in level for v in row]
        if not level:
            break
    for i, value in enumerate(level):
        if type(value) not in (float, int, bool):
            if not isinstance(value, numbers.Real):
                raise TypeError(
                    f"{caller}: expected real numbers, got {type(value).__name__} at "
                    f"{_place(i, shape)}."
                )
            level[i] = number(caller, value)
    return tuple(shape), level


def _length(value: Any) -> int | None:
    """None for a number."""
    return len(value) if isinstance(value, _NESTED) else None  # type: ignore[arg-type]


def _extent(length: int | None) -> str:
    return "a number" if length is None else f"a list of {length}"


def _place(position: int, shape: list[int]) -> str:
    """The index, as it would be written, of a place counted in row-major order."""
    index: list[int] = []
    for n in reversed(shape):
        index.append(position % n)
        position //= n
    return "".join(f"[{i}]" for i in reversed(index)) or "the top"


# Known content


def full(
    shape: Extents,
    fill_value: Number,
    dtype: DTypeLike | None = None,
    device: Place = None,
    requires_grad: bool = False,
) -> Tensor:
    """`fill_value` everywhere; the dtype is by default that of the number."""
    value = number("full", fill_value)
    target = of_scalar(value) if dtype is None else as_dtype(dtype, "full: dtype")
    extents = as_shape("full", shape)
    node = constant("full", value, target, _usable(device), extents)
    return Tensor(node, requires_grad)


def zeros(
    shape: Extents, dtype: DTypeLike = float32, device: Place = None, requires_grad: bool = False
) -> Tensor:
    """0 everywhere."""
    return full(shape, 0, dtype, device, requires_grad)


def ones(
    shape: Extents, dtype: DTypeLike = float32, device: Place = None, requires_grad: bool = False
) -> Tensor:
    """1 everywhere."""
    return full(shape, 1, dtype, device, requires_grad)


def empty(shape: Extents, dtype: DTypeLike = float32, device: Place = None) -> Tensor:
    """Some values: zeros. Lazy tensors have no memory that could be left as it was."""
    return full(shape, 0, dtype, device)


def full_like(
    x: Tensor, fill_value: Number, dtype: DTypeLike | None = None, device: Place = None
) -> Tensor:
    """`fill_value` everywhere, with the shape, dtype and device of `x`."""
    return full(x.shape, fill_value, x.dtype if dtype is None else dtype, device or x.device)


def zeros_like(x: Tensor, dtype: DTypeLike | None = None, device: Place = None) -> Tensor:
    """0 everywhere, with the shape, dtype and device of `x`."""
    return full_like(x, 0, dtype, device)


def ones_like(x: Tensor, dtype: DTypeLike | None = None, device: Place = None) -> Tensor:
    """1 everywhere, with the shape, dtype and device of `x`."""
    return full_like(x, 1, dtype, device)


def empty_like(x: Tensor, dtype: DTypeLike | None = None, device: Place = None) -> Tensor:
    """Some values (zeros), with the shape, dtype and device of `x`."""
    return full_like(x, 0, dtype, device)


def arange(
    start: Number,
    stop: Number | None = None,
    step: Number = 1,
    dtype: DTypeLike | None = None,
    device: Place = None,
) -> Tensor:
    """start, start + step, ... up to but without `stop`; `arange(n)` counts from 0."""
    first, last, by = (
        (0, number("arange", start), number("arange", step))
        if stop is None
        else (number("arange", start), number("arange", stop), number("arange", step))
    )
    if by == 0:
        raise ValueError("arange: expected a step other than 0, got 0.")
    if isinstance(first, int) and isinstance(last, int) and isinstance(by, int):
        n, default = len(range(first, last, by)), int64
    else:
        n, default = max(math.ceil((last - first) / by), 0), float32
    target = default if dtype is None else as_dtype(dtype, "arange: dtype")
    # Computed in the wide type of its kind, so that only the result is rounded.
    wide = int64 if default is int64 else float64
    node = as_type(ops.iota(n, int64, _usable(device)), wide)
    if by != 1:
        node = node * by
    if first != 0:
        node = node + first
    return wrap(as_type(node, target))


def linspace(
    start: float,
    stop: float,
    num: int,
    dtype: DTypeLike = float32,
    device: Place = None,
    endpoint: bool = True,
) -> Tensor:
    """`num` evenly spaced numbers from `start` to `stop`, the last one only with `endpoint`."""
    (n,) = as_shape("linspace", operator.index(num))
    target = as_dtype(dtype, "linspace: dtype")
    counting = ops.iota(n, int64, _usable(device))
    steps = max(n - 1, 1) if endpoint else max(n, 1)
    node = ops.cast(counting, dtype=float64) * ((stop - start) / steps) + float(start)
    if endpoint and n > 1:  # the rounding of the step must not miss the end
        last = ops.equal(counting, ops.like(n - 1, counting))
        node = ops.where(last, ops.like(float(stop), node), node)
    return wrap(as_type(node, target))


def eye(
    n_rows: int,
    n_cols: int | None = None,
    k: int = 0,
    dtype: DTypeLike = float32,
    device: Place = None,
) -> Tensor:
    """1 on diagonal `k` and 0 elsewhere."""
    shape = as_shape("eye", (n_rows, n_rows if n_cols is None else n_cols))
    place = _usable(device)
    row = ops.reshape(ops.iota(shape[0], int64, place), shape=(shape[0], 1)) + operator.index(k)
    column = ops.iota(shape[1], int64, place)
    on_diagonal = ops.equal(expand_to(row, shape), expand_to(column, shape))
    return wrap(ops.cast(on_diagonal, dtype=as_dtype(dtype, "eye: dtype")))
