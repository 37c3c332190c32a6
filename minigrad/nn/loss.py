"""Loss functions. `reduction` is "mean" (default), "sum" or "none"."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import int64
from minigrad.execution.compute import readable_values
from minigrad.functions.arguments import as_accumulator, as_type, drop_axes, expand_to, node_of
from minigrad.graph import Node, like, zeros_like
from minigrad.nn.activations import log_softmax_node
from minigrad.nn.arguments import floating, fraction, matching, reduction_of
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "mse_loss", "nll_loss"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Tensor:
    """-log(softmax(logits)[label]), for each sample.

    Shapes: logits (N, C, *positions); labels (N, *positions) of integers in 0..C-1, or of the
    logits' shape and dtype: the probability of each class. weight (C,).

    Args:
        weight: of each class; "mean" then divides by the sum of the labels' weights.
        label_smoothing: share of the label's probability that is spread over all classes.
        ignore_index: a label that counts for nothing. Unlike PyTorch there is none by default.
    Raises: ValueError for a label out of range, with its position. Where the labels cannot be
        looked at when the graph is built (inside a captured step, on a GPU) the loss is NaN
        instead.
    """
    caller = "cross_entropy"
    x = _logits(caller, "logits", logits)
    fraction(caller, "label_smoothing", label_smoothing)
    return _nll(
        caller, log_softmax_node(x, 1), labels, weight, reduction, label_smoothing, ignore_index
    )


def nll_loss(
    log_probabilities: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Tensor:
    """-log_probabilities[label], for each sample; shapes and arguments as `cross_entropy`."""
    x = _logits("nll_loss", "log_probabilities", log_probabilities)
    return _nll("nll_loss", x, labels, weight, reduction, 0.0, ignore_index)


def mse_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(x - target)**2; both of one shape."""
    a = floating("mse_loss", x)
    difference = a - matching("mse_loss", a, "target", target, a.shape)
    return _reduce("mse_loss", difference * difference, reduction)


def binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-target * log(sigmoid(x)) - (1 - target) * log(1 - sigmoid(x)), without overflow or log(0).

    Shapes: x and target alike; weight (of each element) and pos_weight (of the first term)
    broadcast.
    """
    caller = "binary_cross_entropy_with_logits"
    a = floating(caller, x)
    t = matching(caller, a, "target", target, a.shape)
    # softplus(x) is -log(1 - sigmoid(x)), and softplus(-x) is less by x: the difference would cost
    # a confident prediction's small loss its digits.
    if_positive = t * ops.softplus(-a)
    if pos_weight is not None:
        positive = expand_to(matching(caller, a, "pos_weight", pos_weight), a.shape)
        if_positive = if_positive * positive
    loss = if_positive + (1.0 - t) * ops.softplus(a)
    if weight is not None:
        loss = loss * expand_to(matching(caller, a, "weight", weight), a.shape)
    return _reduce(caller, loss, reduction)


def _logits(caller: str, name: str, x: Tensor) -> Node:
    node = floating(caller, x, name)
    if node.ndim < 2:
        raise ValueError(f"{caller}: expected {name} of shape (N, C, ...), got {node.shape}.")
    return node


def _nll(
    caller: str,
    log_p: Node,
    labels: Tensor,
    weight: Tensor | None,
    reduction: str,
    smoothing: float,
    ignored: int | None,
) -> Tensor:
    classes = log_p.shape[1]
    cost, share = -log_p, None
    if weight is not None:
        share = _along_classes(matching(caller, log_p, "weight", weight, (classes,)), log_p)
        cost = cost * share
    target = _target(caller, labels, log_p)
    loss = _at(target, cost)
    if smoothing:
        loss = loss * (1 - smoothing) + _over_classes(cost) * (smoothing / classes)
    if target.dtype.is_floating:
        return _reduce(caller, loss, reduction)
    if not _in_range(caller, target, classes, ignored):
        loss = ops.where(_is_class(target, classes, ignored), loss, like(math.nan, loss))
    loss = _without(ignored, target, loss)
    if reduction != "mean" or (share is None and ignored is None):
        return _reduce(caller, loss, reduction)
    counted = _without(ignored, target, _at(target, like(1.0, log_p) if share is None else share))
    return wrap(as_type(_total(loss) / _total(counted), loss.dtype))


def _target(caller: str, labels: Tensor, log_p: Node) -> Node:
    """The node of the labels: integers of shape (N, ...), or probabilities like log_p."""
    target = node_of(caller, labels)
    expected = (log_p.shape[0], *log_p.shape[2:])
    if target.dtype.is_floating:
        return matching(caller, log_p, "labels, if they are probabilities,", labels, log_p.shape)
    if target.dtype.kind == "bool":
        raise TypeError(f"{caller}: expected integer labels, got bool. Use astype(int64).")
    if target.shape != expected:
        raise ValueError(
            f"{caller}: expected labels of shape {expected} for logits {log_p.shape}, "
            f"got {target.shape}."
        )
    return as_type(target, int64)


def _in_range(caller: str, target: Node, classes: int, ignored: int | None) -> bool:
    """Whether the labels can be seen now; if so, raises ValueError for one out of range."""
    values = readable_values(target)
    if values is None:
        return False
    if target.size and (min(values) < 0 or max(values) >= classes):
        for position, value in enumerate(values):
            if not 0 <= value < classes and value != ignored:
                raise ValueError(
                    f"{caller}: expected labels in 0..{classes - 1} for {classes} classes, got "
                    f"{value} at position {_unravelled(position, target.shape)}. Check the last "
                    "layer's width, or pass ignore_index."
                )
    return True


def _is_class(target: Node, classes: int, ignored: int | None) -> Node:
    inside = ops.bitwise_and(
        ops.less_equal(zeros_like(target), target), ops.less(target, like(classes, target))
    )
    if ignored is None:
        return inside
    return ops.bitwise_or(inside, ops.equal(target, like(ignored, target)))


def _unravelled(position: int, shape: tuple[int, ...]) -> int | tuple[int, ...]:
    index = []
    for n in reversed(shape):
        position, i = divmod(position, n)
        index.append(i)
    return index[0] if len(index) == 1 else tuple(reversed(index))


def _at(target: Node, x: Node) -> Node:
    """x (N, C, ...) at the labels, or averaged by their probabilities: (N, ...)."""
    if target.dtype.is_floating:
        return _over_classes(target * x)
    label = ops.reshape(target, shape=(target.shape[0], 1, *target.shape[1:]))
    classes = _along_classes(ops.iota(x.shape[1], target.dtype, target.device), x)
    picked = ops.equal(ops.expand(label, shape=x.shape), classes)
    return _over_classes(ops.where(picked, x, zeros_like(x)))


def _without(ignored: int | None, target: Node, x: Node) -> Node:
    """x with 0 for each label that counts for nothing."""
    if ignored is None:
        return x
    return ops.where(ops.equal(target, like(ignored, target)), zeros_like(x), x)


def _over_classes(x: Node) -> Node:
    return drop_axes(ops.sum_(x, axes=(1,)), (1,))


def _along_classes(x: Node, log_p: Node) -> Node:
    """A (C,) node broadcast to (N, C, ...)."""
    row = ops.reshape(x, shape=(1, x.size, *(1,) * (log_p.ndim - 2)))
    return ops.expand(row, shape=log_p.shape)


def _reduce(caller: str, loss: Node, reduction: str) -> Tensor:
    reduction_of(caller, reduction)
    if reduction == "none":
        return wrap(loss)
    total = _total(loss)
    return wrap(as_type(total if reduction == "sum" else total / loss.size, loss.dtype))


def _total(x: Node) -> Node:
    every = tuple(range(x.ndim))
    return drop_axes(ops.sum_(as_accumulator(x), axes=every), every)
