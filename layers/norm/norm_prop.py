"""Normalization propagation."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from layers import init
from layers.conv import Conv2d
from layers.linear import Linear
from layers.norm.weight_norm import WeightNorm

__all__ = ["NormProp", "NormPropConv2d", "NormPropLinear"]


class NormProp(WeightNorm):
    """A layer with its activation: mean 0 and variance 1 come out, if they go in.

        y = (f(g * (w x) / ||w|| + bias) - E f(Z)) / std f(Z),  Z standard normal

    The inputs of the first layer are to be standardized by the mean and deviation of the whole
    training set: `mg.data.Whitening("zscore", per="channel")` for images.

    Source: Arpit et al. 2016, arXiv:1603.01431, for ReLU; sigmoid and tanh by the same rule.
    Shapes: those of the layer; scale (out,) is g.

    Args:
        layer: Linear, Conv2d, or another with weight and bias.
        activation: f: "relu", "sigmoid" or "tanh"; "linear" for the output layer.
    Init: w normal, bias 0, g so that the Jacobian has singular values of about 1 (for ReLU 1/1.21).
        At that g the mean of y is not 0 but, for ReLU, -0.12, and its deviation 0.83.
    State: none; training and eval are alike, at any size of batch.
    Raises: ValueError for another activation.
    """

    def __init__(self, layer: Any, activation: str = "relu"):
        super().__init__(layer)
        self.activation = activation
        init.normal(layer.weight)
        init.constant(self.scale, mg.nn.propagation(activation).gain)
        if layer.bias is not None:
            init.zeros(layer.bias)

    def forward(self, *args: Any) -> Any:
        return mg.nn.propagate(super().forward(*args), self.activation)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class NormPropLinear(NormProp):
    """`NormProp` of a fully connected layer, y (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, activation: str = "relu"):
        super().__init__(Linear(in_features, out_features), activation)


class NormPropConv2d(NormProp):
    """`NormProp` of a convolution; the arguments after `activation` are those of `Conv2d`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
        activation: str = "relu", **options: Any,
    ):  # fmt: skip
        super().__init__(Conv2d(in_channels, out_channels, kernel_size, **options), activation)
