"""One row per op: sample inputs from its domain, and how often it can be differentiated.

`test_ops.py` checks every row against `reference.py`, and its derivatives against finite
differences. A primitive without a row fails the completeness test. Inputs lie on a shuffled grid:
they are distinct, not zero and further apart than a step: no row sits on a kink.
"""

from __future__ import annotations

import math
import operator
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import scalars

import minigrad as mg
from minigrad import nn, ops
from minigrad.backend.geometry import Window
from minigrad.device import Device, backend_of
from minigrad.dtype import DType, bool_, float64, int32, int64, uint8
from minigrad.graph import PRIMITIVES, Node, iota, leaf
from minigrad.tensor_base import wrap

Values = list[Any]


@dataclass(frozen=True)
class Input:
    """A sample input: `low` to `high`; `dtype` None is the floating dtype under test."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    dtype: DType | None = None

    def values(self, seed: str, dtype: DType) -> Values:
        """Distinct numbers in shuffled order, or uniform integers."""
        rng = random.Random(seed)
        n = prod(self.shape)
        kind = (self.dtype or dtype).kind
        if kind == "float":
            shift = rng.uniform(0.3, 0.7)
            grid = [self.low + (self.high - self.low) * (k + shift) / n for k in range(n)]
            return rng.sample(grid, n)
        if kind == "bool":
            return [rng.random() < 0.5 for _ in range(n)]
        low = max(self.low, 0) if kind == "uint" else self.low
        return [rng.randint(int(low), int(self.high)) for _ in range(n)]


def real(*shape: int) -> Input:
    return Input(shape)


def positive(*shape: int) -> Input:
    return Input(shape, 0.5, 2.0)


def indices(n: int, size: int) -> Input:
    return Input((n,), 0, size - 1, int64)


def truths(*shape: int) -> Input:
    return Input(shape, dtype=bool_)


@dataclass(frozen=True)
class Case:
    """One row. `order` 0: no derivative, by decision."""

    name: str
    f: Callable[..., Any]  # of Tensors
    inputs: tuple[Input, ...]
    order: int = 2
    primitive: str = ""  # the one this row is for, if it is for one
    integers: tuple[DType, ...] = ()  # dtypes besides the floating ones that the op takes
    floating: bool = True
    meaning: Any = None  # what an elementwise op does to Python numbers
    special: bool = True  # an elementwise op is also tested at zeros, infinities, NaN, 1e30
    function: str = ""  # the public function that an elementwise op is the heart of

    def nodes(self, dtype: DType, device: Device, requires_grad: bool = False) -> list[Node]:
        return [
            store(
                i.values(f"{self.name} {k}", dtype),
                i.shape,
                i.dtype or dtype,
                device,
                requires_grad,
            )
            for k, i in enumerate(self.inputs)
        ]

    def tensors(self, dtype: DType, device: Device) -> list[Any]:
        return [wrap(n) for n in self.nodes(dtype, device)]


def store(
    values: Values, shape: tuple[int, ...], dtype: DType, device: Device, needs_grad: bool = False
) -> Node:
    """A leaf that holds the values."""
    code = "B" if dtype is bool_ else dtype.format
    data = array(code, [int(v) if dtype is bool_ else v for v in values])
    return leaf(backend_of(device).from_bytes(memoryview(data)), shape, dtype, device, needs_grad)


def tensor_of(
    values: Values, shape: tuple[int, ...], device: Device, dtype: DType = float64
) -> Any:
    return wrap(store(values, shape, dtype, device))


def on_nodes(op: Callable[..., Node], **attrs: Any) -> Callable[..., Any]:
    return lambda *tensors: wrap(op(*[t.node for t in tensors], **attrs))


INTEGERS = (uint8, int32, int64)
_PAIR = (real(2, 3), real(2, 3))
_BITS = {"order": 0, "integers": (bool_, *INTEGERS), "floating": False}


def _map(name: str, meaning: Callable[..., Any], *inputs: Input, **options: Any) -> Case:
    options = {"primitive": name, "meaning": meaning, "function": name, **options}
    op = on_nodes(lambda *nodes: PRIMITIVES[name](*nodes))
    return Case(name, op, inputs or (real(2, 3),), **options)


def _row(primitive: str, label: str, *inputs: Input, order: int = 2, integers: Any = (),
         floating: bool = True, **attrs: Any) -> Case:  # fmt: skip
    op = PRIMITIVES[primitive]
    name = f"{primitive} {label}".strip()
    return Case(name, on_nodes(op, **attrs), inputs, order, primitive, integers, floating)


def _power(exponent: float) -> Callable[..., Any]:
    return lambda x: wrap(ops.pow_(x.node, ops.like(exponent, x.node)))


# fmt: off
ELEMENTWISE = [
    _map("neg", operator.neg, integers=INTEGERS, function="negative"),
    _map("exp", scalars.exp),
    _map("log", scalars.log, positive(2, 3)),
    _map("sqrt", scalars.sqrt, positive(2, 3)),
    _map("rsqrt", scalars.rsqrt, positive(2, 3)),
    _map("sin", scalars.sin, special=False),
    _map("cos", scalars.cos, special=False),
    _map("tanh", math.tanh),
    _map("erf", math.erf),
    _map("expm1", scalars.expm1),
    _map("log1p", scalars.log1p, positive(2, 3)),
    _map("erfc", math.erfc),
    _map("sigmoid", scalars.sigmoid),
    _map("softplus", scalars.softplus),
    _map("gelu", scalars.gelu),
    _map("abs", abs, integers=INTEGERS),
    _map("sign", scalars.sign, integers=INTEGERS),
    _map("floor", scalars.floor),
    _map("add", operator.add, *_PAIR, integers=INTEGERS),
    _map("sub", operator.sub, *_PAIR, integers=INTEGERS, function="subtract"),
    _map("mul", operator.mul, *_PAIR, integers=INTEGERS, function="multiply"),
    _map("div", scalars.div, real(2, 3), positive(2, 3), function="divide"),
    _map("pow", scalars.pow, positive(2, 3), real(2, 3)),
    Case("pow square", _power(2.0), (real(2, 3),)),
    Case("pow cube", _power(3.0), (real(2, 3),)),
    Case("pow root", _power(-0.5), (positive(2, 3),)),
    Case("pow zero", _power(0.0), (real(2, 3),)),
    _map("maximum", scalars.maximum, *_PAIR, integers=INTEGERS),
    _map("minimum", scalars.minimum, *_PAIR, integers=INTEGERS),
    _map("floor_divide", scalars.floor_divide, Input((2, 3), -9, 9), Input((2, 3), 1, 4),
         integers=INTEGERS, special=False),
    _map("less", operator.lt, *_PAIR, order=0, integers=INTEGERS),
    _map("less_equal", operator.le, *_PAIR, order=0, integers=INTEGERS),
    _map("equal", operator.eq, *_PAIR, order=0, integers=INTEGERS),
    _map("bitwise_and", operator.and_, *_PAIR, **_BITS),
    _map("bitwise_or", operator.or_, *_PAIR, **_BITS),
    _map("bitwise_xor", operator.xor, *_PAIR, **_BITS),
    _map("bitwise_invert", scalars.bitwise_invert, **_BITS),
    _map("where", scalars.where, truths(2, 3), *_PAIR, integers=INTEGERS),
    _row("cast", "to float64", real(2, 3), dtype=float64, integers=(bool_, *INTEGERS)),
    _row("cast", "to int32", Input((2, 3), -9, 9), dtype=int32, order=0, integers=(bool_, int64)),
    _row("cast", "to bool", real(2, 3), dtype=bool_, order=0, integers=INTEGERS),
]

REDUCTIONS = [
    _row("sum", "of rows", real(3, 4), axes=(1,), integers=INTEGERS),
    _row("sum", "of columns", real(3, 4), axes=(0,)),
    _row("sum", "of outer and inner", real(2, 3, 2), axes=(0, 2)),
    _row("sum", "of all", real(3, 4), axes=(0, 1)),
    _row("max", "of rows", real(3, 4), axes=(1,), integers=INTEGERS),
    _row("max", "of columns", real(3, 4), axes=(0,)),
    _row("argmax", "of rows", real(3, 4), axis=1, order=0, integers=INTEGERS),
    _row("argmax", "of columns", real(3, 4), axis=0, order=0),
]

VIEWS = [
    _row("reshape", "", real(2, 6), shape=(3, 4)),
    _row("permute", "", real(2, 3, 2), axes=(2, 0, 1)),
    _row("expand", "", real(2, 1, 1), shape=(2, 3, 2)),
    _row("slice", "with steps", real(5, 4), starts=(1, 0), stops=(5, 4), steps=(2, 3)),
    _row("flip", "", real(3, 4), axes=(0, 1)),
    _row("pad", "interior", real(2, 3), low=(1, 0), high=(0, 2), interior=(1, 2)),
    _row("concat", "", real(2, 3), real(1, 3), real(2, 3), axis=0),
    _row("concat", "inner", real(2, 1), real(2, 3), axis=1),
]

GATHERS = [
    _row("take", "rows", real(4, 3), indices(6, 4), axis=0),
    _row("take", "columns", real(3, 4), indices(3, 4), axis=1),
    _row("scatter_add", "rows", indices(6, 4), real(6, 3), size=4, axis=0),
    _row("scatter_add", "columns", indices(3, 4), real(2, 3), size=5, axis=1),
    _row("random_bits", "", Input((2,), 0, 1000, int64), shape=(3, 7), order=0),
]

_NONE = ((), ())
CONTRACTIONS = [
    _row("dot", "matmul", real(3, 4), real(4, 2), batch=_NONE, contract=((1,), (0,))),
    _row("dot", "transposed", real(4, 3), real(2, 4), batch=_NONE, contract=((0,), (1,))),
    _row("dot", "vectors", real(5), real(5), batch=_NONE, contract=((0,), (0,))),
    _row("dot", "outer", real(3), real(2), batch=_NONE, contract=_NONE),
    _row("dot", "batch", real(2, 3, 4), real(2, 4, 2), batch=((0,), (0,)), contract=((2,), (1,))),
    _row("dot", "batch last", real(3, 4, 2), real(2, 2, 4), batch=((2,), (0,)),
         contract=((1,), (2,))),
    _row("dot", "two axes swapped", real(2, 3, 4), real(4, 2, 2), batch=_NONE,
         contract=((0, 2), (1, 0))),
]


def _conv(label: str, x: Input, w: Input, stride=(1, 1), padding=((0, 0), (0, 0)),
          input_dilation=(1, 1), kernel_dilation=(1, 1), groups=1) -> Case:
    window = Window(w.shape[2:], stride, padding, kernel_dilation, input_dilation)
    return _row("conv", label, x, w, window=window, groups=groups)


CONVOLUTIONS = [
    _conv("plain", real(2, 2, 5, 4), real(3, 2, 3, 2)),
    _conv("padded", real(1, 2, 4, 4), real(2, 2, 3, 3), padding=((1, 1), (1, 1))),
    _conv("strided", real(1, 2, 6, 5), real(2, 2, 3, 2), stride=(2, 3), padding=((1, 0), (0, 2))),
    _conv("cropped", real(1, 1, 6, 5), real(2, 1, 2, 2), padding=((-1, 1), (0, -2))),
    _conv("dilated kernel", real(1, 2, 6, 6), real(2, 2, 2, 3), kernel_dilation=(2, 2)),
    _conv("dilated input", real(1, 2, 3, 3), real(1, 2, 2, 2), input_dilation=(2, 3),
          padding=((1, 1), (2, 0))),
    _conv("groups", real(2, 4, 3, 3), real(6, 2, 2, 2), groups=2),
    _conv("depthwise", real(1, 3, 4, 4), real(3, 1, 3, 3), groups=3, padding=((1, 1), (1, 1)),
          stride=(2, 2)),
]


def _window(primitive: str, label: str, *inputs: Input, axes=(2, 3), size=(2, 2), stride=(2, 2),
            **parameters: Any) -> Case:
    return _row(primitive, label, *inputs, axes=axes, window=Window(size, stride, **parameters))


_OVERLAP = {"size": (3, 2), "stride": (2, 1), "padding": ((1, 1), (0, 1))}
WINDOWS = [
    _window("window_sum", "pool", real(1, 2, 4, 4)),
    _window("window_sum", "overlapping", real(1, 2, 5, 4), **_OVERLAP),
    _window("window_sum", "dilated", real(5, 6), axes=(0, 1), dilation=(2, 3), stride=(1, 2)),
    _window("window_sum", "dilated input", real(3, 2), axes=(0, 1), input_dilation=(2, 2),
            padding=((1, 0), (1, 1))),
    _window("window_sum", "across channels", real(1, 5, 2, 2), axes=(0, 1), size=(1, 3),
            stride=(1, 1), padding=((0, 0), (1, 1))),
    _window("window_max", "pool", real(1, 2, 4, 4)),
    _window("window_max", "overlapping", real(1, 2, 5, 4), **_OVERLAP),
    _window("window_max", "dilated", real(5, 6), axes=(0, 1), dilation=(2, 3), stride=(1, 2)),
    _window("window_select", "overlapping", real(1, 2, 5, 4), real(1, 2, 5, 4), **_OVERLAP),
    _window("window_scatter", "overlapping", real(1, 2, 5, 4), real(1, 2, 3, 4), **_OVERLAP),
]
# fmt: on


def _checkpointed(x: Any) -> Any:
    return wrap(ops.checkpoint(ops.sin(x.node * x.node), [x.node]))


CONTROLS = [
    Case("stop_gradient", on_nodes(ops.stop_gradient), (real(3),), 0, "stop_gradient"),
    Case("barrier", on_nodes(ops.barrier), (real(3),), 2, "barrier"),
    Case("variable", on_nodes(ops.variable), (real(3),), 2, "variable"),
    Case("checkpoint", _checkpointed, (real(3),), 2, "checkpoint"),
]


def _iota(x: Any) -> Any:
    return wrap(ops.add(ops.cast(iota(x.shape[0], int64, x.device), dtype=x.dtype), x.node))


LEAVES = [
    Case("const", lambda x: wrap(x.node + 2.5), (real(3),), 2, "const"),
    Case("iota", _iota, (real(5),), 2, "iota"),
    Case("stored", lambda x: x, (real(3),), 1, "stored"),
]

PRIMITIVE_CASES = [
    *ELEMENTWISE,
    *REDUCTIONS,
    *VIEWS,
    *GATHERS,
    *CONTRACTIONS,
    *CONVOLUTIONS,
    *WINDOWS,
    *CONTROLS,
    *LEAVES,
]

# Functions of tensors, one row for each family: what they are composed of was checked above. The
# activations and the elementwise array functions have tables of their own, beside their values.


def _function(name: str, f: Callable[..., Any], *inputs: Input) -> Case:
    return Case(name, f, inputs)


def _statistics(x: Any) -> Any:
    return mg.concat([mg.var(x, axis=0, correction=1), mg.std(x, axis=0), mg.logsumexp(x, axis=0)])


def _moments(x: Any) -> Any:
    return mg.stack(nn.moments(x, (0, 2)))


def _batch_norm(x: Any, weight: Any, bias: Any) -> Any:
    return nn.batch_norm(x, None, None, weight, bias, training=True)


_IMAGE = real(2, 4, 3, 2)
FUNCTION_CASES = [
    _function("matmul", lambda a, b: a @ b, real(2, 2, 3), real(3, 2)),
    _function("einsum", lambda a, b: mg.einsum("bij,bkj->ik", a, b), real(2, 2, 3), real(2, 3, 3)),
    _function("tensordot", lambda a, b: mg.tensordot(a, b, axes=2), real(2, 2, 3), real(2, 3, 2)),
    _function("var, std, logsumexp", _statistics, real(4, 3)),
    _function("prod", lambda x: mg.prod(x, axis=1), real(2, 4)),
    _function("min", lambda x: mg.min(x, axis=0), real(3, 4)),
    _function("indexing", lambda x: x[1:, ::2] * x[0, None, 1], real(3, 4)),
    _function("integer indexing", lambda x, i: x[i, 1], real(4, 3), indices(5, 4)),
    _function("boolean indexing", lambda x: x[x > 0.0], real(3, 4)),
    _function(
        "take_along_axis",
        lambda x: mg.take_along_axis(x, mg.argmax(x, axis=1, keepdims=True), axis=1),
        real(3, 4),
    ),
    _function(
        "roll, tile, repeat",
        lambda x: mg.roll(mg.tile(mg.repeat(x, 2, axis=0), (1, 2)), 1, axis=1),
        real(2, 3),
    ),
    _function("tril, diagonal", lambda x: mg.tril(x) * mg.diagonal(x), real(3, 3)),
    _function("broadcasting", lambda a, b: a * b - a / (b * b + 1.0), real(3, 1), real(2, 1, 4)),
    _function("linear", nn.linear, real(2, 3), real(4, 3), real(4)),
    _function(
        "conv2d",
        lambda x, w, b: nn.conv2d(x, w, b, stride=2, padding=1),
        real(1, 2, 4, 5),
        real(3, 2, 3, 3),
        real(3),
    ),
    _function(
        "conv_transpose2d",
        lambda x, w, b: nn.conv_transpose2d(
            x, w, b, stride=2, padding=1, output_padding=1, groups=2
        ),
        real(1, 2, 3, 2),
        real(2, 2, 3, 2),
        real(4),
    ),
    _function("max_pool2d", lambda x: nn.max_pool2d(x, 3, 2, padding=1), real(1, 2, 4, 4)),
    _function(
        "avg_pool2d",
        lambda x: nn.avg_pool2d(x, 2, 2, padding=1, count_include_pad=False),
        real(1, 2, 3, 4),
    ),
    _function("adaptive_avg_pool2d", lambda x: nn.adaptive_avg_pool2d(x, (2, 3)), real(1, 2, 5, 4)),
    _function("moments", _moments, real(3, 2, 2)),
    _function("batch_norm", _batch_norm, _IMAGE, positive(4), real(4)),
    _function(
        "layer_norm", lambda x, w, b: nn.layer_norm(x, (4,), w, b), real(3, 4), positive(4), real(4)
    ),
    _function(
        "group_norm", lambda x, w, b: nn.group_norm(x, 2, w, b), _IMAGE, positive(4), real(4)
    ),
    _function("instance_norm", nn.instance_norm, _IMAGE),
    _function("rms_norm", lambda x, w: nn.rms_norm(x, (4,), w), real(3, 4), positive(4)),
    _function(
        "local_response_norm", lambda x: nn.local_response_norm(x, 3, alpha=0.5), real(1, 4, 2, 2)
    ),
    _function(
        "local_response_norm within",
        lambda x: nn.local_response_norm(x, 3, alpha=0.5, mode="within_channel"),
        real(1, 2, 3, 3),
    ),
    _function("softmax", nn.softmax, real(3, 4)),
    _function(
        "cross_entropy",
        lambda x, k: nn.cross_entropy(x, k, label_smoothing=0.1),
        real(3, 4),
        indices(3, 4),
    ),
    _function(
        "binary_cross_entropy_with_logits",
        nn.binary_cross_entropy_with_logits,
        real(5),
        Input((5,), 0.0, 1.0),
    ),
    _function("mse_loss", nn.mse_loss, real(2, 3), real(2, 3)),
]
