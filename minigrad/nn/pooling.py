"""Pooling: maxima and means of windows. Padding and rounding follow PyTorch's definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import int64
from minigrad.graph import Node, like
from minigrad.nn.arguments import images, int_pair, integer
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

    Size = int | Sequence[int]

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "max_pool2d"]


def max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window; the first one in row-major order gets the gradient.

    Shapes: x (N, C, H, W) -> (N, C, OH, OW), with
    OH = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Args:
        stride: kernel_size by default.
        padding: positions on each side that never win; at most half the window.
        ceil_mode: whether a last window may hang over the end.
    """
    node, window = _windowed("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    return wrap(ops.window_max(node, axes=(2, 3), window=window))


def avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window.

    Shapes and sizes as `max_pool2d`. The divisor is the number of positions of the window inside
    the padded image (`count_include_pad`) or inside the image itself.
    """
    node, window = _windowed("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    total = ops.window_sum(node, axes=(2, 3), window=window)
    shape, counted = total.shape, window.low if count_include_pad else (0, 0)
    along = list(zip(window.axes, node.shape[2:], shape[2:], counted, strict=True))
    if all(_covered(*each) for each in along):
        return wrap(total / (window.size[0] * window.size[1]))
    rows, columns = (_counts(*each, node) for each in along)
    rows = ops.expand(ops.reshape(rows, shape=(1, 1, shape[2], 1)), shape=shape)
    columns = ops.expand(ops.reshape(columns, shape=(1, 1, 1, shape[3])), shape=shape)
    return wrap(total / (rows * columns))


def adaptive_avg_pool2d(x: Tensor, output_size: Size | tuple[int | None, int | None]) -> Tensor:
    """The means of output_size windows that cover the image, as equal as can be.

    Window i of n covers the positions floor(i * H / n) up to ceil((i + 1) * H / n); None keeps H.

    Shapes: x (N, C, H, W) -> (N, C, *output_size).
    """
    caller = "adaptive_avg_pool2d"
    node = images(caller, x)
    given = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,) * 2
    if len(given) != 2:
        raise ValueError(
            f"{caller}: expected output_size of one or two integers, got {output_size}."
        )
    if 0 in node.shape[2:]:
        raise ValueError(f"{caller}: expected images with pixels, got shape {node.shape}.")
    wanted = [
        n if o is None else integer(caller, "output_size", o, 1)
        for o, n in zip(given, node.shape[2:], strict=True)
    ]
    if wanted == [1, 1]:
        return wrap(ops.sum_(node, axes=(2, 3)) / (node.shape[2] * node.shape[3]))
    if all(n % o == 0 for o, n in zip(wanted, node.shape[2:], strict=True)):
        size = tuple(n // o for o, n in zip(wanted, node.shape[2:], strict=True))
        return avg_pool2d(wrap(node), size)
    # Uneven windows: a mean over each axis is a product with a matrix of shares.
    rows, columns = (_shares(n, o, node) for o, n in zip(wanted, node.shape[2:], strict=True))
    y = ops.dot(node, rows, batch=((), ()), contract=((2,), (1,)))  # (N, C, W, OH)
    return wrap(ops.dot(y, columns, batch=((), ()), contract=((2,), (1,))))  # (N, C, OH, OW)


def _shares(n: int, windows: int, x: Node) -> Node:
    """(windows, n): the share of each position in the mean of each window."""
    shape = (windows, n)
    i = ops.expand(ops.reshape(ops.iota(windows, int64, x.device), shape=(windows, 1)), shape=shape)
    position = ops.expand(ops.reshape(ops.iota(n, int64, x.device), shape=(1, n)), shape=shape)
    start = ops.floor_divide(i * n, like(windows, i))
    stop = ops.floor_divide((i + 1) * n + (windows - 1), like(windows, i))
    inside = ops.bitwise_and(ops.less_equal(start, position), ops.less(position, stop))
    share = like(1.0, ops.cast(i, dtype=x.dtype)) / ops.cast(stop - start, dtype=x.dtype)
    return ops.where(inside, share, ops.zeros_like(share))


def _windowed(
    caller: str, x: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size,
    ceil_mode: bool,
) -> tuple[Node, ops.Window]:  # fmt: skip
    """The images and the window of a pooling function's arguments."""
    node = images(caller, x)
    size = int_pair(caller, "kernel_size", kernel_size, 1)
    steps = size if stride is None else int_pair(caller, "stride", stride, 1)
    h, v = margin = int_pair(caller, "padding", padding, 0)
    if any(2 * m > k for m, k in zip(margin, size, strict=True)):
        raise ValueError(
            f"{caller}: expected padding of at most half of kernel_size {size}, got {margin}."
        )
    spread = int_pair(caller, "dilation", dilation, 1)
    window = ops.Window(size, steps, ((h, h), (v, v)), spread)
    highs = [_high(axis, n, ceil_mode) for axis, n in zip(window.axes, node.shape[2:], strict=True)]
    if None in highs:
        raise ValueError(
            f"{caller}: expected images no smaller than the window {size} (dilation {spread}, "
            f"padding {margin}), got {node.shape[2:]}."
        )
    return node, window._replace(padding=tuple(zip(margin, highs, strict=True)))


def _high(axis: ops.WindowAxis, n: int, ceil_mode: bool) -> int | None:
    """The padding after n pixels, with `ceil_mode` enough for the last window; None for too few."""
    low, stride = axis.padding[0], axis.stride
    room = n + 2 * low - axis.reach - 1
    if not ceil_mode:
        return low if room >= 0 else None
    if room <= -stride:
        return None
    last = -(-room // stride) * stride  # where the last window begins
    if last >= n + low:  # it must begin inside the image or before it
        last -= stride
    return max(low, last + axis.reach + 1 - n - low)


def _covered(axis: ops.WindowAxis, n: int, windows: int, counted: int) -> bool:
    """Whether every window lies within the n pixels and `counted` positions on each side."""
    low = axis.padding[0]
    return low <= counted and (windows - 1) * axis.stride + axis.size <= n + low + counted


def _counts(axis: ops.WindowAxis, n: int, windows: int, counted: int, x: Node) -> Node:
    """How many counted positions each window along one axis covers."""
    start = ops.iota(windows, int64, x.device) * axis.stride - axis.padding[0]
    stop = ops.minimum(start + axis.size, like(n + counted, start))
    return ops.cast(stop - ops.maximum(start, like(-counted, start)), dtype=x.dtype)
