"""The fully connected layer."""

from __future__ import annotations

import math

import minigrad as mg
from layers import init
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["Linear"]


class Linear(Module):
    """A linear map with an offset.

        y = x @ weight.T + bias

    Shapes: x (..., in_features) -> y (..., out_features); weight (out, in), bias (out,).

    Args:
        in_features, out_features: sizes, in elements.
        bias: whether there is an offset; leave it out before a batch normalization.
    Init: weight and bias U(-1/sqrt(in), 1/sqrt(in)), as PyTorch's.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(mg.zeros((out_features, in_features)))
        self.bias = Parameter(mg.zeros((out_features,))) if bias else None
        reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


def reset(weight: Parameter, bias: Parameter | None) -> None:
    """PyTorch's initial values for linear and convolution layers: all within 1/sqrt(fan_in)."""
    init.kaiming_uniform(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(init.fans(weight.shape)[0])
        init.uniform(bias, -bound, bound)
