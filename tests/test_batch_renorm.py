"""Batch renormalization, mean-only and decorrelated batch normalization: other uses of a batch."""

from __future__ import annotations

import pytest

import minigrad as mg
from layers import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    DecorrelatedBatchNorm,
    Linear,
    MeanOnlyBatchNorm,
    Sequential,
    WeightNorm,
)
from minigrad import nn
from minigrad.data import Whitening
from tests import closed_forms


def normal(*shape, seed=0, dtype="float64", device=None):
    generator = mg.random.Generator(seed)
    return mg.random.normal(shape, dtype=dtype, device=device, generator=generator)


def flat(t):
    return mg.reshape(t, (-1,)).tolist()


def assert_close(found, expected, rel=1e-10):
    expected = expected if isinstance(expected, list) else flat(expected)
    assert flat(found) == pytest.approx(expected, rel=rel, abs=rel)


def column(values):
    return mg.tensor([[float(v)] for v in values], dtype="float64")


def vector(*values):
    return mg.tensor([float(v) for v in values], dtype="float64")


SHAPES = [(6, 3), (3, 3, 2, 2)]


# Batch renormalization.


def test_golden_batch_renorm():
    x, g = column([1, 3, 5, 7]).requires_grad_(), column([1, 0, 0, 0])
    mean, std, gamma = vector(3), vector(2), vector(2).requires_grad_()
    y = nn.batch_renorm(x, mean, std, gamma, vector(0.5), True, 0.01, 1e-3, 1.1, 0.25)
    dx, dgamma = mg.gradients([y], [x, gamma], [g])
    assert_close(y, [-1.9513146136, 0.0162284621, 1.9837715379, 3.9513146136])
    assert_close(dx, [0.2952199831, -0.3934791079, -0.098406661, 0.1966657858])
    assert_close(dgamma, [-1.2256573068])
    assert_close(mean, [3.01])
    assert_close(std, [2.0023629157])


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_renorm_equals_its_closed_form(shape):
    x, g = (2 + 3 * normal(*shape)).requires_grad_(), normal(*shape, seed=1)
    gamma, beta = (t.requires_grad_() for t in (normal(3, seed=2), normal(3, seed=3)))
    mean, std = 2 + normal(3, seed=4), 2 + mg.abs(normal(3, seed=5))
    limits = 1.3, 0.2  # some channels beyond, some within
    expected = closed_forms.batch_renorm(
        *(t.detach() for t in (x, gamma, beta)), g, mean, std, *limits, eps=1e-3
    )
    y = nn.batch_renorm(x, mean + 0, std + 0, gamma, beta, True, 0.01, 1e-3, *limits)
    for a, b in zip([y, *mg.gradients([y], [x, gamma, beta], [g])], expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_renorm_has_two_derivatives_where_r_and_d_are_at_their_limits(shape):
    mean, std = vector(-50, 50, -50), vector(0.1, 0.1, 90)

    def f(x, gamma, beta):
        return nn.batch_renorm(x, mean + 0, std + 0, gamma, beta, True, 0.01, 1e-3, 1.5, 0.5)

    mg.gradcheck(f, normal(*shape), normal(3, seed=1), normal(3, seed=2), order=2)


def test_within_the_limits_training_is_inference():
    x, mean, std = normal(6, 3), normal(3, seed=1), 1 + mg.abs(normal(3, seed=2))
    y = nn.batch_renorm(x, mean + 0, std + 0, training=True, r_max=1e9, d_max=1e9)
    assert_close(y, (x - mean) / std)
    assert_close(nn.batch_renorm(x, mean, std), (x - mean) / std)


def test_the_tightest_limits_are_batch_norm():
    x = normal(6, 3)
    y = nn.batch_renorm(x, normal(3, seed=1), 1 + mg.abs(normal(3, seed=2)), training=True)
    assert_close(y, nn.batch_norm(x, training=True))


def test_five_steps_of_batch_renorm():
    layer = BatchRenorm1d(1, momentum=0.2, r_max=2.0, d_max=1.0, schedule=(1, 3, 4)).to("float64")
    mean, std = 0.0, 1.0
    for t in range(5):
        values = [3 * v + 1 for v in flat(normal(4, seed=t))]
        y = layer(column(values))
        r_max, d_max = (
            1 + min(max((t - 1) / 2, 0), 1), min(max((t - 1) / 3, 0), 1)
        )  # fmt: skip
        m = sum(values) / 4
        s = (sum((v - m) ** 2 for v in values) / 4 + 1e-5) ** 0.5
        r = min(max(s / std, 1 / r_max), r_max)
        d = min(max((m - mean) / std, -d_max), d_max)
        assert_close(y, [(v - m) / s * r + d for v in values])
        mean, std = mean + 0.2 * (m - mean), std + 0.2 * (s - std)
        assert_close(layer.running_mean, [mean])
        assert_close(layer.running_std, [std])
    assert layer.num_batches_tracked.item() == 5
    assert_close(layer.eval()(column(values)), [(v - mean) / std for v in values])


@pytest.mark.parametrize(
    ("batches", "r_max", "d_max"),
    [(0, 1, 0), (5000, 1, 0), (15000, 1 + 2 / 3.5, 2.5), (22500, 2, 4.375), (90000, 3, 5)],
)
def test_the_papers_schedule_goes_by_the_saved_count(batches, r_max, d_max):
    layer = BatchRenorm2d(2)
    layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": batches})
    assert [t.item() for t in layer.limits()] == pytest.approx([r_max, d_max])


def test_a_compiled_step_follows_the_schedule():
    plain, compiled = (BatchRenorm1d(3, schedule=(0, 4, 4), momentum=0.1) for _ in range(2))
    step = mg.compile(lambda x: compiled(x))
    for seed in range(6):
        x = 1 + normal(5, 3, seed=seed, dtype="float32")
        assert_close(step(x), plain(x), rel=1e-5)
    assert_close(compiled.running_std, plain.running_std, rel=1e-5)
    assert compiled.num_batches_tracked.item() == 6


def test_batch_renorm_of_one_sample():
    layer = BatchRenorm(2, r_max=1.0, d_max=0.5, schedule=(0, 1, 1), allow_degenerate=True)
    layer.num_batches_tracked.assign(layer.num_batches_tracked + 9)
    assert layer(normal(1, 2, 3, 3, dtype="float32")).shape == (1, 2, 3, 3)  # one image
    before = flat(layer.running_mean), flat(layer.running_std), layer.num_batches_tracked.item()
    x = mg.tensor([[9.0, -9.0]], requires_grad=True)
    g = mg.tensor([[2.0, 3.0]])
    y = layer(x)
    dx, dweight, dbias = mg.gradients([y], [x, layer.weight, layer.bias], [g])
    assert y.tolist() == [[0.5, -0.5]]  # d
    assert dx.tolist() == [[0.0, 0.0]]
    assert (dweight.tolist(), dbias.tolist()) == ([1.0, -1.5], [2.0, 3.0])
    after = flat(layer.running_mean), flat(layer.running_std), layer.num_batches_tracked.item()
    assert after == before
    with pytest.raises(ValueError, match="batch_renorm: expected more than one value"):
        BatchRenorm1d(2)(x)


def test_a_constant_batch_takes_the_smallest_r():
    x = mg.full((4, 1), 3.0, dtype="float64").requires_grad_()
    y = nn.batch_renorm(x, vector(3), vector(1), training=True, r_max=2.0, d_max=1.0)
    (dx,) = mg.gradients([y], [x], [column([1, 0, 0, 0])])
    assert flat(y) == [0.0] * 4
    assert_close(dx, [0.5 / 1e-5**0.5 * v for v in (0.75, -0.25, -0.25, -0.25)])


# Mean-only batch normalization.


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_only_batch_norm(shape):
    layer = MeanOnlyBatchNorm(3).to("float64")
    layer.bias.assign(normal(3, seed=1))
    x, g = (5 + normal(*shape)).requires_grad_(), normal(*shape, seed=2)
    axes = (0, *range(2, x.ndim))
    mean, bias = (
        mg.mean(x.detach(), axis=axes, keepdims=True),
        layer.bias.reshape((3, *(1,) * (x.ndim - 2))),
    )
    y = layer(x)
    dx, db = mg.gradients([y], [x, layer.bias], [g])
    assert_close(y, x.detach() - mean + bias)
    assert_close(dx, g - mg.mean(g, axis=axes, keepdims=True))
    assert_close(db, mg.sum(g, axis=axes))
    assert_close(layer.running_mean, mg.reshape(0.1 * mean, (3,)))
    running = mg.reshape(layer.running_mean, bias.shape)
    assert_close(layer.eval()(x), x.detach() - running + bias)
    mg.gradcheck(lambda x, b: nn.mean_only_batch_norm(x, mg.zeros((3,), dtype="float64"), b, True),
                 normal(*shape), normal(3), order=2)  # fmt: skip


def test_mean_only_batch_norm_after_weight_norm():
    model = Sequential(WeightNorm(Linear(4, 3, bias=False)), MeanOnlyBatchNorm(3)).to("float64")
    model[0].initialize(normal(64, 4))
    y = model(normal(64, 4))
    assert_close(mg.mean(y, axis=0), [0.0] * 3)
    assert_close(mg.std(y, axis=0), [1.0] * 3, rel=1e-8)
    assert list(model[1].state_dict()) == ["bias", "running_mean", "num_batches_tracked"]
    with pytest.raises(ValueError, match="mean_only_batch_norm: expected more than one value"):
        model(normal(1, 4))


# Decorrelated batch normalization.


def covariance(y):
    """Of the channels, over all else."""
    rows = mg.moveaxis(y, 1, -1).reshape((-1, y.shape[1]))
    z = rows - mg.mean(rows, axis=0)
    return z.T @ z / rows.shape[0]


@pytest.mark.parametrize("shape", [(12, 4), (3, 4, 2, 3)])
def test_decorrelated_batch_norm_is_zca_of_the_batch(shape):
    x = mg.einsum("nc...,cd->nd...", 3 + normal(*shape), normal(4, 4, seed=1))
    y = nn.decorrelated_batch_norm(x, iterations=30)
    expected = Whitening("zca", eps=1e-5, per="channel").fit([x])(x)
    assert_close(y, expected, rel=1e-9)
    assert_close(covariance(y), mg.eye(4, dtype="float64"), rel=1e-2)  # eps


def test_groups_are_whitened_apart():
    x = normal(12, 4) @ normal(4, 4, seed=1)
    y = nn.decorrelated_batch_norm(x, groups=2, iterations=30)
    halves = [nn.decorrelated_batch_norm(x[:, i : i + 2], iterations=30) for i in (0, 2)]
    assert_close(y, mg.concat(halves, axis=1))


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 2)])
def test_groups_of_one_channel_are_batch_norm(shape):
    x, g = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    y, expected = nn.decorrelated_batch_norm(x, groups=3), nn.batch_norm(x, training=True)
    assert_close(y, expected)
    assert_close(mg.gradients([y], [x], [g])[0], mg.gradients([expected], [x], [g])[0])


