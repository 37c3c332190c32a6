"""Spectral normalization."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from layers.module import Buffer
from layers.norm.reparametrized import Reparametrized
from minigrad import Tensor

__all__ = ["SpectralNorm"]


class SpectralNorm(Reparametrized):
    """A layer whose weight, as a matrix of one row for each output, has largest singular value 1.

        weight = W / sigma,  sigma = u' W v
        v = W' u / ||W' u||,  u = W v / ||W v||  before that, in training

    Source: Miyato et al. 2018, arXiv:1802.05957.
    Shapes: those of the layer; u (out,), v (in * kernel,).

    Args:
        layer: Linear, Conv2d, or another with a weight W (out, in, *kernel).
        iterations: steps of the power iteration in each forward.
        eps: the least norm that is divided by, in units of W.
    State: u and v, the singular vectors as far as they are known, are constants to a gradient. They
        start after 15 steps. Training improves them, eval uses them as they are.
    """

    def __init__(self, layer: Any, iterations: int = 1, eps: float = 1e-12):
        super().__init__(layer)
        self.iterations, self.eps = iterations, eps
        rows, w = self.trained.shape[0], self.trained
        self.u = Buffer(mg.random.normal((rows,), dtype=w.dtype, device=w.device))
        self.v = Buffer(mg.zeros((w.size // rows,), dtype=w.dtype, device=w.device))
        self._improve(15)

    @property
    def weight(self) -> Tensor:
        return mg.nn.spectral_norm(self.trained, self.u, self.v)

    def forward(self, *args: Any) -> Any:
        if self.training:
            self._improve(self.iterations)
        return super().forward(*args)

    def _improve(self, iterations: int) -> None:
        u, v = self.u, self.v
        for _ in range(iterations):
            u, v = mg.nn.power_iteration(self.trained, u, self.eps)
        self.u.assign(u)
        self.v.assign(v)

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, eps={self.eps}"
