"""One-hot rows: labels == iota along one axis, as a symbol, and what its classes add up to."""

from __future__ import annotations

from minigrad.graph import Node, iota_op
from minigrad.ops import bitwise_and, cast, equal, expand, less, less_equal, reshape
from minigrad.rewrite.sums import Reductions, Sum
from minigrad.rewrite.terms import ONE, Terms


def indicator(a: Reductions, condition: Node, found: tuple[Node, int], like: Node) -> int:
    """The symbol of a condition as numbers 0 and 1; `found` are its labels and its axis."""
    node = a.builder.make(cast, (condition,), {"dtype": like.dtype})
    symbol = a.symbol(node)
    a.indicators.setdefault(symbol, found)
    return symbol


def in_range(a: Reductions, one_hot: tuple[Node, int], s: Sum) -> tuple[Terms, Sum] | None:
    """[0 <= labels < classes] and what is left to sum, if `s` adds up a one-hot's classes."""
    labels, axis = one_hot
    if not s.axes >> axis & 1:
        return None
    builder = a.builder
    zero, classes = (
        builder.expand(builder.number(k, labels), labels.shape) for k in (0, s.shape[axis])
    )
    low, high = (
        builder.make(less_equal, (zero, labels), {}),
        builder.make(less, (labels, classes), {}),
    )
    both = builder.make(bitwise_and, (low, high), {})
    symbol = a.symbol(builder.make(cast, (both,), {"dtype": a.here.dtype}))
    shape = tuple([1 if i == axis else n for i, n in enumerate(s.shape)])
    return ONE, Sum({((symbol, 1),): 1}, s.axes & ~(1 << axis), shape)


def labels_and_axis(condition: Node) -> tuple[Node, int] | None:
    """For labels == iota along one axis, both broadcast: the labels (not broadcast), the axis."""
    if condition.op is not equal or condition.storage is not None:
        return None
    for labels, numbers in (condition.inputs, condition.inputs[::-1]):
        axis = _counted_axis(numbers)
        labels = _narrow(labels)
        if axis is not None and labels.shape[axis] == 1:
            return labels, axis
    return None


def _narrow(x: Node) -> Node:
    """What a broadcast repeats."""
    while x.op is expand and x.storage is None:
        x = x.inputs[0]
    return x


def _counted_axis(x: Node) -> int | None:
    """The axis along which x counts 0, 1, 2, ... and the only one along which it varies."""
    x = _narrow(x)
    long = [axis for axis, n in enumerate(x.shape) if n != 1]
    while x.op is reshape and x.storage is None:
        x = x.inputs[0]
    return long[0] if x.op is iota_op and len(long) == 1 else None
