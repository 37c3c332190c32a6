"""A normalization's formula is written once: its layer is its function, and it rounds once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import layers
import minigrad as mg
from layers import norm
from minigrad import dtype as dtypes
from minigrad import nn
from minigrad.device import Device, computes
from minigrad.dtype import PRECISION, DType
from minigrad.execution.compute import export_bytes

FLOATING = [d for d in dtypes.ALL if d.is_floating]


class Row(NamedTuple):
    make: Callable[[], layers.Module]
    shape: tuple[int, ...]
    function: Callable[..., mg.Tensor]  # of x, the module's mode and its state


def batch(x: mg.Tensor, training: bool, state: dict[str, Any], momentum: Any = 0.1) -> mg.Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    return nn.batch_norm(
        x, *[state.get(n) for n in names], training, momentum,
        num_batches_tracked=state.get("num_batches_tracked"),
    )  # fmt: skip


def instance(x: mg.Tensor, training: bool, state: dict[str, Any]) -> mg.Tensor:
    mean = state.get("running_mean")
    return nn.instance_norm(
        x, mean, state.get("running_var"), state.get("weight"), state.get("bias"),
        training or mean is None, num_batches_tracked=state.get("num_batches_tracked"),
    )  # fmt: skip


def renorm(x: mg.Tensor, training: bool, state: dict[str, Any]) -> mg.Tensor:
    names = ("running_mean", "running_std", "weight", "bias")
    return nn.batch_renorm(
        x, *[state[n] for n in names], training, r_max=1.0, d_max=0.0,
        num_batches_tracked=state["num_batches_tracked"],
    )  # fmt: skip


# At least one for each layer of `layers.norm`.
ROWS = {
    "BatchNorm": Row(lambda: norm.BatchNorm(3), (4, 3, 2, 2, 2), batch),
    "BatchNorm1d": Row(lambda: norm.BatchNorm1d(3), (5, 3), batch),
    "BatchNorm2d": Row(lambda: norm.BatchNorm2d(3), (4, 3, 2, 3), batch),
    "BatchNorm3d": Row(lambda: norm.BatchNorm3d(3), (2, 3, 2, 2, 2), batch),
    "BatchNorm2d, average": Row(
        lambda: norm.BatchNorm2d(3, momentum=None),
        (4, 3, 2, 3),
        lambda x, training, state: batch(x, training, state, None),
    ),
    "BatchNorm2d, no state": Row(
        lambda: norm.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 2, 3), batch
    ),
    "InstanceNorm": Row(lambda: norm.InstanceNorm(3, affine=True), (2, 3, 2, 2, 2), instance),
    "InstanceNorm1d": Row(lambda: norm.InstanceNorm1d(3), (2, 3, 7), instance),
    "InstanceNorm3d": Row(lambda: norm.InstanceNorm3d(3), (2, 3, 2, 2, 2), instance),
    "InstanceNorm2d": Row(
        lambda: norm.InstanceNorm2d(3, affine=True, track_running_stats=True),
        (4, 3, 2, 3),
        instance,
    ),
    "LayerNorm": Row(
        lambda: norm.LayerNorm((3, 5)),
        (4, 3, 5),
        lambda x, _, state: nn.layer_norm(x, (3, 5), state["weight"], state["bias"]),
    ),
    "GroupNorm": Row(
        lambda: norm.GroupNorm(2, 4),
        (3, 4, 2, 3),
        lambda x, _, state: nn.group_norm(x, 2, state["weight"], state["bias"]),
    ),
    "RMSNorm": Row(
        lambda: norm.RMSNorm(9),
        (4, 9),
        lambda x, _, state: nn.rms_norm(x, 9, state["weight"]),
    ),
    "LocalResponseNorm": Row(
        lambda: norm.LocalResponseNorm(3),
        (2, 5, 2, 3),
        lambda x, _, __: nn.local_response_norm(x, 3),
    ),
    "FilterResponseNorm": Row(
        lambda: norm.FilterResponseNorm(3),
        (2, 3, 4, 5),
        lambda x, _, state: nn.filter_response_norm(
            x, state["weight"], state["bias"], state["threshold"]
        ),
    ),
    "FilterResponseNorm, learned": Row(
        lambda: norm.FilterResponseNorm(3, learn_eps=True),
        (2, 3, 4, 5),
        lambda x, _, state: nn.filter_response_norm(
            x, state["weight"], state["bias"], state["threshold"], 1e-6 + mg.abs(state["extra_eps"])
        ),
    ),
    "BatchRenorm": Row(lambda: norm.BatchRenorm(3), (4, 3, 2, 2, 2), renorm),
    "BatchRenorm1d": Row(lambda: norm.BatchRenorm1d(3), (5, 3), renorm),
    "BatchRenorm2d": Row(lambda: norm.BatchRenorm2d(3), (4, 3, 2, 3), renorm),
    "MeanOnlyBatchNorm": Row(
        lambda: norm.MeanOnlyBatchNorm(3),
        (4, 3, 2),
        lambda x, training, state: nn.mean_only_batch_norm(
            x, state["running_mean"], state["bias"], training,
            num_batches_tracked=state["num_batches_tracked"],
        ),
    ),
    "DecorrelatedBatchNorm": Row(
        lambda: norm.DecorrelatedBatchNorm(4, groups=2),
        (9, 4),
        lambda x, training, state: nn.decorrelated_batch_norm(
            x, *[state[n] for n in ("running_mean", "running_whitener", "weight", "bias")],
            training, groups=2, num_batches_tracked=state["num_batches_tracked"],
        ),
    ),
}  # fmt: skip
# Wrapped layers, of which test_reparametrization.py says the same; and what is no layer.
OTHERS = {"NormProp", "NormPropConv2d", "NormPropLinear", "SpectralNorm", "WeightNorm"}
OTHERS |= {"WeightStandardization", "AdaBN", "ExponentialMovingAverage"}


def normal(shape: tuple[int, ...], seed: int, dtype: DType, device: Device) -> mg.Tensor:
    x = mg.random.normal(shape, 3, 2, "float32", device, generator=mg.random.Generator(seed))
    return x.astype(dtype)


def ready(row: Row, dtype: DType, device: Device) -> layers.Module:
    """A layer with parameters that are not 0 and 1."""
    layer = row.make().to(device, dtype)
    for seed, p in enumerate(layer.parameters(), 10):
        p.assign(normal(p.shape, seed, dtype, device))
    return layer


def copied(layer: layers.Module) -> dict[str, mg.Tensor]:
    mg.evaluate(*layer.state_dict().values())
    trained = dict(layer.named_parameters())
    return {k: mg.tensor(v, requires_grad=k in trained) for k, v in layer.state_dict().items()}


def bits_of_a_step(
    function: Callable[[mg.Tensor], mg.Tensor],
    state: dict[str, mg.Tensor],
    x: mg.Tensor,
    g: mg.Tensor,
) -> dict[str, tuple[str, bytes]]:
    """Dtype and bytes of the output, the gradients and the new state, all computed together."""
    x = mg.tensor(x, requires_grad=True)
    y = function(x)
    points = {"x": x} | {name: t for name, t in state.items() if t.requires_grad}
    gradients = mg.gradients([y], list(points.values()), [g])
    results = {"y": y, **state}
    results |= {f"d{name}": d for name, d in zip(points, gradients, strict=True)}
    mg.evaluate(*results.values())
    return {name: (t.dtype.name, bytes(export_bytes(t))) for name, t in results.items()}


def test_every_layer_has_a_row():
    normalizing = [cls for cls in vars(norm).values() if isinstance(cls, type)]
    names = {cls.__name__ for cls in normalizing if issubclass(cls, layers.Module)}
    assert names - OTHERS == {name.partition(",")[0] for name in ROWS}


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ROWS)
def test_a_layer_is_its_function_bit_for_bit(name, dtype, device):
    """Values, gradients and state, over two batches in training and one in inference."""
    if not computes(device.type, dtype):
        pytest.skip(f"{device} does not compute with {dtype.name}")
    row = ROWS[name]
    layer = ready(row, dtype, device)
    state = copied(layer)
    for step, training in enumerate((True, True, False)):
        layer.train(training)
        x = normal(row.shape, step, dtype, device)
        g = normal(row.shape, step + 5, dtype, device)
        mg.evaluate(x, g)
        own = dict([*layer.named_parameters(), *layer.named_buffers()])
        mine = bits_of_a_step(layer, own, x, g)
        theirs = bits_of_a_step(lambda x, t=training: row.function(x, t, state), state, x, g)
        assert mine["y"][0] == dtype.name
        assert mine == theirs


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: d.name)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ROWS)
def test_it_rounds_once(name, training, dtype, device):
    """As far from float64 as the rounding of the result, and what float32 itself is off."""
    if not computes(device.type, dtype):
        pytest.skip(f"{device} does not compute with {dtype.name}")
    row = ROWS[name]
    layer = ready(row, dtype, device).train(training)
    x = normal(row.shape, 1, dtype, device)
    exact = ready(row, dtype, device).to("float64").train(training)
    if isinstance(layer, norm.RMSNorm):
        exact.eps = 2.0 ** (1 - PRECISION[dtype])  # the resolution of the layer's dtype
    y, expected = layer(x).astype("float64"), exact(x.astype("float64"))
    half_a_step = 2.0 ** -PRECISION[dtype] * mg.abs(expected)
    float32 = 8 * 2.0 ** -PRECISION[dtypes.accumulator(dtype)] * mg.max(mg.abs(expected))
    assert mg.all(mg.abs(y - expected) <= half_a_step + float32).item()


def test_parameters_may_be_wider_than_the_input(device):
    """Mixed precision: halves, normalized by float32 parameters and statistics."""
    if not computes(device.type, mg.bfloat16):
        pytest.skip(f"{device} does not compute with bfloat16")
    x = normal((4, 3, 5), 1, mg.bfloat16, device)
    layer = norm.BatchNorm1d(3).to(device)
    y = layer(x)
    assert y.dtype is mg.bfloat16
    assert layer.running_mean.dtype is mg.float32
    assert mg.all(y == layer(x.astype("float32")).astype("bfloat16")).item()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.batch_norm(x, training=True, bias=mg.ones(3), allow_degenerate=True),
        lambda x: nn.instance_norm(x, bias=mg.ones(3), allow_degenerate=True),
        lambda x: nn.group_norm(x, 3, bias=mg.ones(3), allow_degenerate=True),
        lambda x: nn.layer_norm(x, 1, bias=mg.ones(1), allow_degenerate=True),
    ],
)
def test_sets_of_one_value_give_the_bias_where_that_is_allowed(function):
    x = mg.tensor([[[4.0], [5.0], [6.0]]], requires_grad=True)
    y = function(x)
    assert y.tolist() == [[[1.0], [1.0], [1.0]]]
    assert mg.gradients([y], [x], [x.detach()])[0].tolist() == [[[0.0], [0.0], [0.0]]]


def test_what_standardize_tells():
    x = mg.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 80.0]], dtype="float64")
    own = nn.standardize(x, 0, eps=0.5)
    assert (own.n, own.mean.tolist()) == (3, [[3.0, 40.0]])
    assert own.deviation.tolist() == [[-2.0, -30.0], [0.0, -10.0], [2.0, 40.0]]
    assert own.var.tolist()[0] == pytest.approx([8 / 3, 2600 / 3])
    assert own.x_hat.tolist()[2] == pytest.approx(
        [2 / (8 / 3 + 0.5) ** 0.5, 40 / (2600 / 3 + 0.5) ** 0.5]
    )
    with pytest.raises(ValueError, match="standardize: expected more than one value"):
        nn.standardize(x, ())


def test_an_average_of_all_batches_needs_their_count():
    with pytest.raises(ValueError, match="num_batches_tracked with momentum=None"):
        nn.batch_norm(mg.ones((2, 3)), mg.zeros(3), mg.ones(3), training=True, momentum=None)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (lambda: norm.LayerNorm((3, 4)), lambda n: n.LayerNorm((3, 4)), (2, 3, 4)),
        (lambda: norm.LayerNorm(4, bias=False), lambda n: n.LayerNorm(4, bias=False), (2, 3, 4)),
        (lambda: norm.GroupNorm(2, 4, 1e-3), lambda n: n.GroupNorm(2, 4, 1e-3), (2, 4, 3)),
        (lambda: norm.RMSNorm(4), lambda n: n.RMSNorm(4), (2, 3, 4)),
        (lambda: norm.InstanceNorm1d(3), lambda n: n.InstanceNorm1d(3), (2, 3, 4)),
        (
            lambda: norm.InstanceNorm2d(3, affine=True, track_running_stats=True),
            lambda n: n.InstanceNorm2d(3, affine=True, track_running_stats=True),
            (2, 3, 4, 2),
        ),
        (lambda: norm.LocalResponseNorm(4, 0.2), lambda n: n.LocalResponseNorm(4, 0.2), (2, 5, 3)),
    ],
)
@pytest.mark.usefixtures("on_cpu")
def test_layers_have_the_names_state_and_values_of_pytorchs(ours, theirs, shape):
    torch = pytest.importorskip("torch")
    mine, other = ours().to("float64"), theirs(torch.nn).double()
    assert list(mine.state_dict()) == list(other.state_dict())
    for step, training in enumerate((True, True, False)):
        x = normal(shape, step, mg.float64, mg.cpu)
        y = mine.train(training)(x)
        expected = other.train(training)(torch.tensor(x.tolist(), dtype=torch.float64))
        assert y.reshape(-1).tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-10)
    for name, value in other.state_dict().items():
        if name != "num_batches_tracked":
            own = mine.state_dict()[name].reshape(-1).tolist()
            assert own == pytest.approx(value.flatten().tolist(), rel=1e-10)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: norm.GroupNorm(2, 3), (2, 3), "num_groups to divide num_channels, got 2 groups"),
        (lambda: norm.GroupNorm(3, 3), (2, 4, 5), "GroupNorm: expected 3 channels at axis 1"),
        (
            lambda: norm.LayerNorm(4),
            (2, 3),
            r"layer_norm: expected x that ends in the shape \(4,\)",
        ),
        (lambda: norm.InstanceNorm2d(3), (2, 3, 4), r"expected x of shape \(N, C, H, W\), got"),
        (lambda: norm.InstanceNorm1d(3), (2, 3, 1), "more than one value for each statistic"),
    ],
)
def test_what_does_not_fit_is_named(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make()(mg.zeros(shape))
