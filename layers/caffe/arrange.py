"""Caffe's layers that combine, cut and reshape blobs, its inner product, and two functions."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import minigrad as mg
from layers.module import Module, Parameter
from minigrad import Tensor


class InnerProduct(Module):
    """A linear map of all that follows an axis.

        y = x.reshape(..., in) @ weight.T + bias

    Shapes: x (..., *rest) -> y (..., out), with rest of `in` elements from `axis` on; weight
        (out, in), or (in, out) if transposed; bias (out,).

    Args:
        features: in, in elements.
        num_output: out, in elements.
        bias_term: whether there is an offset.
        axis: the first axis of rest.
        transpose: whether weight is stored as (in, out).
    Init: zeros, as Caffe's where no filler is named.
    """

    def __init__(
        self,
        features: int,
        num_output: int,
        bias_term: bool = True,
        axis: int = 1,
        transpose: bool = False,
    ):
        self.axis, self.transpose = axis, transpose
        shape = (features, num_output) if transpose else (num_output, features)
        self.weight = Parameter(mg.zeros(shape))
        self.bias = Parameter(mg.zeros((num_output,))) if bias_term else None

    def forward(self, x: Tensor) -> Tensor:
        first = self.axis % x.ndim
        features = x.reshape((*x.shape[:first], math.prod(x.shape[first:])))
        return mg.nn.linear(features, self.weight.T if self.transpose else self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape}, bias_term={self.bias is not None}"


class Power(Module):
    """y = (shift + scale * x) ** power."""

    def __init__(self, power: float = 1.0, scale: float = 1.0, shift: float = 0.0):
        self.power, self.scale, self.shift = power, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        y = self.shift + self.scale * x
        return y if self.power == 1 else y**self.power

    def extra_repr(self) -> str:
        return f"power={self.power}, scale={self.scale}, shift={self.shift}"


class AbsVal(Module):
    """y = |x|."""

    def forward(self, x: Tensor) -> Tensor:
        return mg.abs(x)


class Eltwise(Module):
    """The elements of several blobs combined.

        SUM   y = coeff[0] * x[0] + coeff[1] * x[1] + ...
        PROD  y = x[0] * x[1] * ...
        MAX   y = max(x[0], x[1], ...)

    Differs: blobs that share a maximum share its gradient, which Caffe gives to the last of them.

    Args:
        operation: "SUM", "PROD" or "MAX".
        coeff: one factor a blob, for SUM; empty: all 1.
    """

    def __init__(self, operation: str = "SUM", coeff: Sequence[float] = ()):
        if operation not in ("SUM", "PROD", "MAX"):
            raise ValueError(f"caffe.Eltwise: expected SUM, PROD or MAX, got {operation!r}.")
        if coeff and operation != "SUM":
            raise ValueError(f"caffe.Eltwise: expected coeff for SUM alone, got {operation}.")
        self.operation, self.coeff = operation, tuple(coeff)

    def forward(self, *xs: Tensor) -> Tensor:
        if self.coeff and len(self.coeff) != len(xs):
            raise ValueError(
                f"caffe.Eltwise: expected one coeff for each of {len(xs)} blobs, got {self.coeff}."
            )
        if any(x.shape != xs[0].shape for x in xs):
            shapes = ", ".join(str(x.shape) for x in xs)
            raise ValueError(f"caffe.Eltwise: expected blobs of one shape, got {shapes}.")
        if self.operation == "SUM":
            coeff = self.coeff or (1,) * len(xs)
            scaled = [x if c == 1 else c * x for x, c in zip(xs, coeff, strict=True)]
            return functools.reduce(mg.add, scaled)
        return functools.reduce(mg.multiply if self.operation == "PROD" else mg.maximum, xs)

    def extra_repr(self) -> str:
        return repr(self.operation) + (f", coeff={self.coeff}" if self.coeff else "")


class Concat(Module):
    """Blobs one behind the other along an axis."""

    def __init__(self, axis: int = 1):
        self.axis = axis

    def forward(self, *xs: Tensor) -> Tensor:
        return mg.concat(xs, axis=self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Slice(Module):
    """A blob cut along an axis: at `slice_point`, or into as many equal parts as are asked for."""

    def __init__(self, parts: int, axis: int = 1, slice_point: Sequence[int] = ()):
        self.parts, self.axis, self.slice_point = parts, axis, tuple(slice_point)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        n = x.shape[self.axis]
        points = self.slice_point or tuple(range(n // self.parts, n, max(n // self.parts, 1)))
        ends = (0, *points, n)
        if len(ends) != self.parts + 1 or min(b - a for a, b in itertools.pairwise(ends)) < 1:
            raise ValueError(
                f"caffe.Slice: expected an extent that {self.parts} parts divide, or slice points "
                f"inside it, got {n} and {self.slice_point}."
            )
        return mg.split(x, [b - a for a, b in itertools.pairwise(ends)], axis=self.axis)

    def extra_repr(self) -> str:
        return f"{self.parts}, axis={self.axis}, slice_point={self.slice_point}"


class Reshape(Module):
    """The axes [axis, axis + num_axes) replaced by others.

    Args:
        dims: their extents: 0 takes that of x, one -1 what is left over.
        axis: the first axis that is replaced.
        num_axes: how many are; -1: all from `axis` on.
    """

    def __init__(self, dims: Sequence[int], axis: int = 0, num_axes: int = -1):
        self.dims, self.axis, self.num_axes = tuple(dims), axis, num_axes

    def forward(self, x: Tensor) -> Tensor:
        first = self.axis if self.axis >= 0 else x.ndim + self.axis + 1
        stop = x.ndim if self.num_axes < 0 else first + self.num_axes
        dims = [x.shape[first + i] if d == 0 else d for i, d in enumerate(self.dims)]
        return x.reshape((*x.shape[:first], *dims, *x.shape[stop:]))

    def extra_repr(self) -> str:
        return f"{self.dims}, axis={self.axis}, num_axes={self.num_axes}"


class Split(Module):
    """The same blob under several names; `copies` 0 takes blobs that nobody looks at."""

    def __init__(self, copies: int):
        self.copies = copies

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        return xs[:1] * self.copies
