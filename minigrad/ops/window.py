"""Sliding windows over two axes: sums, maxima, and the scatter that is the maximum's transpose.

Average and max pooling, and both modes of local response normalization, are composed of these.
In `window_max` the first maximum of a window (row-major) wins, and NaN counts as the maximum.
"""

from __future__ import annotations

from minigrad.backend.geometry import Pair, Window, WindowAxis
from minigrad.dtype import DType
from minigrad.graph import Node, Primitive, Shape, register

__all__ = ["Window", "WindowAxis", "window_max", "window_scatter", "window_select", "window_sum"]


def _inputs(x: Node, axes: Pair) -> Pair:
    return x.shape[axes[0]], x.shape[axes[1]]


def _windowed(name: str, x: Node, axes: Pair, window: Window) -> Shape:
    """The shape of x with the windows on its two axes."""
    if len(set(axes)) != 2 or any(not 0 <= a < x.ndim for a in axes):
        raise ValueError(f"{name}: expected two axes in 0..{x.ndim - 1}, got {axes}.")
    shape = list(x.shape)
    shape[axes[0]], shape[axes[1]] = window.windows(_inputs(x, axes))
    return tuple(shape)


def _sum_infer(x: Node, *, axes: Pair, window: Window) -> tuple[Shape, DType]:
    return _windowed("window_sum", x, axes, window), x.dtype


def _sum_vjp(g: Node, y: Node, x: Node, *, axes: Pair, window: Window) -> tuple[Node]:
    return (window_sum(g, axes=axes, window=window.adjoint(_inputs(x, axes))),)


def _max_infer(x: Node, *, axes: Pair, window: Window) -> tuple[Shape, DType]:
    if window.input_dilation != (1, 1):
        raise ValueError(f"window_max: expected no input dilation, got {window.input_dilation}.")
    return _windowed("window_max", x, axes, window), x.dtype


def _select_infer(x: Node, u: Node, **attrs) -> tuple[Shape, DType]:
    if u.shape != x.shape:
        raise ValueError(f"window_select: expected equal shapes, got {x.shape}, {u.shape}.")
    return _max_infer(x, **attrs)[0], u.dtype


def _scatter_infer(x: Node, g: Node, **attrs) -> tuple[Shape, DType]:
    if g.shape != _max_infer(x, **attrs)[0]:
        raise ValueError(f"window_scatter: expected one value a window, got {g.shape}.")
    return x.shape, g.dtype


# The position of the maximum is piecewise constant, so x gets no derivative from the last two.
window_sum = register(Primitive("window_sum", "kernel", _sum_infer, _sum_vjp))
window_max = register(
    Primitive(
        "window_max", "kernel", _max_infer,
        lambda g, y, x, **attrs: (window_scatter(x, g, **attrs),),
    )
)  # fmt: skip
window_select = register(
    Primitive(
        "window_select", "kernel", _select_infer,
        lambda g, y, x, u, **attrs: (None, window_scatter(x, g, **attrs)),
    )
)  # fmt: skip
window_scatter = register(
    Primitive(
        "window_scatter", "kernel", _scatter_infer,
        lambda g, y, x, v, **attrs: (None, window_select(x, g, **attrs)),
    )
)  # fmt: skip
