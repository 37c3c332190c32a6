"""BatchNorm's statistics, modes, invariances, edge cases."""

from __future__ import annotations

import gc

import pytest

import minigrad as mg
from examples.batchnorm_by_hand import flat
from layers import BatchNorm, BatchNorm1d, BatchNorm2d, Conv2d, Linear, Sequential
from minigrad.graph import topological

BATCHES = [[1, 3, 5, 7], [2, 2, 4, 8], [0, 1, 0, 3]]


def column(values, dtype="float64"):
    return mg.tensor([[float(v)] for v in values], dtype=dtype)


def normal(*shape, seed=0, dtype="float64"):
    return mg.random.normal(shape, dtype=dtype, generator=mg.random.Generator(seed))


def close(a, b, tolerance=1e-12):
    return mg.max(mg.abs(a - b)).item() <= tolerance


# Training statistics.


def test_output_has_mean_0_and_the_known_variance():
    x = 5 + 2 * normal(4, 3, 2, 5)
    layer = BatchNorm2d(3, affine=False).to("float64")
    y = layer(x)
    var = mg.var(x, axis=(0, 2, 3))
    assert close(mg.mean(y, axis=(0, 2, 3)), mg.zeros((3,), dtype="float64"), 1e-14)
    assert close(mg.var(y, axis=(0, 2, 3)), var / (var + 1e-5))


@pytest.mark.parametrize(
    ("momentum", "means", "variances"),
    [
        (0.1, [0.4, 0.76, 0.784], [1.5666667, 2.21, 2.189]),
        (None, [4, 4, 3], [6.6666667, 7.3333333, 5.5555556]),
    ],
)
def test_golden_running_statistics(momentum, means, variances):
    layer = BatchNorm1d(1, momentum=momentum).to("float64")
    for step, (batch, mean, var) in enumerate(zip(BATCHES, means, variances, strict=True), 1):
        mg.evaluate(layer(column(batch)))
        assert layer.running_mean.tolist() == pytest.approx([mean], abs=1e-7)
        assert layer.running_var.tolist() == pytest.approx([var], abs=1e-7)
        assert layer.num_batches_tracked.item() == step


def test_momentum_0_keeps_and_momentum_1_replaces():
    keep, replace = BatchNorm1d(1, momentum=0.0), BatchNorm1d(1, momentum=1.0)
    keep(column(BATCHES[0], "float32")), replace(column(BATCHES[0], "float32"))
    assert (keep.running_mean.tolist(), keep.running_var.tolist()) == ([0.0], [1.0])
    assert replace.running_mean.tolist() == [4.0]
    assert replace.running_var.tolist() == pytest.approx([20 / 3])


def test_statistics_match_pytorch_over_several_steps():
    torch = pytest.importorskip("torch")
    ours, theirs = BatchNorm2d(3, momentum=0.3), torch.nn.BatchNorm2d(3, momentum=0.3)
    for seed in range(3):
        x = normal(4, 3, 2, 2, seed=seed, dtype="float32")
        y, expected = ours(x), theirs(torch.tensor(x.tolist()))
        assert flat(y).tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        found = ours.state_dict()[name]
        assert found.shape == tuple(value.shape)
        assert flat(found).tolist() == pytest.approx(value.flatten().tolist(), abs=1e-6)


# Inference and freezing.


def trained(channels=3, seed=0):
    layer = BatchNorm(channels).to("float64")
    layer.load_state_dict(
        {
            "weight": 1 + normal(channels, seed=seed),
            "bias": normal(channels, seed=seed + 1),
            "running_mean": normal(channels, seed=seed + 2),
            "running_var": 0.5 + mg.abs(normal(channels, seed=seed + 3)),
        },
        strict=False,
    )
    return layer


def test_eval_is_a_x_plus_b():
    layer = trained().eval()
    x = normal(4, 3, 2, 2, seed=9)
    a = layer.weight / mg.sqrt(layer.running_var + layer.eps)
    b = layer.bias - a * layer.running_mean
    assert close(layer(x), mg.reshape(a, (3, 1, 1)) * x + mg.reshape(b, (3, 1, 1)))
    x, z = normal(5, 3, seed=9), normal(5, 3, seed=10)
    assert close(layer(0.25 * x + 0.75 * z), 0.25 * layer(x) + 0.75 * layer(z))


