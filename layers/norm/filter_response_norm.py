"""Filter response normalization."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["FilterResponseNorm"]


class FilterResponseNorm(Module):
    """Each channel of each sample divided by its root mean square; then a learned threshold (TLU).

        y = max(x / sqrt(mean(x**2) + eps) * weight + bias, threshold)

    Source: Singh & Krishnan 2019, arXiv:1911.09737. No activation follows.
    Shapes: x (N, C, *spatial) -> y same; weight, bias, threshold, extra_eps (C,).

    Args:
        num_features: C, the extent of axis 1.
        eps: in units of x squared, > 0.
        learn_eps: add |extra_eps|, a parameter that starts at 1e-4: for maps of one pixel, of which
            only the sign would be left.
    State: no statistics; training and eval are alike, at any size of batch.
    Raises: ValueError if C differs from num_features.
    """

    def __init__(self, num_features: int, eps: float = 1e-6, learn_eps: bool = False):
        if not eps > 0:
            raise ValueError(f"FilterResponseNorm.eps: expected a number > 0, got {eps}.")
        self.num_features, self.eps, shape = num_features, eps, (num_features,)
        self.weight, self.bias = Parameter(mg.ones(shape)), Parameter(mg.zeros(shape))
        self.threshold = Parameter(mg.zeros(shape))
        self.extra_eps = Parameter(mg.full(shape, 1e-4)) if learn_eps else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[1] != self.num_features:
            raise ValueError(
                f"FilterResponseNorm: expected x of shape (N, {self.num_features}, *spatial), got "
                f"{x.shape}. Pass the extent of axis 1 as num_features."
            )
        eps = self.eps if self.extra_eps is None else self.eps + mg.abs(self.extra_eps)
        return mg.nn.filter_response_norm(x, self.weight, self.bias, self.threshold, eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, learn_eps={self.extra_eps is not None}"
