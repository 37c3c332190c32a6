"""Reductions: sums, moments, extremes. `axis=None` reduces over every axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import DType, as_dtype, bool_, int32, int64
from minigrad.functions.arguments import (
    as_accumulator,
    as_truth,
    as_type,
    count,
    drop_axes,
    node_of,
    one_axis,
    some_axes,
)
from minigrad.graph import Node, const, like, zeros_like
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Axis
    from minigrad.tensor import Tensor

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "logsumexp",
    "max",
    "mean",
    "min",
    "prod",
    "std",
    "sum",
    "var",
]


def sum(
    x: Tensor, axis: Axis = None, *, keepdims: bool = False, dtype: DType | str | None = None
) -> Tensor:
    """The sum over `axis`. Integers and booleans give int64."""
    node = _widened(node_of("sum", x), dtype, "sum")
    axes = some_axes("sum", axis, node.ndim)
    return _finish(ops.sum_(node, axes=axes), axes, keepdims)


def prod(
    x: Tensor, axis: Axis = None, *, keepdims: bool = False, dtype: DType | str | None = None
) -> Tensor:
    """The product over `axis`, by halving; its gradient is right where elements are 0."""
    node = _widened(node_of("prod", x), dtype, "prod")
    axes = some_axes("prod", axis, node.ndim)
    for a in axes:
        node = _prod_along(node, a)
    return _finish(node, axes, keepdims)


def _prod_along(x: Node, axis: int) -> Node:
    n = x.shape[axis]
    if n == 0:
        return like(1, ops.sum_(x, axes=(axis,)))
    left_over: Node | None = None
    while n > 1:
        if n % 2:
            last = ops.narrow(x, axis, n - 1, n)
            left_over = last if left_over is None else ops.mul(left_over, last)
        n //= 2
        x = ops.mul(ops.narrow(x, axis, 0, n), ops.narrow(x, axis, n, 2 * n))
    return x if left_over is None else ops.mul(x, left_over)


def mean(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over `axis` of a floating tensor."""
    node = _floating("mean", x)
    axes = some_axes("mean", axis, node.ndim)
    return _finish(as_type(_mean(as_accumulator(node), axes), node.dtype), axes, keepdims)


