"""Activations that keep mean 0 and variance 1 of what is normally distributed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from minigrad.nn.activations import relu, sigmoid, tanh
from minigrad.nn.arguments import floating
from minigrad.nn.standardization import widen

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["propagate", "propagation"]


class Propagation(NamedTuple):
    """An activation f and what it makes of a standard normal Z, all dimensionless."""

    f: Callable[[Tensor], Tensor]
    mean: float  # E f(Z)
    std: float  # of f(Z)
    slope: float  # sqrt(E f'(Z)^2)

    @property
    def gain(self) -> float:
        """The scale before f at which the Jacobian of a layer has singular values of about 1."""
        return self.std / self.slope


PROPAGATIONS = {
    "relu": Propagation(
        relu, 1 / math.sqrt(2 * math.pi), math.sqrt((1 - 1 / math.pi) / 2), math.sqrt(0.5)
    ),
    "sigmoid": Propagation(sigmoid, 0.5, 0.20827634493166276, 0.21174569972066581),
    "tanh": Propagation(tanh, 0.0, 0.62792873034910672, 0.68147113104537909),
    "linear": Propagation(lambda x: x, 0.0, 1.0, 1.0),
}


def propagation(activation: str) -> Propagation:
    """The constants of an activation.

    Raises:
        ValueError: of another than relu, sigmoid, tanh and linear.
    """
    if activation not in PROPAGATIONS:
        raise ValueError(
            f"propagation: expected activation {', '.join(PROPAGATIONS)}, got {activation!r}."
        )
    return PROPAGATIONS[activation]


def propagate(x: Tensor, activation: str = "relu") -> Tensor:
    """(f(x) - E f(Z)) / std f(Z), Z standard normal: mean 0 and variance 1 again, if x is like Z.

    Source: Arpit et al. 2016, arXiv:1603.01431, for relu.

    Args:
        activation: f, one of relu, sigmoid, tanh and linear (no change).
    """
    floating("propagate", x)
    f, mean, std, _ = propagation(activation)
    return ((f(widen(x)) - mean) * (1 / std)).astype(x.dtype)
