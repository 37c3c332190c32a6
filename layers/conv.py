"""The convolution layer."""

from __future__ import annotations

import minigrad as mg
from layers.linear import reset
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["Conv2d"]

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """One number for both spatial axes, or one each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class Conv2d(Module):
    """Two-dimensional cross-correlation, as everyone calls convolution.

        y[n, o, i, j] = bias[o] + sum over c, u, v of
            weight[o, c, u, v] * x[n, c, stride * i + dilation * u - padding, ...]

    Shapes: x (N, C, H, W) -> y (N, out_channels, H', W') with
        H' = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1;
        weight (out_channels, in_channels / groups, *kernel_size), bias (out_channels,).

    Args:
        in_channels, out_channels: channels.
        kernel_size, stride, padding, dilation: one number, or one per spatial axis, in pixels;
            padding may be "same" or "valid".
        groups: output channels see only their own group of in_channels / groups channels.
        bias: whether there is an offset; leave it out before a batch normalization.
    Init: weight and bias U(-b, b) with b = 1 / sqrt(fan_in), as PyTorch's.
    Raises: ValueError if groups does not divide both channel counts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: expected groups to divide in_channels and out_channels, got groups="
                f"{groups} for {in_channels} and {out_channels}. Choose a common divisor."
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding = padding if isinstance(padding, str) else pair(padding)
        self.dilation = pair(dilation)
        self.weight = Parameter(mg.zeros((out_channels, in_channels // groups, *self.kernel_size)))
        self.bias = Parameter(mg.zeros((out_channels,))) if bias else None
        reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        shown += f", stride={self.stride}"
        if self.padding != (0, 0):
            shown += f", padding={self.padding!r}"
        if self.dilation != (1, 1):
            shown += f", dilation={self.dilation}"
        if self.groups != 1:
            shown += f", groups={self.groups}"
        return shown if self.bias is not None else f"{shown}, bias=False"
