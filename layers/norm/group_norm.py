"""Group normalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["GroupNorm"]


class GroupNorm(Module):
    """Group normalization: each sample over groups of consecutive channels and all pixels.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Wu & He 2018, arXiv:1803.08494.
    Shapes: x (N, C, *spatial) -> y same; weight, bias (C,).

    Args:
        num_groups: a divisor of num_channels. 1 has the statistics of layer normalization,
            num_channels those of instance normalization.
        num_channels: C, the extent of axis 1.
        eps: added to the variance, so in units of x squared; >= 0.
        affine: whether there are weight and bias, one of each per channel.
    Raises: ValueError unless num_groups divides num_channels, and if a group has one value.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True):
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: expected num_groups to divide num_channels, got {num_groups} groups "
                f"of {num_channels} channels. Choose a divisor."
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(mg.ones((num_channels,))) if affine else None
        self.bias = Parameter(mg.zeros((num_channels,))) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"GroupNorm: expected {self.num_channels} channels at axis 1, got x of shape "
                f"{x.shape}. Pass the extent of that axis as num_channels, or transpose x."
            )
        return mg.nn.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={affine}"
