"""Weights as functions of what is trained: their length apart, standardized, or bounded.

Like the normalizations of activations they compute in `accumulator(x.dtype)` and round once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad.execution.modes import no_grad
from minigrad.functions.arguments import one_axis
from minigrad.functions.elementwise import maximum, rsqrt, sqrt, where
from minigrad.functions.statistical import sum as sum_of
from minigrad.nn.arguments import floating
from minigrad.nn.standardization import standardize, widen

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["power_iteration", "spectral_norm", "weight_norm", "weight_standardization"]


def weight_norm(v: Tensor, g: Tensor, axis: int = 0) -> Tensor:
    """g * v / ||v||, with one g and one norm for each output. arXiv:1602.07868.

    Shapes: v (out, in, *kernel), g (out,) -> as v.

    Args:
        axis: along which the outputs are; None: v has one norm in all, and g is a scalar.
    """
    others = _others("weight_norm", v, axis)
    one_each = () if axis is None else (v.shape[axis],)
    if g.shape != one_each:
        raise ValueError(
            f"weight_norm: expected g of shape {one_each}, one for each index of axis {axis} of v, "
            f"got {g.shape}."
        )
    wide = widen(v)
    square = sum_of(wide * wide, axis=others, keepdims=True)
    return (wide * (widen(g).reshape(square.shape) * rsqrt(square))).astype(v.dtype)


def weight_standardization(weight: Tensor, eps: float = 1e-10) -> Tensor:
    """(W - mean) / sqrt(var + eps) of each filter. Qiao et al. 2019, arXiv:1903.10520.

    Differs: the paper divides by std + 1e-5, whose derivative at a constant filter is infinite.
    Shapes: weight (out, in, *kernel) -> same.

    Args:
        eps: in units of W squared.
    """
    axes = _others("weight_standardization", weight, 0)
    whole = standardize(weight, axes, eps, caller="weight_standardization")
    return whole.x_hat.astype(weight.dtype)


def spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """W / (u' W v): its largest singular value is 1, if u and v belong to it. arXiv:1802.05957.

    Where u' W v is 0, as of a weight of zeros, W stays as it is.

    Shapes: weight (out, in, *kernel), as a matrix W of `out` rows; u (out,), v (in * kernel,).
    """
    wide = widen(weight)
    matrix = wide.reshape((wide.shape[0], -1))
    sigma = sum_of(u.reshape((-1, 1)) * matrix * v)
    return (wide / where(sigma == 0, 1.0, sigma)).astype(weight.dtype)


@no_grad()
def power_iteration(weight: Tensor, u: Tensor, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """One step from u towards the singular vectors u, v of the largest singular value.

        v = W' u / ||W' u||,  u = W v / ||W v||

    Args:
        eps: the least norm that is divided by, in units of W.
    """
    matrix = weight.reshape((weight.shape[0], -1)).astype(u.dtype)
    v = _unit(u @ matrix, eps)
    return _unit(matrix @ v, eps), v


def _unit(x: Tensor, eps: float) -> Tensor:
    return x / maximum(sqrt(sum_of(x * x)), eps)


def _others(caller: str, x: Tensor, axis: int | None) -> tuple[int, ...]:
    """All axes but one."""
    node = floating(caller, x, "weight")
    kept = None if axis is None else one_axis(caller, axis, node.ndim)
    return tuple(a for a in range(node.ndim) if a != kept)
