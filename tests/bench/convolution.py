"""Single convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import minigrad as mg
from tests.bench.normalization import from_torch
from tests.bench.timing import Ratio, paired


def convolution(ci: int, co: int, side: int, k: int, padding: int) -> Callable[[], Ratio]:
    """Forward and both backwards of one convolution, batch 64."""

    def run() -> Ratio:
        x = torch.randn(64, ci, side, side, requires_grad=True)
        w = (torch.randn(co, ci, k, k) / (ci * k * k) ** 0.5).requires_grad_()
        g = torch.randn_like(F.conv2d(x, w, padding=padding))
        mine, weight, cotangent = from_torch(x, True), from_torch(w, True), from_torch(g)

        @mg.compile
        def all_three(x: mg.Tensor, w: mg.Tensor, g: mg.Tensor) -> list[mg.Tensor]:
            y = mg.nn.conv2d(x, w, padding=padding)
            return [y, *mg.gradients([y], [x, w], [g])]

        def theirs() -> None:
            x.grad = w.grad = None
            F.conv2d(x, w, padding=padding).backward(g)

        name = f"conv {ci}-{co}@{side} k{k} p{padding}, forward+backward"
        return paired(name, lambda: all_three(mine, weight, cotangent), theirs)

    return run
