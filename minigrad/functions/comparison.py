"""Comparison, choice, logic and bits, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import bool_, of_scalar, promote
from minigrad.functions.arguments import (
    as_truth,
    broadcast_shape,
    constant,
    expand_to,
    node_of,
    number,
    pair,
)
from minigrad.graph import Node, const, like
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Operand
    from minigrad.tensor import Tensor

__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_or",
    "bitwise_xor",
    "clip",
    "equal",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "not_equal",
    "where",
]


# Comparison and choice


def maximum(x1: Operand, x2: Operand) -> Tensor:
    """The larger of each two elements; ties share the gradient."""
    return wrap(ops.maximum(*pair("maximum", x1, x2)))


def minimum(x1: Operand, x2: Operand) -> Tensor:
    """The smaller of each two elements; ties share the gradient."""
    return wrap(ops.minimum(*pair("minimum", x1, x2)))


def clip(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """x held between `min` and `max`."""
    if min is not None:
        x = maximum(x, min)
    if max is not None:
        x = minimum(x, max)
    return x if min is not None or max is not None else wrap(node_of("clip", x))


def equal(x1: Operand, x2: Operand) -> Tensor:
    """Where x1 == x2."""
    return wrap(ops.equal(*pair("equal", x1, x2)))


def not_equal(x1: Operand, x2: Operand) -> Tensor:
    """Where x1 != x2."""
    return wrap(ops.bitwise_invert(ops.equal(*pair("not_equal", x1, x2))))


def less(x1: Operand, x2: Operand) -> Tensor:
    """Where x1 < x2."""
    return wrap(ops.less(*pair("less", x1, x2)))


def less_equal(x1: Operand, x2: Operand) -> Tensor:
    """Where x1 <= x2."""
    return wrap(ops.less_equal(*pair("less_equal", x1, x2)))


def greater(x1: Operand, x2: Operand) -> Tensor:
    """Where x1 > x2."""
    a, b = pair("greater", x1, x2)
    return wrap(ops.less(b, a))


def greater_equal(x1: Operand, x2: Operand) -> Tensor:
    """Where x1 >= x2."""
    a, b = pair("greater_equal", x1, x2)
    return wrap(ops.less_equal(b, a))


def isnan(x: Tensor) -> Tensor:
    """Where x is not a number."""
    node = node_of("isnan", x)
    if not node.dtype.is_floating:
        return wrap(_never(node))
    return wrap(ops.bitwise_invert(ops.equal(node, node)))


def isinf(x: Tensor) -> Tensor:
    """Where x is infinite, of either sign."""
    node = node_of("isinf", x)
    if not node.dtype.is_floating:
        return wrap(_never(node))
    return wrap(ops.equal(ops.abs_(node), like(math.inf, node)))


def isfinite(x: Tensor) -> Tensor:
    """Where x is neither infinite nor NaN."""
    node = node_of("isfinite", x)
    if not node.dtype.is_floating:
        return wrap(ops.bitwise_invert(_never(node)))
    return wrap(ops.less(ops.abs_(node), like(math.inf, node)))


def _never(x: Node) -> Node:
    return const(False, bool_, x.device, x.shape)


def where(condition: Tensor, x1: Operand, x2: Operand) -> Tensor:
    """x1 where `condition` holds, x2 elsewhere."""
    c = as_truth(node_of("where", condition))
    if not isinstance(x1, TensorBase) and not isinstance(x2, TensorBase):
        first, second = number("where", x1), number("where", x2)
        dtype = promote(of_scalar(first), of_scalar(second))
        a = constant("where", first, dtype, c.device, c.shape)
        b = constant("where", second, dtype, c.device, c.shape)
        return wrap(ops.where(c, a, b))
    a, b = pair("where", x1, x2)
    if c.shape != a.shape:
        shape = broadcast_shape("where", c.shape, a.shape)
        c, a, b = expand_to(c, shape), expand_to(a, shape), expand_to(b, shape)
    return wrap(ops.where(c, a, b))


# Logic and bits


def logical_and(x1: Operand, x2: Operand) -> Tensor:
    """Where both are true (not zero)."""
    a, b = pair("logical_and", x1, x2)
    return wrap(ops.bitwise_and(as_truth(a), as_truth(b)))


def logical_or(x1: Operand, x2: Operand) -> Tensor:
    """Where either is true (not zero)."""
    a, b = pair("logical_or", x1, x2)
    return wrap(ops.bitwise_or(as_truth(a), as_truth(b)))


def logical_xor(x1: Operand, x2: Operand) -> Tensor:
    """Where exactly one is true (not zero)."""
    a, b = pair("logical_xor", x1, x2)
    return wrap(ops.bitwise_xor(as_truth(a), as_truth(b)))


def logical_not(x: Tensor) -> Tensor:
    """Where x is false (zero)."""
    return wrap(ops.bitwise_invert(as_truth(node_of("logical_not", x))))


def bitwise_and(x1: Operand, x2: Operand) -> Tensor:
    """The bits set in both."""
    return wrap(ops.bitwise_and(*pair("bitwise_and", x1, x2)))


def bitwise_or(x1: Operand, x2: Operand) -> Tensor:
    """The bits set in either."""
    return wrap(ops.bitwise_or(*pair("bitwise_or", x1, x2)))


def bitwise_xor(x1: Operand, x2: Operand) -> Tensor:
    """The bits set in exactly one."""
    return wrap(ops.bitwise_xor(*pair("bitwise_xor", x1, x2)))


def bitwise_invert(x: Tensor) -> Tensor:
    """The bits turned over; of booleans, the negation."""
    return wrap(ops.bitwise_invert(node_of("bitwise_invert", x)))


class ComparisonMethods:
    """The functions above as methods of a Tensor."""

    __slots__ = ()

    bitwise_and = bitwise_and
    bitwise_invert = bitwise_invert
    bitwise_or = bitwise_or
    bitwise_xor = bitwise_xor
    clip = clip
    equal = equal
    greater = greater
    greater_equal = greater_equal
    isfinite = isfinite
    isinf = isinf
    isnan = isnan
    less = less
    less_equal = less_equal
    logical_and = logical_and
    logical_not = logical_not
    logical_or = logical_or
    logical_xor = logical_xor
    maximum = maximum
    minimum = minimum
    not_equal = not_equal
