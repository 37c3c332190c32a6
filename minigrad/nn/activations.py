"""Activation functions. Each is a formula over primitives; its derivatives follow.

Where two branches meet, the branch of x <= 0 holds at 0, so relu'(0) = 0. A NaN stays a NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.functions.arguments import as_accumulator, as_type, expand_to, node_of, one_axis
from minigrad.graph import Node, zeros_like
from minigrad.nn.arguments import floating
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = [
    "elu",
    "gelu",
    "leaky_relu",
    "log_softmax",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def _piecewise(x: Node, below: Node, above: Node) -> Node:
    """`below` where x <= 0, else `above`."""
    return ops.where(ops.less_equal(x, zeros_like(x)), below, above)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), with relu'(0) = 0."""
    node = node_of("relu", x)
    return wrap(_piecewise(node, zeros_like(node), node))


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, negative_slope * x elsewhere."""
    node = floating("leaky_relu", x)
    return wrap(_piecewise(node, node * negative_slope, node))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha * (exp(x) - 1) elsewhere. Clevert et al. 2016, arXiv:1511.07289."""
    node = floating("elu", x)
    return wrap(_piecewise(node, _expm1_below_zero(node) * alpha, node))


def selu(x: Tensor) -> Tensor:
    """scale * elu(x, alpha), the constants that keep mean 0 and variance 1. arXiv:1706.02515."""
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    node = floating("selu", x)
    return wrap(_piecewise(node, _expm1_below_zero(node) * alpha, node) * scale)


def _expm1_below_zero(x: Node) -> Node:
    # The branch that is not taken must stay finite: its derivative is multiplied by 0.
    return ops.expm1(_piecewise(x, x, zeros_like(x)))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x: 0.5 * x * (1 + erf(x / sqrt(2))).

    `approximate="tanh"`: 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))).
    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """
    node = floating("gelu", x)
    if approximate == "none":
        return wrap(ops.gelu(node))
    if approximate == "tanh":
        inner = (node + node * node * node * 0.044715) * math.sqrt(8 / math.pi)
        return wrap(node * ops.sigmoid(inner))  # 0.5 * (1 + tanh(x)) is sigmoid(2 * x)
    raise ValueError(f"gelu: expected approximate 'none' or 'tanh', got {approximate!r}.")


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), without overflow for any x."""
    return wrap(ops.sigmoid(floating("sigmoid", x)))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish."""
    node = floating("silu", x)
    return wrap(node * ops.sigmoid(node))


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return wrap(ops.tanh(floating("tanh", x)))


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, without overflow for any x."""
    node = floating("softplus", x)
    if not beta > 0:
        raise ValueError(f"softplus: expected beta > 0, got {beta}.")
    return wrap(ops.softplus(node) if beta == 1 else ops.softplus(node * beta) / beta)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, shifted by the maximum so that nothing overflows."""
    node = floating("softmax", x)
    axes = (one_axis("softmax", axis, node.ndim),)
    e = ops.exp(_below_maximum(as_accumulator(node), axes))
    return wrap(as_type(e / expand_to(ops.sum_(e, axes=axes), node.shape), node.dtype))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The logarithm of `softmax`: x - log(sum(exp(x))), without overflow or log(0)."""
    node = floating("log_softmax", x)
    return wrap(log_softmax_node(node, one_axis("log_softmax", axis, node.ndim)))


def log_softmax_node(x: Node, axis: int) -> Node:
    """`log_softmax` of a node."""
    z = _below_maximum(as_accumulator(x), (axis,))
    log_total = ops.log(ops.sum_(ops.exp(z), axes=(axis,)))
    return as_type(z - expand_to(log_total, x.shape), x.dtype)


def _below_maximum(x: Node, axes: tuple[int, ...]) -> Node:
    # Softmax does not change when x shifts, so the shift takes no part in the derivative.
    if 0 in x.shape:
        return x
    return x - expand_to(ops.stop_gradient(ops.max_(x, axes=axes)), x.shape)
