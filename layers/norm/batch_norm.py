"""Batch normalization."""

from __future__ import annotations

import minigrad as mg
from layers.norm.channel_norm import MOMENTUM, ChannelNorm
from minigrad import Tensor

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class BatchNorm(ChannelNorm):
    """Batch normalization over the batch and spatial axes, for inputs of any rank from 2.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.
    Differs: population statistics are exponential averages, not a second pass over the data.
    Shapes: x (N, C, *spatial) -> y same; weight, bias, running_* (C,). n = N * prod(spatial).

    Args: those of `ChannelNorm`.
    State: training uses the batch's biased variance and updates running_mean and running_var, the
        latter scaled by n / (n - 1); eval uses the running ones. A batch without values, or with
        one per channel, updates nothing. Gradient flows through batch statistics.
    Precision: centred first, and rounded once; see `minigrad.nn.standardize`.
    Raises: ValueError if C differs from num_features, or n == 1 with batch statistics.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = MOMENTUM,
        affine: bool = True,
        track_running_stats: bool = True,
        allow_degenerate: bool = False,
        *,
        decay: float | None = None,
    ):
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, allow_degenerate, decay
        )

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return mg.nn.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.learns_statistics, self.momentum, self.eps,
            num_batches_tracked=self.num_batches_tracked, allow_degenerate=self.allow_degenerate,
        )  # fmt: skip


class BatchNorm1d(BatchNorm):
    """`BatchNorm` for features (N, C) or sequences (N, C, L)."""

    ranks = (2, 3)
    layout = "(N, C) or (N, C, L)"


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for maps (N, C, H, W)."""

    ranks = (4,)
    layout = "(N, C, H, W)"


class BatchNorm3d(BatchNorm):
    """`BatchNorm` for volumes (N, C, D, H, W)."""

    ranks = (5,)
    layout = "(N, C, D, H, W)"
