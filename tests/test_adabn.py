"""AdaBN: statistics of several domains in one model, and how far domains are apart."""

from __future__ import annotations

import pytest

import layers
import minigrad as mg
from layers import (
    AdaBN,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Linear,
    ReLU,
    Sequential,
    symmetric_divergence,
)


def normal(*shape, seed=0, dtype="float64"):
    return mg.random.normal(shape, dtype=dtype, generator=mg.random.Generator(seed))


def flat(t):
    return mg.reshape(t, (-1,)).tolist()


def vector(*values):
    return mg.tensor([float(v) for v in values], dtype="float64")


def model():
    layers = Linear(3, 4), BatchNorm1d(4, eps=1e-12), ReLU(), Linear(4, 2), BatchNorm1d(2)
    return Sequential(*layers).to("float64")


SOURCE = [normal(8, 3, seed=s) for s in range(4)]
TARGET = [2 + 3 * x for x in SOURCE]


@pytest.mark.parametrize(
    ("i", "j", "expected"),
    [((0, 1), (1, 1), 1), ((0, 1), (0, 4), 1.125), ((0, 1), (0.5, 2.25), 0.5277778)],
)
def test_golden_divergence(i, j, expected):
    (m, v), (n, w) = ((vector(a), vector(b)) for a, b in (i, j))
    assert symmetric_divergence(m, v, n, w).item() == pytest.approx(expected, abs=1e-7)
    assert symmetric_divergence(n, w, m, v).item() == pytest.approx(expected, abs=1e-7)
    assert symmetric_divergence(m, v, m, v).item() == 0


def test_dead_features_do_not_count():
    one, both = vector(0), vector(0, 5)
    alone = symmetric_divergence(one, vector(1), vector(1), vector(1))
    beside = symmetric_divergence(both, vector(1, 0), vector(1, 7), vector(1, 3))
    assert beside.item() == alone.item() == 1
    assert symmetric_divergence(one, vector(0), one, vector(0)).item() == 0


@pytest.mark.parametrize("mode", ["exact", "onepass"])
def test_adapting_undoes_a_shift_and_a_scale(mode):
    """Of the data, and so of every channel that the first batch normalization sees."""
    ada = AdaBN(model()).adapt("source", SOURCE, mode).adapt("target", TARGET, mode).eval()
    for x, shifted in zip(SOURCE, TARGET, strict=True):
        expected = flat(ada.use("source")(x))
        assert flat(ada.use("target")(shifted)) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_exact_statistics_are_those_of_adapted_inputs():
    ada = AdaBN(model()).adapt("target", TARGET).eval()
    x = mg.concat(TARGET)
    first = ada.model[0](x)
    assert flat(ada.model[1].running_mean) == pytest.approx(flat(mg.mean(first, axis=0)))
    assert flat(ada.model[1].running_var) == pytest.approx(
        flat(mg.var(first, axis=0, correction=1))
    )
    second = ada.model[3](ada.model[2](ada.model[1](first)))
    assert flat(ada.model[4].running_mean) == pytest.approx(flat(mg.mean(second, axis=0)))
    assert flat(ada.model[4].running_var) == pytest.approx(
        flat(mg.var(second, axis=0, correction=1))
    )


def test_the_source_comes_back_bit_for_bit():
    ada = AdaBN(model())
    for x in SOURCE:
        mg.evaluate(ada(x))
    ada.eval()
    before, state = flat(ada(SOURCE[0])), {k: flat(v) for k, v in ada.state_dict().items()}
    ada.adapt("target", TARGET)
    assert flat(ada(SOURCE[0])) != before
    assert flat(ada.use("source")(SOURCE[0])) == before
    assert {k: flat(v) for k, v in ada.state_dict().items() if k in state} == state


def test_training_updates_the_domain_in_use_alone():
    ada = AdaBN(model())
    ada.add("target")
    kept = flat(ada.domains.source[0].running_mean)
    mg.evaluate(ada.use("target")(TARGET[0]))
    assert flat(ada.domains.source[0].running_mean) == kept
    assert ada.domains.target[0].num_batches_tracked.item() == 1
    assert flat(ada.model[1].running_mean) == flat(ada.domains.target[0].running_mean)