def test_decorrelated_batch_norm_equals_its_closed_form():
    x, g = normal(9, 3).requires_grad_(), normal(9, 3, seed=1)
    y = nn.decorrelated_batch_norm(x, eps=1e-3, iterations=4)
    (dx,) = mg.gradients([y], [x], [g])
    expected_y, expected_dx = closed_forms.decorrelation(x.detach(), g, 1e-3, 4)
    assert_close(y, expected_y)
    assert_close(dx, expected_dx)
    assert_close(mg.sum(dx, axis=0), [0.0] * 3)


def test_decorrelated_batch_norm_has_two_derivatives():
    def f(x, gamma, beta):
        return nn.decorrelated_batch_norm(x, None, None, gamma, beta, groups=2, eps=1e-2)

    mg.gradcheck(f, normal(5, 4), normal(4, seed=1), normal(4, seed=2), order=2)


def test_five_steps_of_decorrelated_batch_norm():
    layer = DecorrelatedBatchNorm(3, momentum=0.2).to("float64")
    mean, whitener = mg.zeros((3,), dtype="float64"), mg.eye(3, dtype="float64")
    for seed in range(5):
        x = normal(8, 3, seed=seed) @ normal(3, 3, seed=9)
        mg.evaluate(layer(x))
        mean = 0.8 * mean + 0.2 * mg.mean(x, axis=0)
        w = closed_forms.newton_roots(covariance(x) + 1e-5 * mg.eye(3, dtype="float64"), 5)[-1]
        trace = mg.trace(covariance(x)) + 3e-5
        whitener = 0.8 * whitener + 0.2 * w / mg.sqrt(trace)
    assert_close(layer.running_mean, mean)
    assert_close(layer.running_whitener, whitener)
    assert_close(layer.eval()(x), (x - mean) @ whitener)  # W is symmetric
    again = DecorrelatedBatchNorm(3).to("float64").eval()
    again.load_state_dict(layer.state_dict())
    assert_close(again(x), layer(x))


