"""Reading at computed places.

Negative indices count from the end; those out of range raise IndexError when values are computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import DType, as_dtype, float32, int64
from minigrad.functions.arguments import as_shape, as_type, expand_to, node_of, one_axis
from minigrad.graph import Node, like
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["one_hot", "take", "take_along_axis"]


def take(x: Tensor, indices: Tensor, axis: int | None = None) -> Tensor:
    """The slices of `x` along `axis` at integer `indices`; None indexes the flattened tensor."""
    node, index = node_of("take", x), _integers("take", indices)
    if axis is None:
        node, axis = ops.reshape(node, shape=(node.size,)), 0
    a = one_axis("take", axis, node.ndim)
    taken = ops.take(node, _flat(index), axis=a)
    return wrap(ops.reshape(taken, shape=(*node.shape[:a], *index.shape, *node.shape[a + 1 :])))


def take_along_axis(x: Tensor, indices: Tensor, axis: int = -1) -> Tensor:
    """x[i, ..., indices[i, ..., k], ...]: one element for each index; the other axes broadcast."""
    node, index = node_of("take_along_axis", x), _integers("take_along_axis", indices)
    if node.ndim != index.ndim:
        raise ValueError(
            "take_along_axis: expected indices with as many axes as x, got shapes "
            f"{index.shape} and {node.shape}."
        )
    a = one_axis("take_along_axis", axis, node.ndim)
    target = list(node.shape)
    target[a] = index.shape[a]
    for i, n in enumerate(index.shape):
        if i != a and n not in (1, node.shape[i]):
            raise ValueError(
                f"take_along_axis: expected indices of shape {tuple(target)} or 1 off axis {a}, "
                f"got {index.shape}."
            )
    shape = tuple(target)
    places: list[Node] = []
    for i, n in enumerate(node.shape):
        if i == a:
            places.append(expand_to(index, shape))
        else:
            column = (1,) * i + (n,) + (1,) * (node.ndim - 1 - i)
            counting = ops.reshape(ops.iota(n, int64, node.device), shape=column)
            places.append(ops.expand(counting, shape=shape))
    flat = ops.reshape(node, shape=(node.size,))
    positions = linear(places, node.shape, checked=(a,))
    return wrap(ops.reshape(ops.take(flat, _flat(positions), axis=0), shape=shape))


def one_hot(x: Tensor, num_classes: int, dtype: DType | str = float32) -> Tensor:
    """1 at each class number and 0 elsewhere, along a new last axis of extent `num_classes`.

    A number outside 0..num_classes - 1 gives zeros only.
    """
    index = _integers("one_hot", x)
    (classes,) = as_shape("one_hot", num_classes)
    shape = (*index.shape, classes)
    numbers = ops.expand(ops.reshape(index, shape=(*index.shape, 1)), shape=shape)
    is_class = ops.equal(numbers, expand_to(ops.iota(classes, int64, index.device), shape))
    return wrap(ops.cast(is_class, dtype=as_dtype(dtype, "one_hot")))


def _integers(caller: str, x: Tensor) -> Node:
    node = node_of(caller, x)
    if node.dtype.kind not in ("int", "uint"):
        raise TypeError(
            f"{caller}: expected integer indices, got {node.dtype.name}. Use astype(int64)."
        )
    return as_type(node, int64)


def _flat(x: Node) -> Node:
    return ops.reshape(x, shape=(x.size,))


def linear(places: list[Node], extents: tuple[int, ...], checked: tuple[int, ...]) -> Node:
    """Row-major positions from one int64 index per axis, all of one shape.

    An index out of range on a `checked` axis gives a position out of range, where the sum alone
    would name another element.
    """
    total = 1
    for n in extents:
        total *= n
    position: Node | None = None
    valid: Node | None = None
    step = total
    for axis, (index, n) in enumerate(zip(places, extents, strict=True)):
        step = step // n if n else 0
        if axis in checked:
            zero = like(0, index)
            index = ops.where(ops.less(index, zero), index + n, index)
            inside = ops.bitwise_and(ops.less_equal(zero, index), ops.less(index, like(n, index)))
            valid = inside if valid is None else ops.bitwise_and(valid, inside)
        term = index * step
        position = term if position is None else position + term
    assert position is not None
    if valid is None:
        return position
    return ops.where(valid, position, like(total, position))


class GatheringMethods:
    """The functions above as methods of a Tensor."""

    __slots__ = ()

    one_hot = one_hot
    take = take
    take_along_axis = take_along_axis
