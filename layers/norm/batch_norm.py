"""Batch normalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer, Module, Parameter
from minigrad import Tensor
from minigrad.nn import batch_normalization, centre, moments, update_running


class BatchNorm(Module):
    """Batch normalization over the batch and spatial axes, for inputs of any rank from 2.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.
    Differs: population statistics are exponential averages, not a second pass over the data.
    Shapes: x (N, C, *spatial) -> y same; weight, bias, running_* (C,). n = N * prod(spatial).

    Args:
        num_features: C, the extent of axis 1.
        eps: added to the variance, so in units of x squared; >= 0.
        momentum: weight of the new batch, in [0, 1]:
            running = (1 - momentum) * running + momentum * batch; a decay of 0.99 is momentum=0.01.
            None: the plain average of all batches.
        affine: whether there are weight and bias.
        track_running_stats: False: no running statistics, eval uses the batch's too.
        allow_degenerate: accept one value per channel: y = bias, no gradient to x or weight.
    State: training uses the batch's biased variance and updates running_mean and running_var, the
        latter scaled by n / (n - 1); eval uses the running ones. An empty batch updates nothing.
        Gradient flows through batch statistics.
    Precision: centred first; see `moments`.
    Raises: ValueError if C differs from num_features, or n == 1 with batch statistics.
    """

    ranks: tuple[int, ...] = ()  # the accepted numbers of axes; empty: any from 2
    layout = "(N, C, *spatial)"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        allow_degenerate: bool = False,
    ):
        if eps < 0:
            raise ValueError(f"{type(self).__name__}.eps: expected a number >= 0, got {eps}.")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(
                f"{type(self).__name__}.momentum: expected a weight of the new batch in [0, 1] or "
                f"None, got {momentum}. A decay d is momentum=1 - d."
            )
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.allow_degenerate = allow_degenerate
        shape, track = (num_features,), track_running_stats
        self.weight = Parameter(mg.ones(shape)) if affine else None
        self.bias = Parameter(mg.zeros(shape)) if affine else None
        self.running_mean = Buffer(mg.zeros(shape)) if track else None
        self.running_var = Buffer(mg.ones(shape)) if track else None
        self.num_batches_tracked = Buffer(mg.tensor(0, dtype=mg.int64)) if track else None

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        mean, var = self.running_mean, self.running_var
        if self.training or mean is None or var is None:
            axes = (0, *range(2, x.ndim))
            x, sample = centre(x, axes)  # changes nothing but the rounding
            mean, var = moments(x, axes, keepdims=True)
            self._update(mean + sample, var, n=x.size // self.num_features)
        return batch_normalization(x, mean, var, self.bias, self.weight, self.eps)

    def _update(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the running statistics towards a batch's; see [Note: buffer updates]."""
        batches, old_mean, old_var = self.num_batches_tracked, self.running_mean, self.running_var
        if not self.training or batches is None or old_mean is None or old_var is None:
            return
        if n <= 1:  # with n = 0 there is no mean, with n = 1 no variance to learn from
            return
        batches.assign(batches + 1)
        new = 1 / batches.astype(old_mean.dtype) if self.momentum is None else self.momentum
        update_running(old_mean, old_var, mean, var, n, new)

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or (self.ranks and x.ndim not in self.ranks):
            raise ValueError(
                f"{type(self).__name__}: expected x of shape {self.layout}, got {x.shape}. "
                f"BatchNorm takes any rank from 2, channels at axis 1."
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected {self.num_features} channels at axis 1, got x of "
                f"shape {x.shape}. Pass {type(self).__name__}({x.shape[1]}) or transpose x."
            )
        batch_statistics = self.training or self.running_mean is None
        if batch_statistics and x.size == self.num_features and not self.allow_degenerate:
            raise ValueError(
                f"{type(self).__name__}: expected more than 1 value per channel to take statistics "
                f"of, got x of shape {x.shape}. Use a larger batch, eval(), or "
                f"allow_degenerate=True (the output is then the bias)."
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.weight is not None}, "
            f"track_running_stats={self.running_mean is not None}"
        )


class BatchNorm1d(BatchNorm):
    """`BatchNorm` for features (N, C) or sequences (N, C, L)."""

    ranks = (2, 3)
    layout = "(N, C) or (N, C, L)"


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for maps (N, C, H, W)."""

    ranks = (4,)
    layout = "(N, C, H, W)"
