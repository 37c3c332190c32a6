"""Products of tensors. All of them are one primitive, `dot`, with its axes named."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import promote
from minigrad.functions.arguments import (
    as_type,
    broadcast_shape,
    drop_axes,
    expand_to,
    node_of,
    one_axis,
)
from minigrad.graph import Node
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["diagonal", "matmul", "outer", "tensordot", "trace", "vecdot"]


def _operands(caller: str, x1: Tensor, x2: Tensor) -> tuple[Node, Node]:
    a, b = node_of(caller, x1), node_of(caller, x2)
    if a.dtype is not b.dtype:
        dtype = promote(a.dtype, b.dtype)
        a, b = as_type(a, dtype), as_type(b, dtype)
    return a, b


def matmul(x1: Tensor, x2: Tensor) -> Tensor:
    """The matrix product over the last two axes; the axes before them broadcast.

    Shapes: (..., n, k) @ (..., k, m) -> (..., n, m). A vector acts as one row on the left, one
    column on the right, and that axis is dropped again.
    """
    a, b = _operands("matmul", x1, x2)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(
            f"matmul: expected tensors of at least 1 axis, got shapes {a.shape} and {b.shape}. "
            "Multiply by a number with *."
        )
    inner = -1 if b.ndim == 1 else -2
    if a.shape[-1] != b.shape[inner]:
        raise ValueError(
            f"matmul: expected equal inner extents, got {a.shape[-1]} (axis -1 of {a.shape}) and "
            f"{b.shape[inner]} (axis {inner} of {b.shape})."
        )
    return wrap(_matmul(a, b))


def _matmul(a: Node, b: Node) -> Node:
    if b.ndim == 1:
        return ops.dot(a, b, batch=((), ()), contract=((a.ndim - 1,), (0,)))
    if b.ndim == 2:  # no batch on the right: the left's axes are all free
        return ops.dot(a, b, batch=((), ()), contract=((a.ndim - 1,), (0,)))
    if a.ndim == 1:
        return ops.dot(a, b, batch=((), ()), contract=((0,), (b.ndim - 2,)))
    if a.shape[:-2] != b.shape[:-2]:
        lead = broadcast_shape("matmul", a.shape[:-2], b.shape[:-2])
        a = expand_to(a, (*lead, *a.shape[-2:]))
        b = expand_to(b, (*lead, *b.shape[-2:]))
    n = a.ndim
    lead_axes = tuple(range(n - 2))
    return ops.dot(a, b, batch=(lead_axes, lead_axes), contract=((n - 1,), (n - 2,)))


def tensordot(
    x1: Tensor, x2: Tensor, axes: int | tuple[Sequence[int], Sequence[int]] = 2
) -> Tensor:
    """The product summed over `axes`: so many of the last and the first, or a list for each."""
    a, b = _operands("tensordot", x1, x2)
    if isinstance(axes, int):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise ValueError(
                f"tensordot: expected 0..{min(a.ndim, b.ndim)} axes for shapes {a.shape} and "
                f"{b.shape}, got {axes}."
            )
        left, right = tuple(range(a.ndim - axes, a.ndim)), tuple(range(axes))
    else:
        left = tuple(one_axis("tensordot", i, a.ndim) for i in axes[0])
        right = tuple(one_axis("tensordot", i, b.ndim) for i in axes[1])
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise ValueError(
            f"tensordot: expected equal extents on axes {left} of {a.shape} and {right} of "
            f"{b.shape}."
        )
    return wrap(ops.dot(a, b, batch=((), ()), contract=(left, right)))


def vecdot(x1: Tensor, x2: Tensor, axis: int = -1) -> Tensor:
    """The dot product of vectors along `axis`; the other axes broadcast."""
    a, b = _operands("vecdot", x1, x2)
    if a.shape != b.shape:
        shape = broadcast_shape("vecdot", a.shape, b.shape)
        a, b = expand_to(a, shape), expand_to(b, shape)
    k = one_axis("vecdot", axis, a.ndim)
    return wrap(drop_axes(ops.sum_(a * b, axes=(k,)), (k,)))


def outer(x1: Tensor, x2: Tensor) -> Tensor:
    """All products of two vectors: (n,) and (m,) give (n, m)."""
    a, b = _operands("outer", x1, x2)
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"outer: expected two vectors, got shapes {a.shape} and {b.shape}.")
    shape = (a.size, b.size)
    left = ops.expand(ops.reshape(a, shape=(a.size, 1)), shape=shape)
    return wrap(left * expand_to(b, shape))


def diagonal(x: Tensor, offset: int = 0) -> Tensor:
    """The diagonal of the last two axes: (..., n, m) -> (..., k)."""
    node, k = node_of("diagonal", x), operator.index(offset)
    if node.ndim < 2:
        raise ValueError(f"diagonal: expected at least 2 axes, got shape {node.shape}.")
    n, m = node.shape[-2:]
    length = max(min(n, m - k) if k >= 0 else min(n + k, m), 0)
    return wrap(_diagonal(node, -k * m if k < 0 else k, length))


def _diagonal(x: Node, first: int, length: int) -> Node:
    """In row-major order the elements of a diagonal are m + 1 apart."""
    *lead, n, m = x.shape
    flat = ops.reshape(x, shape=(*lead, n * m))
    stop = first + (length - 1) * (m + 1) + 1 if length else first
    return ops.slice_(
        flat, starts=(*(0 for _ in lead), min(first, n * m)),
        stops=(*lead, min(stop, n * m) if length else min(first, n * m)),
        steps=(*(1 for _ in lead), m + 1),
    )  # fmt: skip


def trace(x: Tensor, offset: int = 0) -> Tensor:
    """The sum of the diagonal of the last two axes."""
    node = diagonal(x, offset).node
    axis = node.ndim - 1
    return wrap(drop_axes(ops.sum_(node, axes=(axis,)), (axis,)))


class LinalgMethods:
    """The functions above as methods of a Tensor."""

    __slots__ = ()

    diagonal = diagonal
    matmul = matmul
    outer = outer
    tensordot = tensordot
    trace = trace
    vecdot = vecdot
