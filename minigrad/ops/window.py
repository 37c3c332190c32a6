"""Sliding windows over two axes: sums, maxima, and the scatter that is the maximum's transpose.

Average and max pooling, and both modes of local response normalization, are composed of these.
In `window_max` the first maximum of a window (row-major) wins, and NaN counts as the maximum.
"""

from __future__ import annotations

from minigrad.dtype import DType
from minigrad.graph import Node, Primitive, Shape, register

__all__ = ["window_max", "window_scatter", "window_select", "window_sum"]

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def window_extent(
    n: int, size: int, stride: int, padding: Pair, dilation: int, input_dilation: int
):
    """How many windows fit along one axis; 0 when none does."""
    dilated = (n - 1) * input_dilation + 1 if n else 0
    span = (size - 1) * dilation + 1 if size else 0
    room = dilated + padding[0] + padding[1] - span
    return room // stride + 1 if room >= 0 else 0


def transposed_padding(
    n: int, windows: int, size: int, stride: int, low: int, dilation: int, input_dilation: int
) -> Pair:
    """The padding with which the transposed window op gives back exactly `n` positions."""
    span = (size - 1) * dilation
    dilated = (windows - 1) * stride + 1 if windows else 0
    new_low = span - low
    return new_low, (n - 1) * input_dilation + span + 1 - dilated - new_low


def _windowed(name: str, x: Node, axes: Pair, size, stride, padding, dilation, input_dilation):
    if len(set(axes)) != 2 or any(not 0 <= a < x.ndim for a in axes):
        raise ValueError(f"{name}: expected two axes in 0..{x.ndim - 1}, got {axes}.")
    shape = list(x.shape)
    for i, axis in enumerate(axes):
        shape[axis] = window_extent(
            x.shape[axis], size[i], stride[i], padding[i], dilation[i], input_dilation[i]
        )
    return tuple(shape)


def _sum_infer(
    x: Node, *, axes: Pair, size: Pair, stride: Pair, padding: Padding, dilation: Pair,
    input_dilation: Pair,
) -> tuple[Shape, DType]:  # fmt: skip
    return _windowed(
        "window_sum", x, axes, size, stride, padding, dilation, input_dilation
    ), x.dtype


def _sum_vjp(g: Node, y: Node, x: Node, *, axes, size, stride, padding, dilation, input_dilation):
    back = tuple(
        transposed_padding(
            x.shape[a],
            y.shape[a],
            size[i],
            stride[i],
            padding[i][0],
            dilation[i],
            input_dilation[i],
        )
        for i, a in enumerate(axes)
    )
    return (
        window_sum(
            g, axes=axes, size=size, stride=input_dilation, padding=back, dilation=dilation,
            input_dilation=stride,
        ),
    )  # fmt: skip


def _max_infer(
    x: Node, *, axes: Pair, size: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> tuple[Shape, DType]:
    return _windowed("window_max", x, axes, size, stride, padding, dilation, (1, 1)), x.dtype


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