def test_eval_samples_do_not_depend_on_each_other():
    layer = trained().eval()
    x = normal(5, 3, seed=9)
    assert close(layer(x)[2:3], layer(x[2:3]), 0)


def test_eval_agrees_with_training_when_the_statistics_are_the_batchs():
    layer, x = trained(), normal(6, 3, seed=4)
    state = {"running_mean": mg.mean(x, axis=0), "running_var": mg.var(x, axis=0)}
    y = layer(x)
    layer.load_state_dict(state, strict=False)
    assert close(y, layer.eval()(x))


def test_eval_before_any_update_is_nearly_the_identity():
    x = normal(6, 3)
    assert close(BatchNorm1d(3).to("float64").eval()(x), x / (1 + 1e-5) ** 0.5)


def test_folding_into_the_convolution_before():
    conv, norm = Conv2d(2, 3, 3, padding=1).to("float64"), trained().eval()
    x = normal(2, 2, 4, 4)
    expected = norm(conv(x))
    a = norm.weight / mg.sqrt(norm.running_var + norm.eps)
    folded = {
        "weight": mg.reshape(a, (3, 1, 1, 1)) * conv.weight,
        "bias": a * (conv.bias - norm.running_mean) + norm.bias,
    }
    conv.load_state_dict(folded)
    assert close(conv(x), expected)


def statistics(layer):
    return [
        layer.running_mean.tolist(),
        layer.running_var.tolist(),
        layer.num_batches_tracked.item(),
    ]


@pytest.mark.parametrize(
    ("training", "trained_parameters"),
    [(True, True), (False, True), (False, False)],
    ids=["train", "frozen statistics", "fully frozen"],
)
def test_states_of_freezing(training, trained_parameters):
    layer = trained().train(training).requires_grad_(trained_parameters)
    before, x = statistics(layer), normal(6, 3)
    x.requires_grad_()
    mg.sum(layer(x) * normal(6, 3, seed=1)).backward()
    assert (statistics(layer) != before) == training
    assert x.grad is not None
    assert (layer.weight.grad is not None) == trained_parameters
    if not training:  # the gradient of a diagonal linear map
        a = layer.weight / mg.sqrt(layer.running_var + layer.eps)
        assert close(x.grad, a * normal(6, 3, seed=1))


def test_one_frozen_layer_in_a_training_model():
    model = Sequential(Linear(3, 3), BatchNorm1d(3), Linear(3, 2), BatchNorm1d(2))
    model[1].eval()
    mg.evaluate(model(normal(5, 3, dtype="float32")))
    assert model[1].num_batches_tracked.item() == 0
    assert model[3].num_batches_tracked.item() == 1


def test_no_gradient_reaches_the_running_statistics():
    layer, x = BatchNorm1d(3), normal(6, 3, dtype="float32")
    x.requires_grad_()
    y = layer(x)
    assert not layer.running_mean.requires_grad
    assert not layer.running_var.requires_grad
    mg.sum(y * y).backward()
    assert not layer.running_var.requires_grad


def test_without_tracking_eval_uses_the_batch():
    layer = BatchNorm1d(3, track_running_stats=False)
    x = normal(6, 3, dtype="float32")
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert close(layer(x), layer.eval()(x), 0)


def test_without_affine_there_are_no_parameters():
    layer = BatchNorm2d(3, affine=False)
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]


# Exact invariances.


def test_bias_before_batch_norm_is_redundant():
    linear, norm = Linear(4, 3).to("float64"), BatchNorm1d(3).to("float64")
    x, g = normal(6, 4), normal(6, 3, seed=1)
    y = norm(linear(x))
    assert close(y, norm(x @ linear.weight.T))
    (db,) = mg.gradients([y], [linear.bias], [g])
    assert close(db, mg.zeros_like(db), 1e-13)


