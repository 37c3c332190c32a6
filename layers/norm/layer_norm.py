"""Layer normalization."""

from __future__ import annotations

from collections.abc import Sequence

import minigrad as mg
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["LayerNorm"]


class LayerNorm(Module):
    """Layer normalization of each sample over its trailing axes.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Ba, Kiros, Hinton 2016, arXiv:1607.06450.
    Shapes: x (..., *normalized_shape) -> y same; weight, bias of normalized_shape.

    Args:
        normalized_shape: extents of the axes that a sample is normalized over; one number or more.
        eps: added to the variance, so in units of x squared; >= 0.
        elementwise_affine: whether there is a weight.
        bias: whether there is a bias beside the weight.
    Raises: ValueError if x does not end in normalized_shape, or that has one element.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ):
        one = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if one else tuple(normalized_shape)
        self.eps = eps
        self.weight = Parameter(mg.ones(self.normalized_shape)) if elementwise_affine else None
        with_bias = elementwise_affine and bias
        self.bias = Parameter(mg.zeros(self.normalized_shape)) if with_bias else None

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}"
