"""Decorrelated batch normalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer
from layers.norm.channel_norm import MOMENTUM, ChannelNorm
from minigrad import Tensor

__all__ = ["DecorrelatedBatchNorm"]


class DecorrelatedBatchNorm(ChannelNorm):
    """Whitening of a batch: centred and scaled, and the channels of a group not correlated.

        y = W (x - mean) * weight + bias,  W = (covariance + eps I) ** (-1/2), for each group

    Source: Huang et al. 2018, arXiv:1804.08450; W by Newton's iteration, Huang et al. 2019,
        arXiv:1904.03441.
    Shapes: x (N, C, *spatial) -> y same; weight, bias, running_mean (C,);
        running_whitener (groups, C / groups, C / groups).

    Args:
        num_features, eps, momentum, affine, allow_degenerate, decay: as in `BatchNorm`.
        groups: of consecutive channels that are decorrelated with each other.
        iterations: of the root. Five leave directions of small variance smaller than the others;
            more whiten more, and amplify more of what is noise.
    State: training takes mean and W from the batch, and updates running_mean and running_whitener;
        eval uses those. Gradient flows through mean and W.
    Raises: ValueError unless groups divides num_features, if C differs from it, or a statistic has
        one value while training. A batch of fewer values than channels leaves W to eps.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = MOMENTUM,
        affine: bool = True,
        allow_degenerate: bool = False,
        groups: int = 1,
        iterations: int = 5,
        decay: float | None = None,
    ):
        super().__init__(num_features, eps, momentum, affine, False, allow_degenerate, decay)
        if groups < 1 or num_features % groups:
            raise ValueError(
                f"DecorrelatedBatchNorm: expected groups to divide num_features, got {groups} "
                f"groups of {num_features} channels. Choose a divisor."
            )
        self.groups, self.iterations, size = groups, iterations, num_features // groups
        self.running_mean = Buffer(mg.zeros((num_features,)))
        self.running_whitener = Buffer(mg.broadcast_to(mg.eye(size), (groups, size, size)))
        self.num_batches_tracked = Buffer(mg.tensor(0, dtype=mg.int64))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return mg.nn.decorrelated_batch_norm(
            x, self.running_mean, self.running_whitener, self.weight, self.bias,
            self.learns_statistics, self.momentum, self.eps, self.groups, self.iterations,
            num_batches_tracked=self.num_batches_tracked, allow_degenerate=self.allow_degenerate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}, iterations={self.iterations}"
