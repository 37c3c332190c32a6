"""Linear maps: dense, convolution, and transposed convolution (one of a dilated input)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minigrad import ops
from minigrad.functions.arguments import expand_to
from minigrad.graph import Node
from minigrad.nn.arguments import floating, images, int_pair, integer, matching
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

    Size = int | Sequence[int]

__all__ = ["conv2d", "conv_transpose2d", "linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias.

    Shapes: x (..., in), weight (out, in), bias (out,) -> (..., out).
    Raises: ValueError if x's last axis is not `in`.
    """
    a = floating("linear", x)
    w = matching("linear", a, "weight", weight)
    if w.ndim != 2:
        raise ValueError(f"linear: expected weight of shape (out, in), got {w.shape}.")
    if not a.ndim or a.shape[-1] != w.shape[1]:
        raise ValueError(
            f"linear: expected x of shape (..., {w.shape[1]}) for weight {w.shape}, got {a.shape}. "
            "Flatten or transpose x."
        )
    y = ops.dot(a, w, batch=((), ()), contract=((a.ndim - 1,), (1,)))
    if bias is not None:
        y = y + expand_to(matching("linear", a, "bias", bias, (w.shape[0],)), y.shape)
    return wrap(y)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """The cross-correlation of images with kernels.

    Shapes: x (N, C, H, W), weight (O, C / groups, KH, KW), bias (O,) -> (N, O, OH, OW), with
    OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1.

    Args:
        stride, padding, dilation: one integer or (height, width). Zeros are padded on both sides;
            "valid" pads none, "same" keeps H and W at stride 1 (an odd zero goes after).
        groups: of channels, each with its own kernels.
    """
    a = images("conv2d", x)
    w = _kernels("conv2d", a, weight)
    groups = integer("conv2d", "groups", groups, 1)
    if a.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(
            f"conv2d: expected weight of shape (O, C / groups, KH, KW) with C={a.shape[1]}, "
            f"groups={groups} and O a multiple of groups, got {w.shape}."
        )
    steps = int_pair("conv2d", "stride", stride, 1)
    spread = int_pair("conv2d", "dilation", dilation, 1)
    margins = _padding("conv2d", padding, w, steps, spread)
    window = ops.Window((w.shape[2], w.shape[3]), steps, margins, spread)
    y = ops.conv(a, w, window=window, groups=groups)
    if 0 in y.shape[2:] and 0 not in a.shape[2:]:
        raise ValueError(
            f"conv2d: expected images no smaller than the kernel {w.shape[2:]} (dilation {spread}, "
            f"padding {padding}), got {a.shape[2:]}."
        )
    return wrap(_with_bias("conv2d", y, bias))


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """The adjoint of `conv2d` with the same arguments: each pixel writes a kernel into the output.

    Shapes: x (N, C, H, W), weight (C, O / groups, KH, KW), bias (O,) -> (N, O, OH, OW), with
    OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1.
    """
    caller = "conv_transpose2d"
    a = images(caller, x)
    w = _kernels(caller, a, weight)
    groups = integer(caller, "groups", groups, 1)
    if w.shape[0] != a.shape[1] or w.shape[0] % groups:
        raise ValueError(
            f"{caller}: expected weight of shape (C, O / groups, KH, KW) with C={a.shape[1]} a "
            f"multiple of groups={groups}, got {w.shape}."
        )
    steps = int_pair(caller, "stride", stride, 1)
    spread = int_pair(caller, "dilation", dilation, 1)
    cropped = int_pair(caller, "padding", padding, 0)
    extra = int_pair(caller, "output_padding", output_padding, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, spread, strict=True)):
        raise ValueError(
            f"{caller}: expected output_padding smaller than stride or dilation, got {extra} with "
            f"stride {steps} and dilation {spread}."
        )
    # The input of `conv2d` from its output: the output's pixels lie `stride` apart.
    kernel = w.shape[2], w.shape[3]
    h, v = (d * (k - 1) - p for d, k, p in zip(spread, kernel, cropped, strict=True))
    margins = (h, h + extra[0]), (v, v + extra[1])
    window = ops.Window(kernel, (1, 1), margins, spread, input_dilation=steps)
    y = ops.conv(a, ops.turned_kernels(w, groups), window=window, groups=groups)
    return wrap(_with_bias(caller, y, bias))


def _kernels(caller: str, x: Node, weight: Tensor) -> Node:
    w = matching(caller, x, "weight", weight)
    if w.ndim != 4:
        raise ValueError(f"{caller}: expected weight with four axes, got {w.shape}.")
    return w


def _with_bias(caller: str, y: Node, bias: Tensor | None) -> Node:
    if bias is None:
        return y
    b = matching(caller, y, "bias", bias, (y.shape[1],))
    return y + ops.expand(ops.reshape(b, shape=(1, y.shape[1], 1, 1)), shape=y.shape)


def _padding(
    caller: str, padding: Any, w: Node, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"{caller}: expected stride 1 with padding 'same', got {stride}.")
        h, v = (d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True))
        return (h // 2, h - h // 2), (v // 2, v - v // 2)
    if isinstance(padding, str):
        raise ValueError(
            f"{caller}: expected padding 'same', 'valid' or integers, got {padding!r}."
        )
    h, v = int_pair(caller, "padding", padding, 0)
    return (h, h), (v, v)
