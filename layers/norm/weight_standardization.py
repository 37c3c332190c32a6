"""Weight standardization."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from layers.norm.reparametrized import Reparametrized
from minigrad import Tensor

__all__ = ["WeightStandardization"]


class WeightStandardization(Reparametrized):
    """A layer, mostly a convolution before a normalization, with standardized filters.

        weight = (v - mean(v)) / sqrt(var(v) + eps), for each filter

    Source: Qiao et al. 2019, arXiv:1903.10520.
    Differs: eps is inside of the root; the paper divides by std + 1e-5, whose derivative at a
        constant filter is infinite. The variance is biased.
    Shapes: those of the layer.

    Args:
        layer: Conv2d, Linear, or another with a weight (out, in, *kernel).
        eps: in units of v squared, >= 0. A constant filter becomes 0.
    State: none of its own; training and eval are alike.
    """

    def __init__(self, layer: Any, eps: float = 1e-10):
        super().__init__(layer)
        self.eps = eps

    @property
    def weight(self) -> Tensor:
        return mg.nn.weight_standardization(self.trained, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
