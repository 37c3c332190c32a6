"""Root-mean-square normalization."""

from __future__ import annotations

from collections.abc import Sequence

import minigrad as mg
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["RMSNorm"]


class RMSNorm(Module):
    """Each sample divided by its root mean square over the trailing axes; nothing is centred.

        y = x / sqrt(mean(x**2) + eps) * weight

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    Shapes: x (..., *normalized_shape) -> y same; weight of normalized_shape.

    Args:
        normalized_shape: extents of the axes that the mean is taken over; one number or more.
        eps: added to the mean, so in units of x squared; None is the resolution of x's dtype.
        elementwise_affine: whether there is a weight.
    Raises: ValueError if x does not end in normalized_shape.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ):
        one = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if one else tuple(normalized_shape)
        self.eps = eps
        self.weight = Parameter(mg.ones(self.normalized_shape)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}"
