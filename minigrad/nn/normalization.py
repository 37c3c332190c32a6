"""Normalization: `moments` of a set and `normalize` by them; the layers differ in the axes.

[Note: centred on a sample] Normalization does not change when a constant is added to x, so it may
subtract one before anything else, and `centre` subtracts one element of each set. In float32 that
matters: at mean / std = 10 000 the mean itself is rounded to a thousandth of the deviation, and
that error spoils x - mean and its derivative in the fourth digit. Relative to a sample the mean is
of the size of the deviation, and forward and backward are right to the last digits at any mean. The
`barrier` keeps the algebra from undoing it. Price: one subtraction an element, in a fused kernel.

The halves are normalized in float32, and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import PRECISION, accumulator
from minigrad.execution.compute import compute_with_next
from minigrad.execution.modes import no_grad
from minigrad.functions.arguments import (
    as_accumulator,
    as_type,
    count,
    drop_axes,
    expand_to,
    some_axes,
)
from minigrad.functions.elementwise import rsqrt, where
from minigrad.functions.manipulation import reshape
from minigrad.functions.statistical import mean as mean_of
from minigrad.graph import Node
from minigrad.nn.arguments import floating, integer, matching
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Axis
    from minigrad.tensor import Tensor


def centre(x: Tensor, axes: Axis) -> tuple[Tensor, Tensor]:
    """X minus one element of each set, and that element. See [Note: centred on a sample].

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
    if count(node, over) == 0 or _is_centred(node, over):
        z, sample = node, None
    else:
        z, sample = _centred(node, over), _sample(node, over)
    n = count(node, over)
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
    """(x - mean) / sqrt(var + eps) * weight + bias.

    Shapes: all broadcast to that of x.

    Args:
        eps: in units of x squared, 0 or more. With 0, what has no variance gives 0, not NaN.
    """
    if not eps >= 0:
        raise ValueError(f"normalize: expected eps of 0 or more, got {eps}.")
    x_hat = (x - mean) * (rsqrt(var + eps) if eps > 0 else _rsqrt_or_zero(var))
    if weight is not None:
        x_hat = x_hat * weight
    return x_hat if bias is None else x_hat + bias


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
    mean, var = _per_channel(mean, x), _per_channel(var, x)
    scale, offset = (t if t is None else _per_channel(t, x) for t in (scale, offset))
    return normalize(x, mean, var, eps, scale, offset)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization over all axes but the channels'.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.
    Shapes: x (N, C, *spatial) -> same; weight, bias, running_* (C,).

    Args:
        training: take the statistics of the batch, and update the running ones (unbiased variance).
        momentum: weight of the new batch: running = (1 - momentum) * running + momentum * batch.
    State: not training uses running_*, or the batch's statistics where there are none.
    Raises: ValueError if training with one value per channel, or shapes do not fit.
    """
    name = "batch_norm"
    node = _with_channels(name, x)
    channels = (node.shape[1],)
    weight, bias = (_affine(name, node, *p) for p in (("weight", weight), ("bias", bias)))
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{name}: expected running_mean and running_var together, got one.")
    for label, r in (("running_mean", running_mean), ("running_var", running_var)):
        if r is not None and tuple(r.shape) != channels:
            raise ValueError(f"{name}: expected {label} of shape {channels}, got {r.shape}.")
    axes = (0, *range(2, node.ndim))
    x = _wide(x)
    if running_mean is not None and running_var is not None and not training:
        statistics = running_mean, running_var
        mean, var = (_per_channel(r.astype(x.dtype), x) for r in statistics)
        return normalize(x, mean, var, eps, weight, bias).astype(node.dtype)
    n = count(node, axes)
    _require_several(name, node, n)
    z, sample = centre(x, axes)
    mean, var = moments(z, axes, keepdims=True)
    if training and running_mean is not None and running_var is not None and n:
        update_running(running_mean, running_var, mean + sample, var, n, momentum)
    return normalize(z, mean, var, eps, weight, bias).astype(node.dtype)


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    n: int,
    momentum: float | Tensor,
) -> None:
    """Move running statistics towards those of a batch.

    They become (1 - momentum) * running + momentum * batch, and are computed with the next thing
    that is, so that updates never pile up.

    Args:
        var: biased; its unbiased counterpart, var * n / (n - 1), is what is stored.
        n: elements that each statistic was taken over, 2 or more.
    """
    with no_grad():
        batch = (running_mean, mean), (running_var, var * (n / (n - 1)))
        for running, new in batch:
            new = reshape(new, running.shape).astype(running.dtype)
            compute_with_next(running.assign(running * (1 - momentum) + new * momentum))


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalization of each sample over its trailing axes. Ba et al. 2016, arXiv:1607.06450.

    Shapes: x (..., *normalized_shape) -> same; weight, bias of normalized_shape.
    Raises: ValueError if x does not end in that shape, or the shape has one element.
    """
    node = floating("layer_norm", x)
    axes = _trailing("layer_norm", node, normalized_shape, weight, bias)
    _require_several("layer_norm", node, count(node, axes))
    z, _ = centre(_wide(x), axes)
    y = normalize(z, *moments(z, axes, keepdims=True), eps, weight, bias)
    return y.astype(node.dtype)


