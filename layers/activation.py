"""Nonlinearities as modules; the formulas are in `minigrad.nn`."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module
from minigrad import Tensor

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Identity",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]


class Identity(Module):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ReLU(Module):
    """y = max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.relu(x)


class LeakyReLU(Module):
    """y = x where x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01):
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """y = x where x > 0, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0):
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SELU(Module):
    """The self-normalizing ELU: fixed scale and alpha (Klambauer et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.selu(x)


class GELU(Module):
    """y = x * Phi(x), Phi the normal distribution function."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.gelu(x)


class SiLU(Module):
    """y = x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.silu(x)


class Sigmoid(Module):
    """y = 1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.sigmoid(x)


class Tanh(Module):
    """y = tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.tanh(x)


class Softplus(Module):
    """y = log(1 + exp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.softplus(x)


class _AlongAxis(Module):
    def __init__(self, dim: int = -1):
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """y = exp(x) / sum(exp(x)) along axis `dim`."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.softmax(x, self.dim)


class LogSoftmax(_AlongAxis):
    """y = log(softmax(x)) along axis `dim`, without overflow."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.log_softmax(x, self.dim)
