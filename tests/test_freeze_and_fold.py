"""Freezing that freezes, folding that keeps outputs, and statistics of the whole data."""

from __future__ import annotations

import random

import pytest

import layers
import minigrad as mg
from layers import BatchNorm1d, BatchNorm2d, Conv2d, Linear, ReLU, Sequential
from layers import fold_batch_norm as fold


def network(*more):
    mg.random.seed(3)
    net = Sequential(
        Conv2d(3, 6, 3, padding=1), BatchNorm2d(6), ReLU(),
        Sequential(Conv2d(6, 8, 3, bias=False, groups=2), BatchNorm2d(8)),
        layers.Flatten(), Linear(8 * 4 * 4, 5), BatchNorm1d(5), *more,
    )  # fmt: skip
    for p in net.parameters():
        p.assign(p + mg.random.normal(p.shape) * 0.2)
    for _ in range(3):
        mg.evaluate(net(mg.random.normal((16, 3, 6, 6)) * 2 + 1))
    return net


def state_bits(module):
    """Every number, NaN and the sign of zero told apart."""
    return {
        name: [repr(v) for v in t.flatten().tolist()] for name, t in module.state_dict().items()
    }


# Freezing


@pytest.mark.parametrize("compiled", [False, True])
def test_a_frozen_batch_norm_keeps_its_bytes(compiled):
    net = network()
    frozen = net[1].freeze()
    net.train()
    before, others = state_bits(frozen), state_bits(net[3])
    optimizer = mg.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)

    def step(x):
        optimizer.zero_grad()
        loss = (net(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    run = mg.compile(step) if compiled else step
    for _ in range(100):
        mg.evaluate(run(mg.random.normal((4, 3, 6, 6)) + 2))
        net.train()
    assert state_bits(frozen) == before
    assert all(state_bits(net[3])[name] != old for name, old in others.items())
    assert len(before) == 5  # weight, bias, running_mean, running_var, num_batches_tracked


def test_freezing_survives_train_and_loading():
    net = network()
    net[1].freeze()
    net.train()
    assert not net[1].training
    assert net[3].training
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    assert not net[1].training
    assert not net[1].weight.requires_grad
    assert net[0].weight.requires_grad
    assert net[1].weight.tolist() != [1.0] * 6  # loading still changes values
    net[1].unfreeze()
    net.train()
    assert net[1].training
    assert net[1].weight.requires_grad


def test_the_gradient_of_a_frozen_batch_norm_is_that_of_its_affine_map():
    norm = BatchNorm2d(4).to(mg.float64)
    mg.evaluate(norm(mg.random.normal((8, 4, 3, 3), dtype="float64") * 3 + 1))
    norm.freeze().train()
    x = mg.random.normal((2, 4, 3, 3), dtype="float64").requires_grad_()
    g = mg.random.normal((2, 4, 3, 3), dtype="float64")
    (dx,) = mg.gradients([norm(x)], [x], [g])
    scale = norm.weight * mg.rsqrt(norm.running_var + norm.eps)
    expected = g * scale.reshape((4, 1, 1))
    assert mg.max(mg.abs(dx - expected)).item() < 1e-14


def test_summary_says_what_is_frozen():
    net = network()
    net[1].freeze()
    text = net.summary((1, 3, 6, 6))
    assert "1 (BatchNorm2d, frozen)" in text
    assert "12 frozen" in text


def test_an_optimizer_with_nothing_to_train_says_so():
    with pytest.raises(ValueError, match=r"require a gradient, got 11 without.*unfreeze"):
        mg.optim.SGD(network().freeze().parameters(), lr=0.1)


@pytest.mark.parametrize("state", ["train", "eval", "frozen statistics", "frozen"])
def test_four_states(state):
    """Which statistics normalize, which of the four arrays move."""
    norm = BatchNorm2d(2)
    mg.evaluate(norm(mg.random.normal((8, 2, 3, 3)) * 2 + 5))
    norm.train(state != "eval")
    if state == "frozen statistics":
        assert norm.freeze_statistics() is norm
    if state == "frozen":
        norm.freeze()
    norm.train(norm.training)
    before = state_bits(norm)
    x = mg.random.normal((8, 2, 3, 3)) * 3
    y = norm(x)
    by_batch = mg.max(mg.abs(y.mean(axis=(0, 2, 3)) - norm.bias)).item() < 1e-5
    assert by_batch == (state == "train")
    if any(p.requires_grad for p in norm.parameters()):
        optimizer = mg.optim.SGD(norm.parameters(), lr=0.1)
        (y * mg.random.normal(y.shape)).sum().backward()
        optimizer.step()
    mg.evaluate(y)
    moved = {name for name, old in before.items() if state_bits(norm)[name] != old}
    statistics, affine = {"running_mean", "running_var", "num_batches_tracked"}, {"weight", "bias"}
    assert moved == (statistics if state == "train" else set()) | (
        affine if state != "frozen" else set()
    )


def test_frozen_statistics_under_compile_and_in_the_summary():
    net = Sequential(BatchNorm2d(3))
    run = mg.compile(lambda x: net(x))
    x = mg.random.normal((4, 3, 2, 2)) + 3
    for _ in range(3):
        mg.evaluate(run(x))
    net[0].freeze_statistics()
    before = state_bits(net)
    y = run(x)
    mg.evaluate(y)
    assert state_bits(net) == before
    net[0].eval()
    assert mg.max(mg.abs(y - net(x))).item() < 1e-6
    assert "BatchNorm2d, frozen statistics)" in net.summary((4, 3, 2, 2))
    with pytest.raises(ValueError, match="expected running statistics, got none"):
        BatchNorm2d(3, track_running_stats=False).freeze_statistics()


# The weight of a batch, in either convention


@pytest.mark.parametrize("layer", [BatchNorm1d, layers.InstanceNorm1d, layers.BatchNorm3d])
def test_decay_is_one_minus_momentum(layer):
    assert layer(3, decay=0.99).momentum == pytest.approx(0.01)
    assert layer(3).momentum == 0.1
    assert layer(3, momentum=None).momentum is None
    for momentum in (0.1, 0.9, None):
        with pytest.raises(ValueError, match=f"momentum or decay, got momentum={momentum} and d"):
            layer(3, momentum=momentum, decay=0.9)
    with pytest.raises(ValueError, match=r"\.decay: expected a weight in \[0, 1\], got 1.5"):
        layer(3, decay=1.5)
    with pytest.raises(
        ValueError, match=r"\.momentum: expected a weight in \[0, 1\] or None, got 2"
    ):
        layer(3, momentum=2)


def test_volumes():
    x = mg.random.normal((2, 3, 2, 3, 2), dtype="float64")
    norm = layers.BatchNorm3d(3).to("float64")
    flat = layers.BatchNorm1d(3).to("float64")
    y, expected = norm(x), flat(x.reshape((2, 3, 12)))
    assert mg.max(mg.abs(y.reshape((2, 3, 12)) - expected)).item() < 1e-14
    assert norm.running_var.tolist() == flat.running_var.tolist()
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, D, H, W\)"):
        norm(mg.zeros((2, 3, 4)))


# Folding


@pytest.mark.parametrize("input_shape", [None, (4, 3, 6, 6)])
def test_folding_keeps_the_outputs(input_shape):
    net = network().eval()
    x = mg.random.normal((32, 3, 6, 6))
    before = net(x)
    assert fold(net, input_shape) is net
    assert not [m for m in net.modules() if isinstance(m, layers.BatchNorm)]
    after = net(x)
    assert mg.max(mg.abs(after - before)).item() < 1e-5 * mg.max(mg.abs(before)).item()


def test_folding_lenet():
    mg.random.seed(0)
    net = layers.models.LeNet5(norm=BatchNorm2d)
    mg.evaluate(net(mg.random.normal((16, 3, 32, 32))))
    net.eval()
    x = mg.random.normal((8, 3, 32, 32))
    before = net(x)
    with pytest.raises(ValueError, match=r"norm1: .* is not known; pass input_shape"):
        fold(net)
    fold(net, (1, 3, 32, 32))
    assert mg.max(mg.abs(net(x) - before)).item() < 1e-5


def test_the_bound_holds_and_the_derivation_is_printed(capsys):
    random.seed(1)
    for trial in range(5):
        mg.random.seed(trial)
        conv, norm = Conv2d(5, 7, 3), BatchNorm2d(7)
        norm.running_mean.assign(mg.random.normal((7,)) * 10)
        norm.running_var.assign(mg.random.uniform((7,)) + 0.01)
        norm.weight.assign(mg.random.normal((7,)))
        norm.bias.assign(mg.random.normal((7,)))
        net, x = Sequential(conv, norm).eval(), mg.random.normal((4, 5, 8, 8)) * 3
        before = net(x)
        fold(net, explain=True)
        text = capsys.readouterr().out
        assert "0 + 1:" in text
        assert "= (scale * W) x + (scale * (b - mean) + bias)" in text
        fixed, grows = text.split("at most ")[1].split(" * max")[0].split(" + ")
        bound = float(fixed) + float(grows) * mg.max(mg.abs(x)).item()
        difference = mg.max(mg.abs(net(x) - before)).item()
        assert 0 < difference <= bound < 1000 * difference


class _Custom(layers.Module):
    """A model that uses its layers as it likes."""

    def __init__(self, forward):
        self.conv, self.norm, self._forward = Conv2d(3, 3, 3, padding=1), BatchNorm2d(3), forward

    def forward(self, x):
        return self._forward(self, x)


REFUSED = {
    "an activation between": (
        Sequential(Conv2d(3, 3, 3), ReLU(), BatchNorm2d(3)), None, "a ReLU comes before it"
    ),
    "padding after it": (
        Sequential(BatchNorm2d(3), Conv2d(3, 3, 3, padding=1)), None, "pads with zeros after"
    ),
    "no running statistics": (
        Sequential(Conv2d(3, 3, 3), BatchNorm2d(3, track_running_stats=False)), None,
        "no running statistics",
    ),
    "a shared convolution": (
        _Custom(lambda m, x: m.norm(m.conv(m.conv(x)))), (2, 3, 6, 6), "shared: used 2 times"
    ),
    "a function between": (
        _Custom(lambda m, x: m.norm(mg.nn.relu(m.conv(x)))), (2, 3, 6, 6),
        "another computation comes before it",
    ),
    "used twice": (
        _Custom(lambda m, x: m.norm(m.norm(m.conv(x)))), (2, 3, 6, 6), "it is used 2 times"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused_with_its_reason(name):
    net, shape, reason = REFUSED[name]
    before = state_bits(net.eval())
    with pytest.raises(ValueError, match=f"1 that cannot(.|\n)*{reason}"):
        fold(net, shape)
    assert state_bits(net) == before
    fold(net, shape, strict=False)
    assert state_bits(net) == before


def test_a_hidden_use_of_the_convolution_is_noticed():
    net = _Custom(lambda m, x: (c := m.conv(x)) + m.norm(c)).eval()
    net.norm.running_var.assign(net.norm.running_var * 9)
    before = state_bits(net)
    with pytest.raises(ValueError, match="the output of a convolution is used outside"):
        fold(net, (2, 3, 6, 6))
    assert state_bits(net) == before
    assert isinstance(net.norm, BatchNorm2d)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"3 that cannot(.|\n)*call model.eval\(\)"):
        fold(network())


class _Alias(layers.Module):
    """A batch norm under two names."""

    def __init__(self):
        self.norm = BatchNorm2d(3)
        self.chain = Sequential(Conv2d(3, 3, 3), self.norm)

    def forward(self, x):
        return self.chain(x)


def test_a_batch_norm_under_two_names_is_folded_once():
    net = _Alias()
    mg.evaluate(net(mg.random.normal((8, 3, 6, 6)) * 3 + 1))
    net.eval()
    x = mg.random.normal((8, 3, 6, 6))
    before = net(x)
    with pytest.raises(ValueError, match="pass input_shape"):
        fold(net)
    fold(net, (8, 3, 6, 6))
    assert mg.max(mg.abs(net(x) - before)).item() < 1e-5
    assert isinstance(net.norm, layers.Identity)


def test_a_cap_between_is_noticed_though_small_inputs_never_reach_it():
    net = _Custom(lambda m, x: m.norm(mg.minimum(m.conv(x), 6.0))).eval()
    with pytest.raises(ValueError, match="another computation comes before it"):
        fold(net, (2, 3, 6, 6))


def test_features_of_sequences_need_a_shape():
    net = Sequential(Linear(4, 5), BatchNorm1d(5)).eval()
    with pytest.raises(ValueError, match="may have more than two axes; pass input_shape"):
        fold(net)
    net[1].running_var.assign(mg.arange(5) + 0.5)
    with pytest.raises(ValueError, match="expected the outputs of before"):
        fold(net, (6, 5, 4))
    x = mg.random.normal((6, 4))
    before = net(x)
    fold(net, (6, 4))
    assert mg.max(mg.abs(net(x) - before)).item() < 1e-5


def test_a_dropout_between_passes_on():
    net = Sequential(Conv2d(3, 4, 3), layers.Dropout(0.5), BatchNorm2d(4))
    mg.evaluate(net(mg.random.normal((8, 3, 6, 6)) + 1))
    net.eval()
    x = mg.random.normal((8, 3, 6, 6))
    before = net(x)
    fold(net, (8, 3, 6, 6))
    assert mg.max(mg.abs(net(x) - before)).item() < 1e-5


def test_unfreezing_trains_what_was_trained():
    net = Sequential(Linear(3, 4), BatchNorm1d(4))
    net[0].weight.requires_grad_(False)
    net.freeze().freeze().unfreeze()
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]


# Population statistics

BATCHES = [[1.0, 3, 5, 7], [2.0, 2, 4, 8], [0.0, 1, 0, 3]]


@pytest.mark.parametrize(
    ("mode", "var"), [("batches", 5.555555555555556), ("exact", 6.7272727272727275)]
)
def test_population_statistics_of_three_batches(mode, var):
    net = Sequential(BatchNorm1d(1).to("float64"), layers.Dropout(0.5))
    batches = [mg.tensor(b, dtype="float64").reshape((4, 1)) for b in BATCHES]
    assert layers.estimate_population_statistics(net, batches, mode) is net
    assert net[0].running_mean.item() == pytest.approx(3, rel=1e-12)
    assert net[0].running_var.item() == pytest.approx(var, rel=1e-12)
    assert net[0].num_batches_tracked.item() == 3
    assert net.training
    assert net[0].training


def test_population_statistics_equal_the_cumulative_average():
    net = network()
    loader = [(mg.random.normal((8, 3, 6, 6)), mg.zeros((8,))) for _ in range(4)]
    layers.estimate_population_statistics(net, loader)
    cumulative = network()
    norms = [m for m in cumulative.modules() if isinstance(m, layers.BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.num_batches_tracked.assign(mg.zeros_like(norm.num_batches_tracked))
    for x, _ in loader:
        mg.evaluate(cumulative(x))
    estimated = [m for m in net.modules() if isinstance(m, layers.BatchNorm)]
    for a, b in zip(estimated, norms, strict=True):
        assert a.running_mean.tolist() == pytest.approx(b.running_mean.tolist(), rel=1e-5, abs=1e-6)
        assert a.running_var.tolist() == pytest.approx(b.running_var.tolist(), rel=1e-5)


def test_unequal_batches_pool_exactly():
    values = [random.Random(1).gauss(5, 2) for _ in range(30)]
    norm = BatchNorm1d(1).to("float64")
    parts = [values[:4], values[4:6], values[6:]]
    loader = [mg.tensor(p, dtype="float64").reshape((len(p), 1)) for p in parts]
    layers.estimate_population_statistics(norm, loader, "exact")
    mean = sum(values) / 30
    assert norm.running_mean.item() == pytest.approx(mean, rel=1e-12)
    expected = sum((v - mean) ** 2 for v in values) / 29
    assert norm.running_var.item() == pytest.approx(expected, rel=1e-12)


def test_estimation_that_fails_changes_nothing():
    net = network()
    before = state_bits(net)
    for loader, message in (([], "got none"), ([mg.zeros((4, 3, 6, 6)), "x"], None)):
        with pytest.raises(ValueError if message else Exception, match=message):
            layers.estimate_population_statistics(net, loader)
        assert state_bits(net) == before
        assert all(m.training for m in net.modules())
    degenerate = BatchNorm1d(3, allow_degenerate=True)
    with pytest.raises(ValueError, match=r"one value per channel, got x of shape \(1, 3\)"):
        layers.estimate_population_statistics(degenerate, [mg.ones((1, 3))])
    with pytest.raises(ValueError, match="'batches' or 'exact', got 'all'"):
        layers.estimate_population_statistics(net, [], "all")
    with pytest.raises(ValueError, match="not frozen, got none"):
        layers.estimate_population_statistics(net.freeze(), [])