def rms_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """X / sqrt(mean(x**2) + eps) * weight over the trailing axes. arXiv:1910.07467.

    Args:
        eps: None takes the dtype's resolution, 2**-23 for float32, as PyTorch does.
    """
    node = floating("rms_norm", x)
    axes = _trailing("rms_norm", node, normalized_shape, weight, None)
    if eps is None:
        eps = 2.0 ** (1 - PRECISION[node.dtype])
    x = _wide(x)
    y = x * rsqrt(mean_of(x * x, axis=axes, keepdims=True) + eps)
    return (y if weight is None else y * weight).astype(node.dtype)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalization: each sample over groups of consecutive channels. arXiv:1803.08494.

    Shapes: x (N, C, *spatial) -> same; weight, bias (C,).
    Raises: ValueError unless num_groups divides C and a group has several values.
    """
    node = _with_channels("group_norm", x)
    n, channels, *spatial = node.shape
    groups = integer("group_norm", "num_groups", num_groups, 1)
    if channels % groups:
        raise ValueError(f"group_norm: expected num_groups to divide {channels}, got {groups}.")
    weight, bias = (_affine("group_norm", node, *p) for p in (("weight", weight), ("bias", bias)))
    grouped = reshape(
        _wide(x), (n, groups, channels // groups, *spatial)
    )  # (N, G, C / G, *spatial)
    axes = tuple(range(2, node.ndim + 1))
    _require_several("group_norm", node, count(grouped.node, axes))
    z, _ = centre(grouped, axes)
    y = reshape(normalize(z, *moments(z, axes, keepdims=True), eps), node.shape)
    if weight is not None:
        y = y * weight
    return (y if bias is None else y + bias).astype(node.dtype)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalization: each channel of each sample over its pixels. arXiv:1607.08022.

    Shapes: x (N, C, *spatial) -> same; weight, bias, running_* (C,).
    State: with `use_input_stats` running_* take the mean over N of the statistics; else they are
    used.
    """
    name = "instance_norm"
    node = _with_channels(name, x)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise ValueError(
                f"{name}: expected running_mean and running_var when not using x's own."
            )
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    weight, bias = (_affine(name, node, *p) for p in (("weight", weight), ("bias", bias)))
    axes = tuple(range(2, node.ndim))
    n = count(node, axes)
    _require_several(name, node, n)
    z, sample = centre(_wide(x), axes)
    mean, var = moments(z, axes, keepdims=True)
    if running_mean is not None and running_var is not None and node.shape[0]:
        new_mean, new_var = (mean_of(t, axis=0, keepdims=True) for t in (mean + sample, var))
        update_running(running_mean, running_var, new_mean, new_var, n, momentum)
    return normalize(z, mean, var, eps, weight, bias).astype(node.dtype)


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    mode: str = "across_channels",
) -> Tensor:
    """Local response normalization: x / (k + alpha / n * sum of x**2 over a window) ** beta.

    Source: Krizhevsky et al. 2012. alpha is divided by n, the full window, as in Caffe and PyTorch:
    the paper's alpha = 1e-4 with n = 5 is 5e-4 here.
    Shapes: x (N, C, H, W), or (N, C, *spatial) across channels.

    Args:
        size: of the window. n = size channels (an even size reaches one further down), or
            n = size**2 pixels of the same channel for "within_channel" (size odd).
        k: > 0; with alpha >= 0 the sum cannot vanish. Caffe's within_channel has k = 1.
    """
    name = "local_response_norm"
    node = floating(name, x)
    size = integer(name, "size", size, 1)
    if not k > 0 or not alpha >= 0:
        raise ValueError(f"{name}: expected k > 0 and alpha >= 0, got k={k} and alpha={alpha}.")
    low, high = size // 2, (size - 1) // 2
    if mode == "across_channels":
        if node.ndim < 3:
            raise ValueError(f"{name}: expected x of shape (N, C, *spatial), got {node.shape}.")
        axes, window, margins, n = (1, 2), (size, 1), ((low, high), (0, 0)), size
    elif mode == "within_channel":
        if node.ndim != 4 or size % 2 == 0:
            raise ValueError(
                f"{name}: expected x of shape (N, C, H, W) and an odd size within channels, got "
                f"{node.shape} and size {size}."
            )
        axes, window, margins, n = (2, 3), (size, size), ((low, high),) * 2, size * size
    else:
        raise ValueError(
            f"{name}: expected mode 'across_channels' or 'within_channel', got {mode!r}."
        )
    wide = as_accumulator(node)
    around = ops.window_sum(
        wide * wide, axes=axes, size=window, stride=(1, 1), padding=margins, dilation=(1, 1),
        input_dilation=(1, 1),
    )  # fmt: skip
    scale = around * (alpha / n) + k
    return wrap(as_type(wide * ops.pow_(scale, ops.like(-beta, scale)), node.dtype))


