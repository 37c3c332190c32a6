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

Pair = tuple[int, int]


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
    node, size, steps, margin, spread = _windows(
        "max_pool2d", x, kernel_size, stride, padding, dilation
    )
    margins = _margins("max_pool2d", node, size, steps, margin, spread, ceil_mode)
    y = ops.window_max(node, axes=(2, 3), size=size, stride=steps, padding=margins, dilation=spread)
    return wrap(y)


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
    node, size, steps, margin, spread = _windows("avg_pool2d", x, kernel_size, stride, padding, 1)
    margins = _margins("avg_pool2d", node, size, steps, margin, spread, ceil_mode)
    total = ops.window_sum(
        node, axes=(2, 3), size=size, stride=steps, padding=margins, dilation=spread,
        input_dilation=(1, 1),
    )  # fmt: skip
    counted = margin if count_include_pad else (0, 0)
    fits = all(
        _covered(node.shape[2 + i], total.shape[2 + i], size[i], steps[i], margin[i], counted[i])
        for i in range(2)
    )
    if fits:
        return wrap(total / (size[0] * size[1]))
    shape = total.shape
    rows, columns = (
        _counts(shape[2 + i], node.shape[2 + i], size[i], steps[i], margin[i], counted[i], node)
        for i in range(2)
    )
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


def _windows(
    caller: str, x: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size
) -> tuple[Node, Pair, Pair, Pair, Pair]:
    node = images(caller, x)
    size = int_pair(caller, "kernel_size", kernel_size, 1)
    steps = size if stride is None else int_pair(caller, "stride", stride, 1)
    margin = int_pair(caller, "padding", padding, 0)
    if any(2 * m > k for m, k in zip(margin, size, strict=True)):
        raise ValueError(
            f"{caller}: expected padding of at most half of kernel_size {size}, got {margin}."
        )
    return node, size, steps, margin, int_pair(caller, "dilation", dilation, 1)


def _margins(
    caller: str, x: Node, size: Pair, stride: Pair, margin: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Pair, Pair]:
    """The padding before and after. With `ceil_mode`, enough after for the last window."""
    result = []
    for n, k, s, m, d in zip(x.shape[2:], size, stride, margin, dilation, strict=True):
        span = d * (k - 1) + 1
        room = n + 2 * m - span
        if room < 0 and not (ceil_mode and room > -s):
            raise ValueError(
                f"{caller}: expected images no smaller than the window {size} (dilation "
                f"{dilation}, padding {margin}), got {x.shape[2:]}."
            )
        windows = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (windows - 1) * s >= n + m:  # it must begin inside the image or before it
            windows -= 1
        result.append((m, max(m, (windows - 1) * s + span - n - m)))
    return result[0], result[1]


def _covered(n: int, windows: int, size: int, stride: int, margin: int, counted: int) -> bool:
    """Whether every window lies within the counted positions."""
    return margin <= counted and (windows - 1) * stride + size <= n + margin + counted


def _counts(
    windows: int, n: int, size: int, stride: int, margin: int, counted: int, x: Node
) -> Node:
    """How many counted positions each window along one axis covers."""
    start = ops.iota(windows, int64, x.device) * stride - margin
    stop = ops.minimum(start + size, like(n + counted, start))
    return ops.cast(stop - ops.maximum(start, like(-counted, start)), dtype=x.dtype)
