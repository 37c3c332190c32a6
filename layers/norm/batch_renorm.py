"""Batch renormalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer
from layers.norm.channel_norm import ChannelNorm, Default
from minigrad import Tensor

__all__ = ["BatchRenorm", "BatchRenorm1d", "BatchRenorm2d"]


class BatchRenorm(ChannelNorm):
    """Batch normalization that trains towards what it does in eval, for small or uneven batches.

        y = (x_hat * r + d) * weight + bias,  x_hat = (x - mean) / std,  std = sqrt(var + eps)
        r = std / running_std, within [1 / r, r] of the schedule
        d = (mean - running_mean) / running_std, within [-d, d] of the schedule

    Source: Ioffe 2017, arXiv:1702.03275; "gradually" is read as linearly.
    Shapes: x (N, C, *spatial) -> y same; weight, bias, running_* (C,).

    Args:
        num_features, eps, momentum, affine, allow_degenerate, decay: as in `BatchNorm`.
        r_max, d_max: the limits of r and d in the end. 1 and 0 are batch normalization.
        schedule: (first, r_steps, d_steps), in batches: until `first` the limits are 1 and 0, then
            they grow linearly, and r_max is reached at r_steps, d_max at d_steps.
    State: training normalizes by the batch's biased variance, corrected by r and d, which are
        constants to a gradient; then it updates running_mean, running_std (which has eps in it) and
        num_batches_tracked, by which the schedule goes. Eval is (x - running_mean) / running_std.
    Raises: ValueError if C differs from num_features, or n == 1 while training: x_hat is 0 and no
        gradient passes. One image has n = H * W.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = Default(0.01),
        affine: bool = True,
        allow_degenerate: bool = False,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: tuple[int, int, int] = (5000, 40000, 25000),
        decay: float | None = None,
    ):
        super().__init__(num_features, eps, momentum, affine, False, allow_degenerate, decay)
        if not (r_max >= 1 and d_max >= 0 and 0 <= schedule[0] < min(schedule[1:])):
            raise ValueError(
                f"{type(self).__name__}: expected r_max >= 1, d_max >= 0 and a schedule (first, "
                f"r_steps, d_steps) with first < both, got {r_max}, {d_max}, {schedule}."
            )
        self.r_max, self.d_max, self.schedule = r_max, d_max, schedule
        self.running_mean = Buffer(mg.zeros((num_features,)))
        self.running_std = Buffer(mg.ones((num_features,)))
        self.num_batches_tracked = Buffer(mg.tensor(0, dtype=mg.int64))

    def limits(self) -> tuple[Tensor, Tensor]:
        """How far r and d may go at the next batch."""
        first, *last = self.schedule
        t = self.num_batches_tracked.astype(self.running_std.dtype)
        r, d = (mg.clip((t - first) / (end - first), 0.0, 1.0) for end in last)
        return 1 + (self.r_max - 1) * r, self.d_max * d

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return mg.nn.batch_renorm(
            x, self.running_mean, self.running_std, self.weight, self.bias,
            self.learns_statistics, self.momentum, self.eps, *self.limits(),
            num_batches_tracked=self.num_batches_tracked, allow_degenerate=self.allow_degenerate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        limits = f"r_max={self.r_max}, d_max={self.d_max}, schedule={self.schedule}"
        return f"{super().extra_repr()}, {limits}"


class BatchRenorm1d(BatchRenorm):
    """`BatchRenorm` for features (N, C) or sequences (N, C, L)."""

    ranks = (2, 3)
    layout = "(N, C) or (N, C, L)"


class BatchRenorm2d(BatchRenorm):
    """`BatchRenorm` for maps (N, C, H, W)."""

    ranks = (4,)
    layout = "(N, C, H, W)"
