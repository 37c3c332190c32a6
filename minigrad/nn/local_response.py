"""Local response normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.functions.arguments import as_accumulator, as_type
from minigrad.nn.arguments import floating, integer
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["local_response_norm"]


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    mode: str = "across_channels",
) -> Tensor:
    """Local response normalization: x / (k + alpha / n * sum of x**2 over a window) ** beta.

    Source: Krizhevsky et al. 2012. alpha is divided by n, the full window, as in Caffe and PyTorch:
    the paper's alpha = 1e-4 with n = 5 is 5e-4 here.
    Shapes: x (N, C, H, W), or (N, C, *spatial) across channels.

    Args:
        size: of the window. n = size channels (an even size reaches one further down), or
            n = size**2 pixels of the same channel for "within_channel" (size odd).
        k: > 0; with alpha >= 0 the sum cannot vanish. Caffe's within_channel has k = 1.
    """
    name = "local_response_norm"
    node = floating(name, x)
    size = integer(name, "size", size, 1)
    if not k > 0 or not alpha >= 0:
        raise ValueError(f"{name}: expected k > 0 and alpha >= 0, got k={k} and alpha={alpha}.")
    low, high = size // 2, (size - 1) // 2
    if mode == "across_channels":
        if node.ndim < 3:
            raise ValueError(f"{name}: expected x of shape (N, C, *spatial), got {node.shape}.")
        axes, window, margins, n = (1, 2), (size, 1), ((low, high), (0, 0)), size
    elif mode == "within_channel":
        if node.ndim != 4 or size % 2 == 0:
            raise ValueError(
                f"{name}: expected x of shape (N, C, H, W) and an odd size within channels, got "
                f"{node.shape} and size {size}."
            )
        axes, window, margins, n = (2, 3), (size, size), ((low, high), (low, high)), size * size
    else:
        raise ValueError(
            f"{name}: expected mode 'across_channels' or 'within_channel', got {mode!r}."
        )
    wide = as_accumulator(node)
    around = ops.window_sum(wide * wide, axes=axes, window=ops.Window(window, padding=margins))
    scale = around * (alpha / n) + k
    return wrap(as_type(wide * ops.pow_(scale, ops.like(-beta, scale)), node.dtype))