def test_ema_is_the_update_of_training():
    ada, plain = AdaBN(model()), model()
    plain.load_state_dict(ada.model.state_dict())
    ada.adapt("target", TARGET, mode="ema")
    for x in TARGET:
        mg.evaluate(plain(x))
    for a, b in zip(ada.domains.target, (plain[1], plain[4]), strict=True):
        assert flat(a.running_mean) == pytest.approx(flat(b.running_mean))
        assert flat(a.running_var) == pytest.approx(flat(b.running_var))
    assert ada.training


def test_the_state_dict_has_every_domain_whichever_is_in_use():
    ada = AdaBN(model()).adapt("target", TARGET)
    names = list(ada.state_dict())
    assert "domains.source.0.running_mean" in names
    assert "domains.target.1.running_var" in names
    assert not any(name.startswith("model.1.running") for name in names)
    again = AdaBN(model())
    again.add("target")
    assert list(again.use("source").state_dict()) == names
    again.load_state_dict(ada.state_dict())
    assert flat(again.use("target").eval()(TARGET[0])) == flat(ada.eval()(TARGET[0]))


def test_divergence_goes_away_by_adapting():
    ada = AdaBN(model()).adapt("source", SOURCE).adapt("target", TARGET)
    before = ada.divergence(("source", SOURCE), ("source", TARGET))
    after = ada.divergence(("source", SOURCE), ("target", TARGET))
    assert list(before) == ["1", "4"]
    assert min(before.values()) > 0.5
    assert max(after.values()) < 1e-9
    assert ada.domain == "target"


def test_convolutions_and_loaders():
    net = Sequential(Conv2d(1, 2, 3), BatchNorm2d(2), Dropout(0.5))
    data = mg.data.TensorDataset(normal(20, 1, 5, 5, dtype="float32"), [0] * 20)
    loader = mg.data.DataLoader(data, batch_size=8)
    ada = AdaBN(net).adapt("digits", loader)
    y = net[0](mg.concat([x for x, _ in loader]))
    assert flat(net[1].running_mean) == pytest.approx(flat(mg.mean(y, axis=(0, 2, 3))), abs=1e-5)
    assert ada.training
    assert net[2].training


def test_a_compiled_step_notices_the_switch():
    ada = AdaBN(model()).adapt("source", SOURCE).adapt("target", TARGET).eval()
    step = mg.compile(lambda x: ada(x))
    for domain in ("source", "target", "source", "target"):
        ada.use(domain)
        for _ in range(3):
            assert flat(step(SOURCE[0])) == pytest.approx(flat(ada(SOURCE[0])))


def test_messages():
    with pytest.raises(ValueError, match="expected a model with BatchNorm layers"):
        AdaBN(Linear(3, 2))
    ada = AdaBN(model())
    with pytest.raises(ValueError, match="expected a domain of source, got 'target'"):
        ada.use("target")
    for name in ("source", "a.b"):
        with pytest.raises(ValueError, match="expected a new name"):
            ada.add(name)
    with pytest.raises(ValueError, match="expected exact, onepass or ema, got 'some'"):
        ada.adapt("target", TARGET, mode="some")
    with pytest.raises(ValueError, match="expected batches that can be gone through again, got a"):
        ada.adapt("target", iter(TARGET))
    with pytest.raises(ValueError, match="expected batches, got none"):
        ada.adapt("target", [])


def test_frozen_batch_norms_are_not_adapted():
    model = layers.Sequential(layers.Linear(3, 4), layers.BatchNorm1d(4))
    model[1].freeze()
    adapted = layers.AdaBN(model)
    with pytest.raises(ValueError, match="got frozen ones: 1"):
        adapted.adapt("target", [mg.random.normal((8, 3))])
    assert adapted.domain == "source"


@pytest.mark.parametrize("mode", ["exact", "onepass", "ema"])
def test_without_batches_nothing_changes(mode):
    adapted = layers.AdaBN(layers.Sequential(layers.Linear(3, 4), layers.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="expected batches, got none"):
        adapted.adapt("target", [], mode)
    assert adapted.domain == "source"
    with pytest.raises(ValueError, match="expected a domain of source"):
        adapted.use("target")
    with pytest.raises(ValueError, match="expected a new name"):
        adapted.add("training")
