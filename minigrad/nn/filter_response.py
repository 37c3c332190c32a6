"""Filter response normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad.functions.elementwise import rsqrt, where
from minigrad.functions.statistical import mean as mean_of
from minigrad.nn.normalization import along_channels, channel_affine, with_channels
from minigrad.nn.standardization import affine, widen

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["filter_response_norm"]


def filter_response_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float | Tensor = 1e-6,
) -> Tensor:
    """Each channel of each sample by the root of its mean square over the pixels; then a threshold.

        y = max(x / sqrt(mean(x**2) + eps) * weight + bias, threshold)

    Source: Singh & Krishnan 2019, arXiv:1911.09737. Where both are equal the threshold has the
    gradient.
    Shapes: x (N, C, *spatial) -> same; weight, bias, threshold (C,).

    Args:
        eps: in units of x squared; (C,) or a number. A learned one serves maps of one pixel, of
            which nothing but the sign is left without it.
    """
    caller = "filter_response_norm"
    node = with_channels(caller, x)
    if node.ndim < 3:
        raise ValueError(f"{caller}: expected x of shape (N, C, *spatial), got {node.shape}.")
    weight, bias = channel_affine(caller, node, weight, bias)
    _, threshold = channel_affine(caller, node, None, threshold)
    eps = eps if isinstance(eps, int | float) else along_channels(eps, node.ndim)
    wide = widen(x)
    square = mean_of(wide * wide, axis=tuple(range(2, node.ndim)), keepdims=True)
    y = affine(wide * rsqrt(square + eps), weight, bias, wide.dtype)
    return (y if threshold is None else where(y > threshold, y, threshold)).astype(x.dtype)