def test_weight_scale_is_redundant_without_eps():
    x, g = normal(6, 4), normal(6, 3, seed=1)
    norm = BatchNorm1d(3, eps=0.0).to("float64")

    def run(weight):
        w = mg.tensor(weight, requires_grad=True)
        y = norm(x @ w.T)
        return y, mg.gradients([y], [w], [g])[0]

    weight = normal(3, 4, seed=2)
    (y, dw), (y5, dw5) = run(weight), run(5 * weight)
    assert close(y, y5)
    assert close(dw, 5 * dw5)


def test_radial_gradient_is_only_that_of_eps():
    x, g, eps = normal(6, 4), normal(6, 3, seed=1), 0.1
    linear, norm = Linear(4, 3, bias=False).to("float64"), BatchNorm1d(3, eps).to("float64")
    norm.load_state_dict({"weight": normal(3, seed=3)}, strict=False)
    z = linear(x)
    dw, dgamma = mg.gradients([norm(z)], [linear.weight, norm.weight], [g])
    expected = norm.weight * dgamma * eps / (mg.var(z, axis=0) + eps)
    assert close(mg.sum(linear.weight * dw, axis=1), expected)


def test_shift_and_scale_of_the_input():
    x, norm = normal(6, 3), BatchNorm1d(3, eps=0.0).to("float64")
    assert close(norm(3 * x + 7), norm(x))
    assert close(norm(-3 * x + 7), -norm(x))


def test_the_identity_is_within_reach():
    x, norm = normal(6, 3), BatchNorm1d(3).to("float64")
    norm.weight.assign(mg.sqrt(mg.var(x, axis=0) + norm.eps))
    norm.bias.assign(mg.mean(x, axis=0))
    assert close(norm(x), x)


def test_permuting_samples_permutes_the_output():
    x, norm, order = normal(6, 3), BatchNorm1d(3).to("float64"), mg.tensor([3, 1, 5, 0, 2, 4])
    assert close(norm(mg.take(x, order, axis=0)), mg.take(norm(x), order, axis=0))


def test_duplicating_every_sample():
    x, g = normal(4, 3), normal(4, 3, seed=1)
    one, two = BatchNorm1d(3).to("float64"), BatchNorm1d(3).to("float64")
    y, yy = one(x), two(mg.concat([x, x], axis=0))
    assert close(yy, mg.concat([y, y], axis=0))
    (d,) = mg.gradients([y], [one.weight], [g])
    (dd,) = mg.gradients([yy], [two.weight], [mg.concat([g, g], axis=0)])
    assert close(dd, 2 * d)
    assert not close(one.running_var, two.running_var, 1e-3)  # n / (n - 1) differs


def test_conv_is_fc_over_all_pixels():
    x = normal(2, 3, 4, 5)
    rows = mg.reshape(mg.permute_dims(x, (0, 2, 3, 1)), (-1, 3))
    maps = mg.permute_dims(
        mg.reshape(BatchNorm1d(3).to("float64")(rows), (2, 4, 5, 3)), (0, 3, 1, 2)
    )
    assert close(BatchNorm2d(3).to("float64")(x), maps)


def test_sequences_are_maps_of_one_row():
    x = normal(2, 3, 5)
    y = BatchNorm2d(3).to("float64")(mg.reshape(x, (2, 3, 1, 5)))
    assert close(BatchNorm1d(3).to("float64")(x), mg.reshape(y, x.shape))


# Edge cases.


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_an_error(shape):
    with pytest.raises(ValueError, match="expected more than one value for each statistic"):
        BatchNorm(3)(mg.zeros(shape))
    assert BatchNorm(3).eval()(mg.zeros(shape)).shape == shape
    with pytest.raises(ValueError, match="expected more than one value for each statistic"):
        BatchNorm(3, track_running_stats=False).eval()(mg.zeros(shape))


def test_one_value_per_channel_when_allowed():
    layer = BatchNorm1d(2, allow_degenerate=True)
    layer.bias.assign(mg.tensor([3.0, 4.0]))
    before = statistics(layer)
    assert layer(mg.tensor([[7.0, -1.0]])).tolist() == [[3.0, 4.0]]
    assert statistics(layer) == before


