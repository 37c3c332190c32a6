"""The heart of the project: BatchNorm's derived gradients against hand-derived ones.

Every probe is a random cotangent: the gradient of a plain sum is zero for a right backward and for
many wrong ones. By hand everything is in float64; a float32 row is the layer's own error.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from examples import batchnorm_by_hand as hand
from examples import batchnorm_gradients as example
from examples.batchnorm_gradients import Case
from layers import BatchNorm, functional_call
from tests.closed_forms import paper_chain_rule, second_derivative

# Relative to the largest term that a formula adds up; see `largest_terms`.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


@st.composite
def cases(draw, smallest=1, dtypes=("float64", "float32")):
    """Kernels are generic in extents, but an extent of 1 is another kernel: most have none."""
    extents = st.integers(2, 7)
    spatial = () if draw(st.booleans()) else draw(st.tuples(extents, extents))
    return Case(
        name="random",
        shape=(draw(st.integers(smallest, 9)), draw(extents), *spatial),
        training=draw(st.booleans()),
        affine=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        mean=draw(st.sampled_from([0.0, -3.0, 100.0])),
        scale=draw(st.sampled_from([1.0, 0.01, 50.0])),
    )


def assert_close(case, data, found, expected, tolerance=None):
    terms = example.largest_terms(case, data)
    worst = max(example.relative_difference(found, expected, terms))
    assert worst <= (tolerance or TOLERANCE[case.dtype]), (case, worst)


@settings(max_examples=60)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_automatic_equals_by_hand_over_random_shapes(case, seed):
    data = example.draw(case, seed)
    found = example.automatic(case, data)
    for expected in example.by_hand(case, data):
        assert_close(case, data, found, expected)


@pytest.mark.parametrize(
    "case", example.REGULAR + example.HARD, ids=lambda c: f"{c.name}-{c.dtype}"
)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_case_of_the_example(case, seed):
    data = example.draw(case, seed)
    found = example.automatic(case, data)
    for expected in example.by_hand(case, data):
        assert_close(case, data, found, expected)


@pytest.mark.parametrize(
    "case",
    [c for c in example.REGULAR + example.HARD if c.dtype == "float64"],
    ids=lambda c: c.name,
)
def test_automatic_equals_central_differences(case):
    data = example.draw(case, seed=3)
    expected = example.central_differences(case, data)
    assert_close(case, data, example.automatic(case, data), expected, tolerance=1e-7)


@given(case=cases(dtypes=("float64",)), seed=st.integers(0, 2**31))
def test_the_papers_listing_is_the_same_function(case, seed):
    case = dataclasses.replace(case, training=True, affine=True)
    data = example.draw(case, seed)
    with mg.eager():
        expected = paper_chain_rule(data.x, data.gamma, data.g, case.eps)
    assert_close(case, data, example.automatic(case, data), expected)


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 2, 2)], ids=["FC", "conv"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_against_central_differences(shape, affine, training):
    case = Case("", shape, training, affine)
    data = example.draw(case, seed=4)
    layer = example.layer_of(case, data)

    def batch_norm(x, *parameters):
        return functional_call(layer, dict(zip(("weight", "bias"), parameters, strict=False)), x)

    inputs = [data.x, data.gamma, data.beta] if affine else [data.x]
    assert mg.gradcheck(batch_norm, *inputs, order=2)


@given(case=cases(smallest=2, dtypes=("float64",)), seed=st.integers(0, 2**31))
def test_second_derivative_equals_its_closed_form(case, seed):
    case = dataclasses.replace(case, training=True, affine=True)
    data, u = example.draw(case, seed), example.draw(case, seed + 1).g
    layer = example.layer_of(case, data)
    x = mg.tensor(data.x, requires_grad=True)
    g = mg.tensor(data.g, requires_grad=True)
    dx = mg.gradients([layer(x)], [x], [g], create_graph=True)[0]
    found = mg.gradients([dx], [x, layer.weight, g], [u])
    mg.evaluate(*found)
    with mg.eager():
        expected = second_derivative(data.x, data.gamma, data.g, u, case.eps)
        # The terms that are added up carry one more factor 1 / std in d(dx)/dx.
        inv = 1 / mg.min(example.deviation(case, data)).item()
        size = mg.max(mg.abs(u)).item() * mg.max(mg.abs(data.g)).item() * data.x.size * inv
        size *= max(1.0, mg.max(mg.abs(data.gamma)).item())
        for a, b, factor in zip(found, expected, (inv, 1, 1), strict=True):
            assert mg.max(mg.abs(a - b)).item() <= 1e-10 * size * max(factor, 1)


GOLDEN = {  # computed by hand, independently of this code
    "mu": [4],
    "var": [5],
    "std": [2.2362915731],
    "xhat": [-1.3415066425, -0.4471688808, 0.4471688808, 1.3415066425],
    "y": [-2.1830132851, -0.3943377617, 1.3943377617, 3.1830132851],
    "dgamma": [-1.3415066425],
    "dbeta": [1],
    "dstd": [1.199760048],
    "dvar": [0.268247679],
    "dmu": [-0.8943377617],  # the course's dmu is the sum, ours the gradient: its negative
    "dx": [0.2683818028, -0.3577082799, -0.0894606009, 0.178787078],
}


def golden_inputs():
    x = mg.tensor([[1.0], [3.0], [5.0], [7.0]], dtype="float64")
    g = mg.tensor([[1.0], [0.0], [0.0], [0.0]], dtype="float64")
    gamma, beta = mg.tensor([2.0], dtype="float64"), mg.tensor([0.5], dtype="float64")
    return x, gamma, beta, g


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_stages(name):
    with mg.eager():
        x, gamma, beta, g = golden_inputs()
        forward = hand.forward_in_stages(x, gamma, beta, 1e-3)
        stages = forward._asdict() | hand.backward_in_stages(g, gamma, forward)._asdict()
    assert hand.flat(stages[name]).tolist() == pytest.approx(GOLDEN[name], abs=1e-9)


def test_golden_layer():
    x, gamma, beta, g = golden_inputs()
    layer = BatchNorm(1, eps=1e-3).to("float64")
    layer.load_state_dict({"weight": gamma, "bias": beta}, strict=False)
    x.requires_grad_()
    y = layer(x)
    dx, dgamma, dbeta = mg.gradients([y], [x, layer.weight, layer.bias], [g])
    assert hand.flat(y).tolist() == pytest.approx(GOLDEN["y"], abs=1e-9)
    assert hand.flat(dx).tolist() == pytest.approx(GOLDEN["dx"], abs=1e-9)
    assert dgamma.tolist() == pytest.approx(GOLDEN["dgamma"], abs=1e-9)
    assert dbeta.tolist() == [1.0]
    assert mg.sum(dx).item() == pytest.approx(0, abs=1e-14)


def test_golden_layer_in_inference():
    x, gamma, beta, g = golden_inputs()
    layer = BatchNorm(1, eps=1e-3).to("float64").eval()
    state = {"weight": gamma, "bias": beta, "running_mean": [4.0], "running_var": [5.0]}
    layer.load_state_dict(state, strict=False)
    x.requires_grad_()
    (dx,) = mg.gradients([layer(x)], [x], [g])
    assert hand.flat(dx).tolist() == pytest.approx([0.8943377617, 0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 2, 3)], ids=["FC", "conv"])
def test_jacobian_is_symmetric_and_has_the_known_spectrum(shape):
    case = Case("", shape, affine=False)
    data = example.draw(case, seed=5)
    layer = example.layer_of(case, data)
    x = mg.tensor(data.x, requires_grad=True)
    y = layer(x)

    def pulled(v):
        return mg.gradients([y], [x], [v])[0]

    u, w = data.g, example.draw(case, seed=6).g
    assert mg.sum(pulled(u) * w).item() == pytest.approx(mg.sum(u * pulled(w)).item(), rel=1e-12)
    assert mg.max(mg.abs(pulled(mg.ones_like(data.x)))).item() < 1e-14  # J 1 = 0
    f = hand.forward_in_stages(data.x, data.gamma, data.beta, case.eps)
    expected = f.inv * case.eps / (f.var + case.eps) * f.xhat  # J xhat
    assert mg.max(mg.abs(pulled(f.xhat.detach()) - expected)).item() < 1e-14


def test_two_values_per_channel_leave_a_vanishing_gradient():
    case = Case("", (2, 4))
    data = example.draw(case, seed=7)
    (x1, x2), (g1, g2) = data.x.tolist(), data.g.tolist()
    dx = example.automatic(case, data).dx.tolist()
    for c, gamma in enumerate(data.gamma.tolist()):
        delta = abs(x1[c] - x2[c]) / 2
        size = gamma * (g1[c] - g2[c]) / 2 * case.eps / (delta**2 + case.eps) ** 1.5
        assert [dx[0][c], dx[1][c]] == pytest.approx([size, -size], rel=1e-6, abs=1e-12)


def test_constant_channels_give_a_large_finite_gradient():
    case = Case("", (4, 2), mean=3.0, scale=0.0)
    data = example.draw(case, seed=8)
    found = example.automatic(case, data)
    centred = data.g - mg.mean(data.g, axis=0, keepdims=True)
    expected = data.gamma * centred / case.eps**0.5
    assert mg.max(mg.abs(found.dx - expected)).item() <= 1e-10 * 316
    assert found.dgamma.tolist() == [0.0, 0.0]


def test_one_value_per_channel_passes_gradient_to_the_bias_only():
    case = Case("", (1, 3, 1, 1))
    data = example.draw(case, seed=9)
    found = example.automatic(case, data)
    assert hand.flat(found.dx).tolist() == [0.0] * 3
    assert found.dgamma.tolist() == [0.0] * 3
    assert found.dbeta.tolist() == hand.flat(data.g).tolist()


def test_a_large_mean_costs_no_accuracy_in_float32():
    """The formulas by hand lose three digits here, `moments` none."""
    case = Case("", (64, 1, 8, 8), dtype="float32", mean=1e4)
    data = example.draw(case, seed=10)
    found, (expected, _) = example.automatic(case, data), example.by_hand(case, data)
    differences = example.relative_difference(found, expected, example.largest_terms(case, data))
    dx, *parameters = differences
    assert dx < 1e-6
    # Relative to the largest of 4096 terms. How far a sum is off depends on the machine's lanes: up
    # to 256 of them are added up in float32 before float64 takes over.
    assert max(parameters) < 1e-5


def test_a_wrong_derivative_is_noticed():
    case = Case("", (6, 3))
    data = example.draw(case, seed=11)
    stages, _ = example.by_hand(case, data)
    wrong = stages._replace(dx=stages.dx * 1.001)
    with pytest.raises(AssertionError):
        assert_close(case, data, example.automatic(case, data), wrong)


def test_the_example_prints_its_table(capsys):
    assert example.main(["--seed", "1"]) == 0
    text = capsys.readouterr().out
    rows = len(example.REGULAR + example.HARD)
    assert f"{rows} of {rows} cases" in text
    for name in (*hand.Forward._fields, *hand.Backward._fields):
        assert f" {name} " in text
    assert "1.34150664" in text
