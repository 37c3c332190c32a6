"""Pooling layers: a window's maximum or mean, or the mean of the whole map."""

from __future__ import annotations

import minigrad as mg
from layers.conv import Pair
from layers.module import Module
from minigrad import Tensor

__all__ = ["AvgPool2d", "GlobalAvgPool2d", "MaxPool2d"]


class _Pool2d(Module):
    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0):
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """The largest value of each window.

    Shapes: x (N, C, H, W) -> y (N, C, H', W') with
        H' = floor((H + 2 padding - kernel_size) / stride) + 1.

    Args:
        kernel_size: one number, or one per spatial axis, in pixels.
        stride: likewise; None is kernel_size.
        padding: likewise; positions on each side that never win.
    """

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool2d):
    """The mean of each window, padding counted as zeros.

    Shapes and arguments: as MaxPool2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class GlobalAvgPool2d(Module):
    """The mean of each channel's map, for inputs of any size.

        y[n, c] = mean over h, w of x[n, c, h, w]

    Source: Lin, Chen, Yan 2013, "Network in Network", arXiv:1312.4400.
    Shapes: x (N, C, H, W) -> y (N, C).
    """

    def forward(self, x: Tensor) -> Tensor:
        return mg.mean(x, axis=(2, 3))
