"""Local response normalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module
from minigrad import Tensor

__all__ = ["LocalResponseNorm"]


class LocalResponseNorm(Module):
    """Each value divided by a power of the mean square around it.

        y = x / (k + alpha / n * sum of x**2 over a window of n) ** beta

    Source: Krizhevsky, Sutskever, Hinton 2012. alpha is divided by n, as in Caffe and PyTorch.
    Shapes: x (N, C, *spatial) -> y same; (N, C, H, W) within channels.

    Args: those of `minigrad.nn.local_response_norm`.
    """

    def __init__(
        self,
        size: int,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        mode: str = "across_channels",
    ):
        self.size, self.alpha, self.beta, self.k, self.mode = size, alpha, beta, k, mode

    def forward(self, x: Tensor) -> Tensor:
        return mg.nn.local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.mode)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, mode={self.mode!r}"
