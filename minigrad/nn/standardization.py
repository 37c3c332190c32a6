"""What every normalization is made of: `standardize` a set of values by its own moments.

[Note: centred on a sample] Normalization does not change when a constant is added to x, so it may
subtract one before anything else, and `centre` subtracts one element of each set. In float32 that
matters: at mean / std = 10 000 the mean itself is rounded to a thousandth of the deviation, and
that error spoils x - mean and its derivative in the fourth digit. Relative to a sample the mean is
of the size of the deviation, and forward and backward are right to the last digits at any mean. The
`barrier` keeps the algebra from undoing it. Price: one subtraction an element, in a fused kernel.

[Note: rounded once] A normalization widens x to `accumulator(x.dtype)` (float32 for the halves),
computes everything in it, and rounds once, after weight and bias: `affine` is its last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from minigrad import ops
from minigrad.dtype import DType, accumulator
from minigrad.functions.arguments import (
    as_accumulator,
    as_type,
    count,
    drop_axes,
    expand_to,
    some_axes,
)
from minigrad.functions.elementwise import rsqrt, where
from minigrad.functions.statistical import mean as mean_of
from minigrad.graph import Node
from minigrad.nn.arguments import floating
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Axis
    from minigrad.tensor import Tensor

__all__ = ["Standardized", "affine", "centre", "moments", "normalize", "standardize", "unit_rms"]


class Standardized(NamedTuple):
    """What `standardize` found, in the accumulator's dtype; statistics keep their axes."""

    x_hat: Tensor  # (x - mean) / sqrt(var + eps)
    centred: Tensor  # x - sample
    sample: Tensor  # one element of each set
    offset: Tensor  # mean - sample
    var: Tensor  # biased
    n: int  # elements of a set

    @property
    def mean(self) -> Tensor:
        """The mean of each set."""
        return self.offset + self.sample

    @property
    def deviation(self) -> Tensor:
        """How far each element is from the mean of its set, x - mean."""
        return self.centred - self.offset


def standardize(
    x: Tensor,
    axes: Axis,
    eps: float = 1e-5,
    allow_degenerate: bool = False,
    caller: str = "standardize",
) -> Standardized:
    """Centre on a sample, take the moments, normalize by them. See [Note: rounded once].

        x_hat = (x - mean) / sqrt(var + eps)

    A normalization is `affine(standardize(x, axes, eps).x_hat, weight, bias, x.dtype)`; they differ
    in the axes. One with another denominator starts at `deviation`.

    Args:
        axes: that a set extends along.
        eps: as in `normalize`.
        allow_degenerate: accept sets of one value: x_hat is 0, and passes no gradient.
        caller: that error messages name.
    Raises: ValueError if a set has one value.
    """
    node = floating(caller, x)
    n = count(node, some_axes(caller, axes, node.ndim))
    if n == 1 and node.size and not allow_degenerate:
        raise ValueError(
            f"{caller}: expected more than one value for each statistic, got one from x of shape "
            f"{node.shape}. Use a larger batch or image, or allow_degenerate=True (x_hat is then "
            f"0); a batch normalization in eval() needs no batch."
        )
    z, sample = centre(widen(x), axes)
    mean, var = moments(z, axes, keepdims=True)
    return Standardized(normalize(z, mean, var, eps), z, sample, mean, var, n)


def centre(x: Tensor, axes: Axis) -> tuple[Tensor, Tensor]:
    """x minus one element of each set, and that element. See [Note: centred on a sample].

    `normalize(z, *moments(z, axes))` equals `normalize(x, *moments(x, axes))` for the z returned,
    and is more accurate; the mean of x is that of z plus the element.

    Args:
        axes: that a set extends along. The element keeps them with extent 1.
    """
    node = floating("centre", x)
    over = some_axes("centre", axes, node.ndim)
    if count(node, over) == 0:
        return wrap(node), wrap(ops.sum_(node, axes=over))
    return wrap(_centred(node, over)), wrap(_sample(node, over))


def moments(x: Tensor, axes: Axis, keepdims: bool = False) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance over `axes`, mean((x - mean)**2).

    Precision: centred on a sample, then two passes, so an offset of x costs no accuracy of the
    variance. To normalize, `centre` x first: then x - mean keeps its accuracy too.
    """
    node = floating("moments", x)
    over = some_axes("moments", axes, node.ndim)
    n = count(node, over)
    if n == 0 or _is_centred(node, over):
        z, sample = node, None
    else:
        z, sample = _centred(node, over), _sample(node, over)
    z = as_accumulator(z)
    mean = ops.sum_(z, axes=over) / n
    deviation = z - expand_to(mean, z.shape)
    var = ops.sum_(deviation * deviation, axes=over) / n
    if sample is not None:
        mean = mean + as_accumulator(sample)
    mean, var = as_type(mean, node.dtype), as_type(var, node.dtype)
    if not keepdims:
        mean, var = drop_axes(mean, over), drop_axes(var, over)
    return wrap(mean), wrap(var)


def normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, rounded once, to x's dtype.

    Shapes: all broadcast to that of x.

    Args:
        eps: in units of x squared, 0 or more. With 0, what has no variance gives 0, not NaN.
    """
    x_hat = (widen(x) - mean) * _inverse_root("normalize", var, eps)
    return affine(x_hat, weight, bias, x.dtype)


def unit_rms(x: Tensor, axes: Axis, eps: float, caller: str = "unit_rms") -> Tensor:
    """x / sqrt(mean(x**2) + eps) over `axes`, in the accumulator's dtype: scaled, not centred.

    Args:
        eps: as in `normalize`.
    """
    x = widen(x)
    return x * _inverse_root(caller, mean_of(x * x, axis=axes, keepdims=True), eps)


def affine(x_hat: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: DType) -> Tensor:
    """x_hat * weight + bias, rounded to `dtype`: the last step of a normalization."""
    if weight is not None:
        x_hat = x_hat * weight
    return (x_hat if bias is None else x_hat + bias).astype(dtype)


def widen(x: Tensor) -> Tensor:
    """x in the dtype that its statistics are taken in: float32 of a half."""
    return x.astype(accumulator(x.dtype))


def _inverse_root(caller: str, var: Tensor, eps: float) -> Tensor:
    """1 / sqrt(var + eps), and 0 where that would be infinite."""
    if not eps >= 0:
        raise ValueError(f"{caller}: expected eps of 0 or more, got {eps}.")
    if eps > 0:
        return rsqrt(var + eps)
    constant = var == 0
    return where(constant, 0.0, rsqrt(where(constant, 1.0, var)))


def _sample(x: Node, axes: tuple[int, ...]) -> Node:
    """The first element of each set, as a constant of differentiation."""
    stops = tuple([1 if a in axes else n for a, n in enumerate(x.shape)])
    first = ops.slice_(x, starts=(0,) * x.ndim, stops=stops, steps=(1,) * x.ndim)
    return ops.stop_gradient(first)


def _centred(x: Node, axes: tuple[int, ...]) -> Node:
    return ops.barrier(x - expand_to(_sample(x, axes), x.shape))


def _is_centred(x: Node, axes: tuple[int, ...]) -> bool:
    """Whether `centre` made x: to centre it again, on a sample that is 0, would only cost."""
    if x.op is not ops.barrier or x.inputs[0].op is not ops.sub:
        return False
    return _centred(x.inputs[0].inputs[0], axes) is x  # equal nodes are one object
