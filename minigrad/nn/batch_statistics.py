"""Relatives of batch normalization that use the statistics of a batch in another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad.functions.comparison import clip
from minigrad.functions.control import stop_gradient
from minigrad.functions.elementwise import sqrt
from minigrad.nn.normalization import along_channels, channel_affine, with_channels
from minigrad.nn.running import move_running
from minigrad.nn.standardization import affine, standardize, widen

if TYPE_CHECKING:
    from minigrad.graph import Node
    from minigrad.tensor import Tensor

__all__ = ["batch_renorm", "mean_only_batch_norm"]


def batch_renorm(
    x: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.01,
    eps: float = 1e-5,
    r_max: float | Tensor = 1.0,
    d_max: float | Tensor = 0.0,
    *,
    num_batches_tracked: Tensor | None = None,
    allow_degenerate: bool = False,
) -> Tensor:
    """Batch normalization, corrected towards the running statistics; r and d are constants.

        y = (x_hat * r + d) * weight + bias,  x_hat = (x - mean) / std,  std = sqrt(var + eps)
        r = std / running_std, within [1 / r_max, r_max]
        d = (mean - running_mean) / running_std, within [-d_max, d_max]
        not training: y = (x - running_mean) / running_std * weight + bias

    Source: Ioffe 2017, arXiv:1702.03275. r_max = 1 and d_max = 0 is batch normalization.
    Shapes: x (N, C, *spatial) -> same; weight, bias, running_* (C,).

    Args:
        momentum, num_batches_tracked, allow_degenerate: as in `batch_norm`.
        eps: is part of running_std.
    State: training uses running_* as they were before the batch, then updates them.
    """
    caller = "batch_renorm"
    node = with_channels(caller, x)
    weight, bias = channel_affine(caller, node, weight, bias)
    mean = _running(caller, node, "running_mean", running_mean)
    std = _running(caller, node, "running_std", running_std)
    if not training:
        return affine((widen(x) - mean) / std, weight, bias, x.dtype)
    batch = standardize(x, (0, *range(2, node.ndim)), eps, allow_degenerate, caller)
    deviation = sqrt(batch.var + eps)
    r = stop_gradient(clip(deviation / std, 1 / r_max, r_max))
    d = stop_gradient(clip((batch.mean - mean) / std, -d_max, d_max))
    if batch.n > 1:
        pairs = (running_mean, batch.mean), (running_std, deviation)
        move_running(pairs, momentum, num_batches_tracked)
    return affine(batch.x_hat * r + d, weight, bias, x.dtype)


def mean_only_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    *,
    num_batches_tracked: Tensor | None = None,
    allow_degenerate: bool = False,
) -> Tensor:
    """x - mean + bias, beside a weight normalization that sees to the scale. arXiv:1602.07868, 5.

    Shapes: x (N, C, *spatial) -> same; bias, running_mean (C,).

    Args:
        momentum, num_batches_tracked, allow_degenerate: as in `batch_norm`.
    State: training uses the mean of the batch and updates running_mean; else that is used.
    """
    caller = "mean_only_batch_norm"
    node = with_channels(caller, x)
    _, bias = channel_affine(caller, node, None, bias)
    mean = _running(caller, node, "running_mean", running_mean)
    if not training:
        return affine(widen(x) - mean, None, bias, x.dtype)
    axes = (0, *range(2, node.ndim))
    batch = standardize(x, axes, allow_degenerate=allow_degenerate, caller=caller)
    if batch.n > 1:
        move_running([(running_mean, batch.mean)], momentum, num_batches_tracked)
    return affine(batch.deviation, None, bias, x.dtype)


def _running(caller: str, x: Node, name: str, running: Tensor) -> Tensor:
    """Running statistics of x's channels, in a shape that broadcasts to x."""
    if running.shape != (x.shape[1],):
        raise ValueError(
            f"{caller}: expected {name} of shape {(x.shape[1],)}, got {running.shape}."
        )
    return along_channels(running, x.ndim)