# All of them.


LAYERS = {
    "batch renorm": lambda: BatchRenorm(3, schedule=(0, 1, 1)),
    "mean only": lambda: MeanOnlyBatchNorm(3),
    "decorrelated": lambda: DecorrelatedBatchNorm(3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch_changes_nothing(name):
    layer = LAYERS[name]()
    before = [flat(b) for b in layer.buffers()]
    y = layer(mg.zeros((0, 3)))
    assert y.shape == (0, 3)
    assert y.tolist() == []
    assert [flat(b) for b in layer.buffers()] == before


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_statistics_are_used_and_kept(name):
    layer, x = LAYERS[name](), normal(5, 3, dtype="float32")
    mg.evaluate(layer(1 + 2 * x))
    before = [flat(b) for b in layer.buffers()]
    expected = flat(layer.eval()(x))
    assert flat(layer.train().freeze_statistics()(x)) == expected
    assert [flat(b) for b in layer.buffers()] == before


def test_decay_is_one_minus_momentum():
    assert BatchRenorm(3, decay=0.9).momentum == MeanOnlyBatchNorm(3, decay=0.9).momentum
    with pytest.raises(ValueError, match="expected momentum or decay"):
        BatchRenorm(3, momentum=0.1, decay=0.9)


def test_messages():
    with pytest.raises(ValueError, match=r"BatchRenorm2d: expected r_max >= 1, d_max >= 0 and a"):
        BatchRenorm2d(3, r_max=0.5)
    with pytest.raises(ValueError, match=r"schedule \(first, r_steps, d_steps\) with first < both"):
        BatchRenorm2d(3, schedule=(5, 5, 9))
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, H, W\), got \(2, 3\)"):
        BatchRenorm2d(3)(mg.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"expected running_std of shape \(3,\), got \(2,\)"):
        nn.batch_renorm(mg.zeros((4, 3)), mg.zeros((3,)), mg.ones((2,)))
    with pytest.raises(ValueError, match="expected groups to divide num_features, got 2 groups of"):
        DecorrelatedBatchNorm(3, groups=2)
    with pytest.raises(ValueError, match="expected groups to divide 3, got 2"):
        nn.decorrelated_batch_norm(mg.zeros((4, 3)), groups=2)


def test_texts():
    assert repr(BatchRenorm1d(3)) == (
        "BatchRenorm1d(3, eps=1e-05, momentum=0.01, affine=True, track_running_stats=True, "
        "r_max=3.0, d_max=5.0, schedule=(5000, 40000, 25000))"
    )
    assert repr(MeanOnlyBatchNorm(3)) == "MeanOnlyBatchNorm(3, momentum=0.1)"
    assert repr(DecorrelatedBatchNorm(4, groups=2)) == (
        "DecorrelatedBatchNorm(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, "
        "groups=2, iterations=5)"
    )
