"""Layers that work with a function of their weight instead of the weight."""

from __future__ import annotations

from typing import Any

from layers.functional import functional_call
from layers.module import Module, Parameter
from minigrad import Tensor


class Reparametrized(Module):
    """A wrapped layer with another weight than the one that is trained; subclasses say which.

    Attributes:
        layer: the wrapped layer, with its own weight and bias.
    """

    def __init__(self, layer: Any):
        if not isinstance(getattr(layer, "weight", None), Parameter):
            raise TypeError(
                f"{type(self).__name__}: expected a layer with a weight, got "
                f"{type(layer).__name__}. Wrap Linear, Conv2d or the like."
            )
        self.layer = layer

    @property
    def trained(self) -> Tensor:
        """The weight that is trained: the wrapped layer's own."""
        return self.layer.weight

    @property
    def weight(self) -> Tensor:
        """The weight that the layer works with."""
        raise NotImplementedError

    def forward(self, *args: Any) -> Any:
        return functional_call(self.layer, {"weight": self.weight}, *args)