def test_a_constant_channel_gives_the_bias():
    layer = BatchNorm1d(1)
    assert layer(mg.full((4, 1), 3.0)).tolist() == [[0.0]] * 4
    zero_eps = BatchNorm1d(1, eps=0.0)
    x = mg.full((4, 1), 3.0)
    x.requires_grad_()
    y = zero_eps(x)  # 1 / std is defined as 0, not infinite
    assert y.tolist() == [[0.0]] * 4
    assert mg.gradients([y], [x], [column([1, 0, 0, 2], "float32")])[0].tolist() == [[0.0]] * 4


def test_an_empty_batch_changes_nothing():
    layer = BatchNorm1d(3)
    before = statistics(layer)
    y = layer(mg.zeros((0, 3)))
    assert y.shape == (0, 3)
    assert y.tolist() == []
    (dweight,) = mg.gradients([y], [layer.weight], [mg.zeros((0, 3))])
    assert dweight.tolist() == [0.0, 0.0, 0.0]
    assert statistics(layer) == before


def test_nan_spreads_to_its_channel_only():
    x = mg.tensor([[1.0, 2.0], [float("nan"), 4.0]])
    y = BatchNorm1d(2)(x).tolist()
    assert all(v != v for v in (y[0][0], y[1][0]))
    assert y[0][1] == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (BatchNorm1d(3), (2, 3, 4, 4), r"expected x of shape \(N, C\) or \(N, C, L\)"),
        (BatchNorm2d(3), (2, 3), r"expected x of shape \(N, C, H, W\), got \(2, 3\)"),
        (BatchNorm2d(3), (2, 4, 5, 5), "expected 3 channels at axis 1.*BatchNorm2d"),
        (BatchNorm(3), (3,), "expected x of shape"),
    ],
)
def test_shapes_that_do_not_fit(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(mg.zeros(shape))


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"momentum: expected .* in \[0, 1\]"):
        BatchNorm1d(3, momentum=1.5)
    with pytest.raises(ValueError, match="eps: expected a number >= 0"):
        BatchNorm1d(3, eps=-1.0)


def test_repr():
    expected = "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    assert repr(BatchNorm2d(3)) == expected


# The running statistics never become a chain.


def live_nodes():
    from minigrad.graph import Node

    gc.collect()
    return sum(1 for o in gc.get_objects() if type(o) is Node)


def depth(tensor):
    return len(topological([tensor.node]))


def run(steps, step, layer):
    sizes = []
    for i in range(steps):
        step(i)
        if i in (10, steps - 1):
            sizes.append((live_nodes(), max(depth(b) for b in layer.buffers())))
    assert sizes[0] == sizes[1]
    assert layer.num_batches_tracked.item() == steps


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_thousand_training_steps_keep_the_graph_constant(momentum):
    layer, g = BatchNorm1d(2, momentum=momentum), normal(3, 2, dtype="float32")

    def step(i):
        loss = mg.sum(layer(normal(3, 2, seed=i, dtype="float32")) * g)
        layer.zero_grad()
        loss.backward()
        layer.weight.assign(layer.weight - 0.01 * layer.weight.grad)
        layer.bias.assign(layer.bias - 0.01 * layer.bias.grad)
        mg.evaluate(layer.weight, layer.bias)

    run(1000, step, layer)


def test_a_thousand_forwards_that_only_look_at_the_loss():
    layer = BatchNorm1d(2)

    def step(i):
        mg.sum(layer(normal(3, 2, seed=i, dtype="float32")) ** 2).item()

    run(1000, step, layer)


def test_forwards_that_nobody_looks_at():
    layer, x = BatchNorm1d(2), normal(3, 2, dtype="float32")
    depths = []
    for _ in range(200):
        layer(x)
        depths.append(max(depth(b) for b in layer.buffers()))
    assert max(depths[100:]) <= max(depths[:100]) < 200
    assert layer.num_batches_tracked.item() == 200


def test_the_update_is_computed_with_the_output():
    layer = BatchNorm1d(2)
    y = layer(normal(3, 2, dtype="float32"))
    assert layer.running_mean.node.storage is None
    y.tolist()
    for buffer in layer.buffers():
        assert buffer.node.storage is not None
        assert buffer.node.inputs == ()
