"""From a layer of a definition to a module: one function for each type of layer.

Such a function checks what can be checked at once, and returns the module; or, if that depends on
the shapes of the layer's bottoms, another function that makes it of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from layers.activation import ELU, LeakyReLU, ReLU, Sigmoid, Softmax, Softplus, Tanh
from layers.caffe.arrange import (
    AbsVal,
    Concat,
    Eltwise,
    InnerProduct,
    Power,
    Reshape,
    Slice,
    Split,
)
from layers.caffe.fillers import fill
from layers.caffe.loss import Accuracy, EuclideanLoss, SigmoidCrossEntropyLoss, SoftmaxWithLoss
from layers.caffe.norm import LRN, MVN, BatchNorm
from layers.caffe.pooling import Pooling
from layers.caffe.scale import Bias, Scale
from layers.caffe.text import Layer
from layers.container import Flatten
from layers.conv import Conv2d
from layers.dropout import Dropout
from layers.module import Module

Shape = tuple[int, ...]
Maker = Callable[..., Module]  # takes the shape of each bottom

LARGEST_BLOB = 1 << 30  # elements of one parameter, 4 GiB in float32
LARGEST_NUMBER = 1 << 24  # of outputs, pixels, axes: far beyond any use


class LayerKind(NamedTuple):
    """A type of layer: what makes its module, and how many bottoms and tops it may have."""

    prepare: Callable[[Layer], Module | Maker]
    bottoms: tuple[int, int] = (1, 1)
    tops: tuple[int, int] = (1, 1)


def decimal(value: float) -> float:
    """The number that a file most likely has: its float32 0.1 is 0.10000000149 otherwise."""
    return float(f"{value:.7g}")


def _enum_name(message: Any, field: str) -> str:
    """The name of the value that a field of an enum has."""
    values = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return values[getattr(message, field)].name


def _integer(layer: Layer, field: str, least: int = 1) -> int:
    """A number of a field, in bounds."""
    value = layer.message
    for name in field.split("."):
        value = getattr(value, name)
    if not least <= value <= LARGEST_NUMBER:
        layer.fail(field, f"expected {field} in {least}..{LARGEST_NUMBER}, got {value}.")
    return value


def _axis_1(layer: Layer, field: str) -> None:
    """Refuse any axis but 1."""
    if _integer(layer, field, -LARGEST_NUMBER) != 1:
        layer.fail(field, f"expected {field} 1, got {_integer(layer, field, -LARGEST_NUMBER)}.")


def _size(layer: Layer, field: str, least: int, default: int | None) -> tuple[int, int]:
    """(height, width) from one number, two, or fields of their own: kernel_size, kernel_h, ..."""
    group, name = field.split(".")
    message, short = getattr(layer.message, group), name.removesuffix("_size")
    values: list[int] = list(getattr(message, name))
    apart = f"{short}_h", f"{short}_w"
    if short != "dilation" and any(message.HasField(a) for a in apart):
        if values:
            layer.fail(field, f"expected {name} or {' and '.join(apart)}, got both.")
        values = [getattr(message, a) for a in apart]
    if not values and default is not None:
        values = [default]
    if len(values) not in (1, 2) or not all(least <= v <= LARGEST_NUMBER for v in values):
        layer.fail(field, f"expected {name} of one or two numbers from {least} on, got {values}.")
    return values[0], values[-1]


def _convolution(layer: Layer) -> Maker:
    p, group = layer.message.convolution_param, "convolution_param"
    outputs, groups = _integer(layer, f"{group}.num_output"), _integer(layer, f"{group}.group")
    kernel = _size(layer, f"{group}.kernel_size", 1, None)
    stride, pad = _size(layer, f"{group}.stride", 1, 1), _size(layer, f"{group}.pad", 0, 0)
    dilation = _size(layer, f"{group}.dilation", 1, 1)
    _axis_1(layer, f"{group}.axis")

    def make(x: Shape) -> Module:
        if len(x) != 4:
            layer.fail("", f"expected images (N, C, H, W), got a bottom of shape {x}.")
        _bounded(layer, (outputs, x[1] // groups, *kernel))
        module = Conv2d(x[1], outputs, kernel, stride, pad, dilation, groups, bias=p.bias_term)
        return _filled(layer, module, group)

    return make


def _inner_product(layer: Layer) -> Maker:
    p = layer.message.inner_product_param
    outputs = _integer(layer, "inner_product_param.num_output")

    def make(x: Shape) -> Module:
        features = math.prod(x[_axis(layer, p.axis, x) :])
        _bounded(layer, (outputs, features))
        module = InnerProduct(features, outputs, p.bias_term, p.axis, p.transpose)
        return _filled(layer, module, "inner_product_param")

    return make


def _pooling(layer: Layer) -> Module:
    p = layer.message.pooling_param
    pool = _enum_name(p, "pool")
    if pool == "STOCHASTIC":
        layer.fail("pooling_param.pool", "expected pool MAX or AVE, got STOCHASTIC.")
    kernel = _size(layer, "pooling_param.kernel_size", 1, 1 if p.global_pooling else None)
    stride = _size(layer, "pooling_param.stride", 1, 1)
    pad = _size(layer, "pooling_param.pad", 0, 0)
    if any(2 * m > k for m, k in zip(pad, kernel, strict=True)):
        layer.fail(
            "pooling_param.pad", f"expected pad of at most half the window {kernel}, got {pad}."
        )
    return Pooling(pool, kernel, stride, pad, p.global_pooling)


def _lrn(layer: Layer) -> Module:
    p = layer.message.lrn_param
    alpha, beta, k = decimal(p.alpha), decimal(p.beta), decimal(p.k)
    return LRN(p.local_size, alpha, beta, _enum_name(p, "norm_region"), k)


def _batch_norm(layer: Layer) -> Maker:
    p = layer.message.batch_norm_param
    if any(spec.lr_mult for spec in layer.message.param):
        layer.fail(
            "param.lr_mult",
            "expected lr_mult 0 for all blobs of BatchNorm, which are statistics, got another. "
            "Factor and offset are learned by a layer Scale with bias_term: true.",
        )
    given = p.use_global_stats if p.HasField("use_global_stats") else None
    fraction, eps = decimal(p.moving_average_fraction), decimal(p.eps)

    def make(x: Shape) -> Module:
        return BatchNorm(x[1], given, fraction, eps)

    return make


def _scale(layer: Layer) -> Maker:
    p = layer.message.scale_param

    def make(x: Shape, factor: Shape | None = None) -> Module:
        shape = _spanned(layer, p, x) if factor is None else factor
        module = Scale(shape, p.axis, p.bias_term, learned=factor is None)
        if p.HasField("filler") and module.weight is not None:
            _fill(layer, "scale_param.filler", module.weight, p.filler)
        if module.bias is not None:
            _fill(layer, "scale_param.bias_filler", module.bias, p.bias_filler)
        return module

    return make


def _bias(layer: Layer) -> Maker:
    p = layer.message.bias_param

    def make(x: Shape) -> Module:
        module = Bias(_spanned(layer, p, x), p.axis)
        _fill(layer, "bias_param.filler", module.bias, p.filler)
        return module

    return make


def _mvn(layer: Layer) -> Module:
    p = layer.message.mvn_param
    return MVN(p.normalize_variance, p.across_channels, decimal(p.eps))


def _relu(layer: Layer) -> Module:
    slope = decimal(layer.message.relu_param.negative_slope)
    return LeakyReLU(slope) if slope else ReLU()


def _power(layer: Layer) -> Module:
    p = layer.message.power_param
    return Power(decimal(p.power), decimal(p.scale), decimal(p.shift))


def _dropout(layer: Layer) -> Module:
    ratio = decimal(layer.message.dropout_param.dropout_ratio)
    if not 0 <= ratio < 1:
        layer.fail("dropout_param.dropout_ratio", f"expected a ratio in [0, 1), got {ratio}.")
    return Dropout(ratio)


def _eltwise(layer: Layer) -> Module:
    p = layer.message.eltwise_param
    module = Eltwise(_enum_name(p, "operation"), [decimal(c) for c in p.coeff])
    return module


def _concat(layer: Layer) -> Module:
    p = layer.message.concat_param
    axis = p.concat_dim if p.HasField("concat_dim") else p.axis
    return Concat(axis)


def _slice(layer: Layer) -> Module:
    p, parts = layer.message.slice_param, len(layer.message.top)
    axis = p.slice_dim if p.HasField("slice_dim") else p.axis
    points: list[int] = list(p.slice_point)
    if points and (len(points) != parts - 1 or points != sorted(set(points)) or points[0] < 1):
        layer.fail(
            "slice_param.slice_point",
            f"expected {parts - 1} increasing numbers for {parts} tops, got {points}.",
        )
    return Slice(parts, axis, points)


def _flatten(layer: Layer) -> Module:
    p = layer.message.flatten_param
    return Flatten(p.axis, p.end_axis)


def _reshape(layer: Layer) -> Module:
    p = layer.message.reshape_param
    dims: list[int] = list(p.shape.dim)
    if any(not -1 <= d <= LARGEST_NUMBER for d in dims) or dims.count(-1) > 1:
        layer.fail(
            "reshape_param.shape", f"expected extents, 0, or one -1 as dimensions, got {dims}."
        )
    return Reshape(dims, p.axis, p.num_axes)


def _softmax(layer: Layer) -> Module:
    axis = layer.message.softmax_param.axis
    return Softmax(axis)


def _softmax_loss(layer: Layer) -> Module:
    _axis_1(layer, "softmax_param.axis")
    p = layer.message.loss_param
    normalization = _enum_name(p, "normalization")
    if p.HasField("normalize") and not p.HasField("normalization"):
        normalization = "VALID" if p.normalize else "BATCH_SIZE"
    ignored = p.ignore_label if p.HasField("ignore_label") else None
    return SoftmaxWithLoss(normalization, ignored)


def _accuracy(layer: Layer) -> Module:
    _axis_1(layer, "accuracy_param.axis")
    p, top_k = layer.message.accuracy_param, _integer(layer, "accuracy_param.top_k")
    ignored = p.ignore_label if p.HasField("ignore_label") else None
    return Accuracy(top_k, ignored)


def _elu(layer: Layer) -> Module:
    return ELU(decimal(layer.message.elu_param.alpha))


def _split(layer: Layer) -> Module:
    return Split(len(layer.message.top))


def _plain(module: Callable[[], Module], bottoms: int = 1) -> LayerKind:
    """A type of layer without fields of its own."""

    def prepare(layer: Layer) -> Module:
        return module()

    return LayerKind(prepare, (bottoms, bottoms))


MANY = 1 << 16
KINDS: dict[str, LayerKind] = {
    "AbsVal": _plain(AbsVal),
    "Accuracy": LayerKind(_accuracy, (2, 2)),
    "BatchNorm": LayerKind(_batch_norm),
    "Bias": LayerKind(_bias),
    "BNLL": _plain(Softplus),
    "Concat": LayerKind(_concat, (1, MANY)),
    "Convolution": LayerKind(_convolution),
    "Dropout": LayerKind(_dropout),
    "Eltwise": LayerKind(_eltwise, (2, MANY)),
    "ELU": LayerKind(_elu),
    "EuclideanLoss": _plain(EuclideanLoss, 2),
    "Flatten": LayerKind(_flatten),
    "InnerProduct": LayerKind(_inner_product),
    "LRN": LayerKind(_lrn),
    "MVN": LayerKind(_mvn),
    "Pooling": LayerKind(_pooling),
    "Power": LayerKind(_power),
    "ReLU": LayerKind(_relu),
    "Reshape": LayerKind(_reshape),
    "Scale": LayerKind(_scale, (1, 2)),
    "Sigmoid": _plain(Sigmoid),
    "SigmoidCrossEntropyLoss": _plain(SigmoidCrossEntropyLoss, 2),
    "Silence": LayerKind(_split, (1, MANY), (0, 0)),
    "Slice": LayerKind(_slice, tops=(1, MANY)),
    "Softmax": LayerKind(_softmax),
    "SoftmaxWithLoss": LayerKind(_softmax_loss, (2, 2)),
    "Split": LayerKind(_split, tops=(1, MANY)),
    "TanH": _plain(Tanh),
}


def _axis(layer: Layer, axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        layer.fail("", f"expected an axis of a bottom of shape {shape}, got {axis}.")
    return axis % len(shape)


def _spanned(layer: Layer, p: Any, shape: Shape) -> Shape:
    """The extents of the axes that `axis` and `num_axes` name."""
    first = _axis(layer, p.axis, shape)
    stop = len(shape) if p.num_axes == -1 else first + p.num_axes
    if not first <= stop <= len(shape):
        layer.fail("", f"expected num_axes that fit a bottom of shape {shape}, got {p.num_axes}.")
    return shape[first:stop]


def _bounded(layer: Layer, shape: Shape) -> None:
    if math.prod(shape) > LARGEST_BLOB:
        layer.fail("", f"expected at most {LARGEST_BLOB:,} elements a blob, got {shape}.")


def _filled(layer: Layer, module: Conv2d | InnerProduct, group: str) -> Module:
    """The module with weight and bias as the fillers of its field `group` say."""
    p = getattr(layer.message, group)
    _fill(layer, f"{group}.weight_filler", module.weight, p.weight_filler)
    if module.bias is not None:
        _fill(layer, f"{group}.bias_filler", module.bias, p.bias_filler)
    return module


def _fill(layer: Layer, field: str, blob: Any, filler: Any) -> None:
    with layer.located(field):
        fill(blob, filler)
