"""Dropout."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module
from minigrad import Tensor
from minigrad.random import Generator

__all__ = ["Dropout"]


class Dropout(Module):
    """Zero each element with probability p while training, and scale up the others.

        y = x * mask / (1 - p),  mask ~ Bernoulli(1 - p);  y = x in eval

    Source: Srivastava et al. 2014, in the inverted form.

    Args:
        p: the probability of dropping an element, in [0, 1).
        generator: the source of randomness; None takes the global one.
    """

    def __init__(self, p: float = 0.5, generator: Generator | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout.p: expected a probability in [0, 1), got {p}.")
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.dropout(x, self.p, training=self.training, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"
