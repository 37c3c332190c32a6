"""What BatchNorm and InstanceNorm have in common: parameters and statistics of each channel."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer, Module, Parameter
from minigrad import Tensor


class ChannelNorm(Module):
    """The state of a normalization with channels at axis 1, and the checks of its arguments.

    Shapes: x (N, C, *spatial); weight, bias, running_* (C,).

    Args:
        num_features: C, the extent of axis 1.
        eps: added to the variance, so in units of x squared; >= 0.
        momentum: weight of the new batch, in [0, 1]:
            running = (1 - momentum) * running + momentum * batch; a decay of 0.99 is momentum=0.01.
            None: the plain average of all batches.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics; without, eval uses x's own.
        allow_degenerate: accept one value per statistic: y = bias, no gradient to x or weight.
    """

    ranks: tuple[int, ...] = ()  # the accepted numbers of axes; empty: any from 2
    layout = "(N, C, *spatial)"

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        allow_degenerate: bool,
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

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.ndim < 2 or (self.ranks and x.ndim not in self.ranks):
            raise ValueError(
                f"{name}: expected x of shape {self.layout}, got {x.shape}. "
                f"The class without a number takes any rank, channels at axis 1."
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{name}: expected {self.num_features} channels at axis 1, got x of shape "
                f"{x.shape}. Pass {name}({x.shape[1]}) or transpose x."
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.weight is not None}, "
            f"track_running_stats={self.running_mean is not None}"
        )
