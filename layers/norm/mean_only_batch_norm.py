"""Mean-only batch normalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer, Parameter
from layers.norm.channel_norm import MOMENTUM, ChannelNorm
from minigrad import Tensor

__all__ = ["MeanOnlyBatchNorm"]


class MeanOnlyBatchNorm(ChannelNorm):
    """The mean of the batch is subtracted, and the scale is left to a weight normalization before.

        y = x - mean + bias

    Source: Salimans & Kingma 2016, arXiv:1602.07868, section 5.
    Shapes: x (N, C, *spatial) -> y same; bias, running_mean (C,).

    Args:
        num_features, momentum, allow_degenerate, decay: as in `BatchNorm`.
    State: training subtracts the mean of the batch and updates running_mean; eval subtracts that.
    Raises: ValueError if C differs from num_features, or a mean has one value while training.
    """

    def __init__(
        self,
        num_features: int,
        momentum: float | None = MOMENTUM,
        allow_degenerate: bool = False,
        decay: float | None = None,
    ):
        super().__init__(num_features, 0.0, momentum, False, False, allow_degenerate, decay)
        self.bias = Parameter(mg.zeros((num_features,)))
        self.running_mean = Buffer(mg.zeros((num_features,)))
        self.num_batches_tracked = Buffer(mg.tensor(0, dtype=mg.int64))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return mg.nn.mean_only_batch_norm(
            x, self.running_mean, self.bias, self.learns_statistics, self.momentum,
            num_batches_tracked=self.num_batches_tracked, allow_degenerate=self.allow_degenerate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}"
