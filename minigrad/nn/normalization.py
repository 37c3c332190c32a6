"""Normalizations of a tensor by its own statistics: the same `standardize` over different axes.

Parameters and running statistics may have any floating dtype; what is returned has x's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigrad.dtype import PRECISION
from minigrad.functions.manipulation import reshape
from minigrad.functions.statistical import mean as mean_of
from minigrad.graph import Node, Shape
from minigrad.nn.arguments import floating, integer
from minigrad.nn.running import running_pair, update_running
from minigrad.nn.standardization import affine, normalize, standardize, unit_rms

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = [
    "batch_norm",
    "batch_normalization",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]


def batch_normalization(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`normalize` with given statistics: (x - mean) / sqrt(var + eps) * scale + offset.

    Shapes: x (N, C, *spatial); the others (C,), or any shape that broadcasts to that of x.
    """
    mean, var = along_channels(mean, x.ndim), along_channels(var, x.ndim)
    scale = None if scale is None else along_channels(scale, x.ndim)
    offset = None if offset is None else along_channels(offset, x.ndim)
    return normalize(x, mean, var, eps, scale, offset)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
    allow_degenerate: bool = False,
) -> Tensor:
    """Batch normalization over all axes but the channels'.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.
    Shapes: x (N, C, *spatial) -> same; weight, bias, running_* (C,).

    Args:
        training: take the statistics of the batch, and update the running ones (unbiased variance).
        momentum: weight of the new batch: running = (1 - momentum) * running + momentum * batch.
            None: the average of all batches, of which num_batches_tracked is the count.
        allow_degenerate: accept one value per channel: y = bias, no gradient to x or weight.
    State: not training uses running_*, or the batch's statistics where there are none.
    Raises: ValueError if training with one value per channel, or shapes do not fit.
    """
    caller = "batch_norm"
    node = with_channels(caller, x)
    weight, bias = channel_affine(caller, node, weight, bias)
    running = running_pair(caller, node, running_mean, running_var)
    if running is not None and not training:
        mean, var = (along_channels(r, node.ndim) for r in running)
        return normalize(x, mean, var, eps, weight, bias)
    batch = standardize(x, (0, *range(2, node.ndim)), eps, allow_degenerate, caller)
    if running is not None:
        update_running(*running, batch.mean, batch.var, batch.n, momentum, num_batches_tracked)
    return affine(batch.x_hat, weight, bias, x.dtype)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
    allow_degenerate: bool = False,
) -> Tensor:
    """Instance normalization: each channel of each sample over its pixels. arXiv:1607.08022.

    Shapes: x (N, C, *spatial) -> same; weight, bias, running_* (C,).

    Args:
        momentum, num_batches_tracked, allow_degenerate: as in `batch_norm`.
    State: with `use_input_stats` running_* take the mean over N of the statistics; else they are
        used.
    """
    caller = "instance_norm"
    node = with_channels(caller, x)
    running = running_pair(caller, node, running_mean, running_var)
    if not use_input_stats:
        if running is None:
            raise ValueError(
                f"{caller}: expected running_mean and running_var when not using x's own."
            )
        return batch_norm(x, *running, weight, bias, False, momentum, eps)
    weight, bias = channel_affine(caller, node, weight, bias)
    own = standardize(x, tuple(range(2, node.ndim)), eps, allow_degenerate, caller)
    if running is not None and node.shape[0]:
        mean, var = (mean_of(t, axis=0) for t in (own.mean, own.var))
        update_running(*running, mean, var, own.n, momentum, num_batches_tracked)
    return affine(own.x_hat, weight, bias, x.dtype)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    allow_degenerate: bool = False,
) -> Tensor:
    """Group normalization: each sample over groups of consecutive channels. arXiv:1803.08494.

    Shapes: x (N, C, *spatial) -> same; weight, bias (C,).

    Args:
        allow_degenerate: accept groups of one value, which give bias.
    Raises: ValueError unless num_groups divides C and a group has several values.
    """
    caller = "group_norm"
    node = with_channels(caller, x)
    n, channels, *spatial = node.shape
    groups = integer(caller, "num_groups", num_groups, 1)
    if channels % groups:
        raise ValueError(f"{caller}: expected num_groups to divide {channels}, got {groups}.")
    weight, bias = channel_affine(caller, node, weight, bias)
    grouped = reshape(x, (n, groups, channels // groups, *spatial))
    own = standardize(grouped, tuple(range(2, node.ndim + 1)), eps, allow_degenerate, caller)
    return affine(reshape(own.x_hat, node.shape), weight, bias, x.dtype)


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    allow_degenerate: bool = False,
) -> Tensor:
    """Layer normalization of each sample over its trailing axes. Ba et al. 2016, arXiv:1607.06450.

    Shapes: x (..., *normalized_shape) -> same; weight, bias of normalized_shape.

    Args:
        allow_degenerate: accept a shape of one element, which gives bias.
    Raises: ValueError if x does not end in that shape, or the shape has one element.
    """
    axes = _trailing("layer_norm", x, normalized_shape, weight, bias)
    own = standardize(x, axes, eps, allow_degenerate, "layer_norm")
    return affine(own.x_hat, weight, bias, x.dtype)


def rms_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the trailing axes. arXiv:1910.07467.

    Args:
        eps: None takes the dtype's resolution, 2**-23 for float32, as PyTorch does.
    """
    axes = _trailing("rms_norm", x, normalized_shape, weight, None)
    eps = 2.0 ** (1 - PRECISION[x.dtype]) if eps is None else eps
    return affine(unit_rms(x, axes, eps, "rms_norm"), weight, None, x.dtype)


def with_channels(caller: str, x: Tensor) -> Node:
    """The node of an argument with channels at axis 1."""
    node = floating(caller, x)
    if node.ndim < 2:
        raise ValueError(f"{caller}: expected x of shape (N, C, *spatial), got {node.shape}.")
    return node


def along_channels(t: Tensor, ndim: int) -> Tensor:
    """A (C,) tensor in a shape that broadcasts to (N, C, *spatial); others as they are."""
    return reshape(t, (t.shape[0], *(1,) * (ndim - 2))) if t.ndim == 1 and ndim > 2 else t


def channel_affine(
    caller: str, x: Node, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """weight and bias (C,), checked, in shapes that broadcast to x (N, C, *spatial)."""
    _check_affine(caller, (x.shape[1],), weight, bias)
    return (
        None if weight is None else along_channels(weight, x.ndim),
        None if bias is None else along_channels(bias, x.ndim),
    )


def _check_affine(caller: str, shape: Shape, weight: Tensor | None, bias: Tensor | None) -> None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and floating(caller, value, name).shape != shape:
            raise ValueError(f"{caller}: expected {name} of shape {shape}, got {value.shape}.")


def _trailing(
    caller: str,
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[int, ...]:
    """The axes of x that `normalized_shape` names; checks weight and bias against it."""
    node = floating(caller, x)
    given = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not given or node.shape[-len(given) :] != given:
        raise ValueError(
            f"{caller}: expected x that ends in the shape {given}, got {node.shape}. "
            "Pass that shape, or transpose x."
        )
    _check_affine(caller, given, weight, bias)
    return tuple(range(node.ndim - len(given), node.ndim))