def _wide(x: Tensor) -> Tensor:
    return x.astype(accumulator(x.dtype))


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


def _rsqrt_or_zero(var: Tensor) -> Tensor:
    constant = var == 0
    return where(constant, 0.0, rsqrt(where(constant, 1.0, var)))


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    """A (C,) tensor beside x (N, C, *spatial); others as they are."""
    return reshape(t, (t.shape[0], *(1,) * (x.ndim - 2))) if t.ndim == 1 and x.ndim > 2 else t


def _affine(caller: str, x: Node, name: str, value: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    matching(caller, x, name, value, (x.shape[1],))
    return reshape(value, (x.shape[1], *(1,) * (x.ndim - 2))) if x.ndim > 2 else value


def _with_channels(caller: str, x: Tensor) -> Node:
    node = floating(caller, x)
    if node.ndim < 2:
        raise ValueError(f"{caller}: expected x of shape (N, C, *spatial), got {node.shape}.")
    return node


def _require_several(caller: str, x: Node, n: int) -> None:
    """A set of one value normalizes to 0 whatever it is, and nothing can be learned through it."""
    if n == 1 and x.size:
        raise ValueError(
            f"{caller}: expected more than one value for each statistic, got one from x of shape "
            f"{x.shape}. Use a larger batch or image."
        )


def _trailing(
    caller: str,
    x: Node,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[int, ...]:
    """The axes of x that `normalized_shape` names; checks weight and bias against it."""
    given = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not given or x.shape[-len(given) :] != given:
        raise ValueError(
            f"{caller}: expected x that ends in the shape {given}, got {x.shape}. "
            "Pass that shape, or transpose x."
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            matching(caller, x, name, value, given)
    return tuple(range(x.ndim - len(given), x.ndim))
