"""Caffe's layers of factors and offsets along some axes."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module, Parameter
from minigrad import Tensor

__all__ = ["Bias", "Scale"]


class Scale(Module):
    """A factor, and if asked for an offset, along some axes.

        y = x * weight + bias

    Shapes: x with the extents `shape` from `axis` on -> y same; weight, bias of `shape`.

    Args:
        shape: extents of x that weight has: (C,) for a factor a channel, () for one in all.
        axis: the first of them in x.
        bias_term: whether there is an offset.
        learned: False: the factor is the second argument of the call, not a parameter.
    Init: weight 1, bias 0.
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        axis: int = 1,
        bias_term: bool = False,
        learned: bool = True,
    ):
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.axis = axis
        self.weight = Parameter(mg.ones(self.shape)) if learned else None
        self.bias = Parameter(mg.zeros(self.shape)) if bias_term else None

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        weight = self.weight if factor is None else factor
        if weight is None or (factor is not None and self.weight is not None):
            raise ValueError(
                f"caffe.Scale: expected a factor as second input if it is not learned, and only "
                f"then, got learned={self.weight is not None}."
            )
        y = x * _along(weight, x, self.axis)
        return y if self.bias is None else y + _along(self.bias, x, self.axis)

    def extra_repr(self) -> str:
        return f"{self.shape}, axis={self.axis}, bias_term={self.bias is not None}"


class Bias(Module):
    """An offset along some axes, y = x + bias; shape and axis as those of `Scale`."""

    def __init__(self, shape: int | tuple[int, ...], axis: int = 1):
        self.axis = axis
        self.bias = Parameter(mg.zeros((shape,) if isinstance(shape, int) else tuple(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return x + _along(self.bias, x, self.axis)

    def extra_repr(self) -> str:
        return f"{self.bias.shape}, axis={self.axis}"


def _along(t: Tensor, x: Tensor, axis: int) -> Tensor:
    """`t`, whose axes are those of x from `axis` on, shaped so that it broadcasts to x."""
    first = axis % x.ndim
    if x.shape[first : first + t.ndim] != t.shape:
        raise ValueError(
            f"caffe.Scale: expected x with extents {t.shape} from axis {axis} on, got {x.shape}."
        )
    return t.reshape((*t.shape, *(1,) * (x.ndim - first - t.ndim)))
