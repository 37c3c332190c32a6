"""Regularization by noise: dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad import ops, random
from minigrad.graph import zeros_like
from minigrad.nn.arguments import floating, fraction
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.random import Generator
    from minigrad.tensor import Tensor

__all__ = ["dropout"]


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None
) -> Tensor:
    """Zero each element with probability p, divide the others by 1 - p; not training: identity.

    Source: Srivastava et al. 2014, in the inverted form: nothing is rescaled at inference.

    Args:
        generator: of the random bits; default: the one that `minigrad.random.seed` seeds.
    """
    node = floating("dropout", x)
    fraction("dropout", "p", p)
    if not training or p == 0:
        return wrap(node)
    if p == 1:
        return wrap(node * 0.0)
    kept = random.bernoulli(node.shape, 1 - p, device=node.device, generator=generator).node
    return wrap(ops.where(kept, node * (1 / (1 - p)), zeros_like(node)))
