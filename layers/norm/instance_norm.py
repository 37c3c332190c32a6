"""Instance normalization."""

from __future__ import annotations

import minigrad as mg
from layers.norm.channel_norm import MOMENTUM, ChannelNorm
from minigrad import Tensor

__all__ = ["InstanceNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class InstanceNorm(ChannelNorm):
    """Instance normalization: each channel of each sample over its pixels, for any rank from 3.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Ulyanov, Vedaldi, Lempitsky 2016, arXiv:1607.08022.
    Differs: num_batches_tracked counts batches; PyTorch's stays 0.
    Shapes: x (N, C, *spatial) -> y same; weight, bias, running_* (C,). n = prod(spatial).

    Args: those of `ChannelNorm`.
    State: with running statistics, training uses x's own and moves the running ones towards their
        mean over the batch (the variance scaled by n / (n - 1)), and eval uses the running ones.
        Without, there is no state.
    Raises: ValueError if C differs from num_features, or n == 1 with x's own statistics.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = MOMENTUM,
        affine: bool = False,
        track_running_stats: bool = False,
        allow_degenerate: bool = False,
        *,
        decay: float | None = None,
    ):
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, allow_degenerate, decay
        )

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return mg.nn.instance_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.learns_statistics or self.running_mean is None, self.momentum, self.eps,
            num_batches_tracked=self.num_batches_tracked, allow_degenerate=self.allow_degenerate,
        )  # fmt: skip


class InstanceNorm1d(InstanceNorm):
    """`InstanceNorm` for sequences (N, C, L)."""

    ranks = (3,)
    layout = "(N, C, L)"


class InstanceNorm2d(InstanceNorm):
    """`InstanceNorm` for maps (N, C, H, W)."""

    ranks = (4,)
    layout = "(N, C, H, W)"


class InstanceNorm3d(InstanceNorm):
    """`InstanceNorm` for volumes (N, C, D, H, W)."""

    ranks = (5,)
    layout = "(N, C, D, H, W)"