def var(x: Tensor, axis: Axis = None, *, correction: float = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`: sum((x - mean)^2) / (n - correction).

    It centres first: E[x^2] - E[x]^2 loses every digit in float32 once the mean is large.
    """
    node = _floating("var", x)
    axes = some_axes("var", axis, node.ndim)
    spread = _var("var", as_accumulator(node), axes, correction)
    return _finish(as_type(spread, node.dtype), axes, keepdims)


def std(x: Tensor, axis: Axis = None, *, correction: float = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`; its gradient is infinite where it is 0."""
    node = _floating("std", x)
    axes = some_axes("std", axis, node.ndim)
    spread = ops.sqrt(_var("std", as_accumulator(node), axes, correction))
    return _finish(as_type(spread, node.dtype), axes, keepdims)


def max(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; ties share the gradient."""
    node = _ordered("max", x)
    axes = some_axes("max", axis, node.ndim)
    return _finish(ops.max_(node, axes=axes), axes, keepdims)


def min(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`; ties share the gradient."""
    node = _ordered("min", x)
    axes = some_axes("min", axis, node.ndim)
    return _finish(_reversed(ops.max_(_reversed(node), axes=axes)), axes, keepdims)


def argmax(x: Tensor, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The int64 index of the first largest element along `axis`, or in row-major order."""
    return _arg("argmax", _ordered("argmax", x), axis, keepdims)


def argmin(x: Tensor, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The int64 index of the first smallest element along `axis`, or in row-major order."""
    return _arg("argmin", _reversed(_ordered("argmin", x)), axis, keepdims)


def any(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Whether some element over `axis` is true (not zero)."""
    truth = as_truth(node_of("any", x))
    axes = some_axes("any", axis, truth.ndim)
    return _finish(_any(truth, axes), axes, keepdims)


def all(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Whether every element over `axis` is true (not zero)."""
    truth = as_truth(node_of("all", x))
    axes = some_axes("all", axis, truth.ndim)
    some_false = _any(ops.bitwise_invert(truth), axes)
    return _finish(ops.bitwise_invert(some_false), axes, keepdims)


def logsumexp(x: Tensor, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow."""
    given = _floating("logsumexp", x)
    node = as_accumulator(given)
    axes = some_axes("logsumexp", axis, node.ndim)
    # The shift cancels, so it takes no part in the derivative. An infinite one, of which inf - inf
    # would be NaN, is 0 instead.
    top = ops.stop_gradient(ops.max_(node, axes=axes))
    finite = ops.less(ops.abs_(top), like(float("inf"), top))
    shift = ops.where(finite, top, zeros_like(top))
    total = ops.sum_(ops.exp(node - _spread(shift, node)), axes=axes)
    return _finish(as_type(ops.log(total) + shift, given.dtype), axes, keepdims)


def _finish(x: Node, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    return wrap(x if keepdims else drop_axes(x, axes))


def _spread(x: Node, to: Node) -> Node:
    return x if x.shape == to.shape else ops.expand(x, shape=to.shape)


def _mean(x: Node, axes: tuple[int, ...]) -> Node:
    return ops.sum_(x, axes=axes) / count(x, axes)


def _var(caller: str, x: Node, axes: tuple[int, ...], correction: float) -> Node:
    n = count(x, axes)
    if n - correction <= 0:
        raise ValueError(
            f"{caller}: expected more than {correction} elements over axes {axes}, got {n} from "
            f"shape {x.shape}. Use a smaller correction."
        )
    centred = x - _spread(_mean(x, axes), x)
    return ops.sum_(centred * centred, axes=axes) / (n - correction)


def _any(truth: Node, axes: tuple[int, ...]) -> Node:
    if count(truth, axes) == 0:
        shape = tuple(1 if a in axes else n for a, n in enumerate(truth.shape))
        return const(False, bool_, truth.device, shape)
    return as_truth(ops.max_(ops.cast(truth, dtype=int32), axes=axes))


def _arg(caller: str, x: Node, axis: int | None, keepdims: bool) -> Tensor:
    if axis is None:
        found = ops.argmax(ops.reshape(x, shape=(x.size,)), axis=0)
        return wrap(ops.reshape(found, shape=(1,) * x.ndim if keepdims else ()))
    a = one_axis(caller, axis, x.ndim)
    return _finish(ops.argmax(x, axis=a), (a,), keepdims)


def _reversed(x: Node) -> Node:
    """An order-reversing map that is its own inverse; -x would overflow at the least integer."""
    return ops.neg(x) if x.dtype.is_floating else ops.bitwise_invert(x)


def _widened(x: Node, dtype: DType | str | None, caller: str) -> Node:
    if dtype is not None:
        return as_type(x, as_dtype(dtype, caller))
    return x if x.dtype.is_floating else as_type(x, int64)


def _floating(caller: str, x: Tensor) -> Node:
    node = node_of(caller, x)
    if not node.dtype.is_floating:
        raise TypeError(
            f"{caller}: expected a floating dtype, got {node.dtype.name}. Use astype(float32)."
        )
    return node


def _ordered(caller: str, x: Tensor) -> Node:
    node = node_of(caller, x)
    if node.dtype.kind == "bool":
        raise TypeError(f"{caller}: expected a number dtype, got bool. Use any() or all().")
    return node


class StatisticalMethods:
    """The functions above as methods of a Tensor."""

    __slots__ = ()

    all = all
    any = any
    argmax = argmax
    argmin = argmin
    logsumexp = logsumexp
    max = max
    mean = mean
    min = min
    prod = prod
    std = std
    sum = sum
    var = var
