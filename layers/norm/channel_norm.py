"""What BatchNorm and InstanceNorm have in common: parameters and statistics of each channel."""

from __future__ import annotations

from typing import Self

import minigrad as mg
from layers.module import Buffer, Module, Parameter
from minigrad import Tensor


class Default(float):
    """The default of an argument, told apart from the same number given by the caller."""


MOMENTUM = Default(0.1)


def weight_of_new(caller: str, momentum: float | None, decay: float | None) -> float | None:
    """The momentum, or 1 - decay: the weight of the new batch; None for the plain average.

    Raises: ValueError for one out of [0, 1], or both.
    """
    if decay is not None and not isinstance(momentum, Default):
        raise ValueError(
            f"{caller}: expected momentum or decay, got momentum={momentum} and decay={decay}. "
            f"A decay d is momentum=1 - d."
        )
    weight = momentum if decay is None else 1 - decay
    if weight is not None and not 0 <= weight <= 1:
        name = "momentum" if decay is None else "decay"
        raise ValueError(
            f"{caller}.{name}: expected a weight in [0, 1]{' or None' * (decay is None)}, got "
            f"{momentum if decay is None else decay}. A decay d is momentum=1 - d."
        )
    return weight


class ChannelNorm(Module):
    """The state of a normalization with channels at axis 1, and the checks of its arguments.

    Shapes: x (N, C, *spatial); weight, bias, running_* (C,).

    Args:
        num_features: C, the extent of axis 1.
        eps: added to the variance, so in units of x squared; >= 0.
        momentum: weight of the new batch, in [0, 1]:
            running = (1 - momentum) * running + momentum * batch.
            None: the plain average of all batches.
        affine: whether there are weight and bias.
        track_running_stats: whether there are running statistics; without, eval uses x's own.
        allow_degenerate: accept one value per statistic: y = bias, no gradient to x or weight.
        decay: the weight of the old statistics, 1 - momentum, in place of momentum.
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
        decay: float | None,
    ):
        if eps < 0:
            raise ValueError(f"{type(self).__name__}.eps: expected a number >= 0, got {eps}.")
        self.num_features, self.eps = num_features, eps
        self.momentum = weight_of_new(type(self).__name__, momentum, decay)
        self.allow_degenerate, self.frozen_statistics = allow_degenerate, False
        shape, track = (num_features,), track_running_stats
        self.weight = Parameter(mg.ones(shape)) if affine else None
        self.bias = Parameter(mg.zeros(shape)) if affine else None
        self.running_mean = Buffer(mg.zeros(shape)) if track else None
        self.running_var = Buffer(mg.ones(shape)) if track else None
        self.num_batches_tracked = Buffer(mg.tensor(0, dtype=mg.int64)) if track else None

    def freeze_statistics(self, frozen: bool = True) -> Self:
        """Normalize by the running statistics in training, too, and keep them as they are.

        Weight and bias are still trained; `freeze` holds those as well.

        Raises: ValueError where there are no running statistics.
        """
        if self.running_mean is None:
            raise ValueError(
                f"{type(self).__name__}.freeze_statistics: expected running statistics, got none. "
                f"Make the layer with track_running_stats=True."
            )
        self.frozen_statistics = frozen
        return self

    @property
    def learns_statistics(self) -> bool:
        """Whether x is normalized by its own statistics, and the running ones follow them."""
        return self.training and not self.frozen_statistics

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
