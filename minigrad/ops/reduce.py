"""Reductions, and `expand`: a sum and an expansion are each other's derivative.

Reductions keep the reduced axes with extent 1; squeezing is a view.
`sum` accumulates float32 in float64 blocks and integers in their own width.
"""

from __future__ import annotations

from math import prod

from minigrad.dtype import DType, int64
from minigrad.graph import Node, Primitive, Shape, like, register, zeros_like
from minigrad.ops.elementwise import equal, where

__all__ = ["argmax", "expand", "max_", "sum_"]

Axes = tuple[int, ...]


def _expand_infer(x: Node, *, shape: Shape) -> tuple[Shape, DType]:
    if len(shape) != x.ndim or any(a not in (1, b) for a, b in zip(x.shape, shape, strict=True)):
        raise ValueError(f"expand: expected extents of 1 to grow, got {x.shape} to {shape}.")
    return shape, x.dtype


def _expand_vjp(g: Node, y: Node, x: Node, *, shape: Shape) -> tuple[Node]:
    """Where broadcasting is undone, for every op at once."""
    grown = tuple(i for i, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if a != b)
    return (sum_(g, axes=grown) if grown else g,)


def _reduced(name: str, x: Node, axes: Axes) -> Shape:
    if any(not 0 <= a < x.ndim for a in axes) or len(set(axes)) != len(axes):
        raise ValueError(f"{name}: expected distinct axes in 0..{x.ndim - 1}, got {axes}.")
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


def _sum_infer(x: Node, *, axes: Axes) -> tuple[Shape, DType]:
    if x.dtype.kind == "bool":
        raise TypeError("sum: expected a number dtype, got bool. Use astype(int64).")
    return _reduced("sum", x, axes), x.dtype


def _max_infer(x: Node, *, axes: Axes) -> tuple[Shape, DType]:
    if prod(x.shape[a] for a in axes) == 0:
        raise ValueError(f"max: expected at least one element along axes {axes}, got {x.shape}.")
    return _reduced("max", x, axes), x.dtype


def _max_vjp(g: Node, y: Node, x: Node, *, axes: Axes) -> tuple[Node]:
    """Ties share the gradient equally."""
    wins = equal(x, expand(y, shape=x.shape))
    ones = where(wins, like(1.0, x), zeros_like(x))
    share = g / sum_(ones, axes=axes)
    return (where(wins, expand(share, shape=x.shape), zeros_like(x)),)


def _argmax_infer(x: Node, *, axis: int) -> tuple[Shape, DType]:
    if x.shape[axis] == 0:
        raise ValueError(f"argmax: expected at least one element along axis {axis}, got {x.shape}.")
    return _reduced("argmax", x, (axis,)), int64


expand = register(Primitive("expand", "view", _expand_infer, _expand_vjp))
sum_ = register(
    Primitive("sum", "reduce", _sum_infer, lambda g, y, x, *, axes: (expand(g, shape=x.shape),))
)
max_ = register(Primitive("max", "reduce", _max_infer, _max_vjp))
argmax = register(Primitive("argmax", "kernel", _argmax_infer))  # an index has no derivative
