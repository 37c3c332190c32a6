"""The checker itself: wrong rules must be caught, right ones must pass."""

from __future__ import annotations

import re

import pytest
import reference

import minigrad as mg
from minigrad import graph, ops
from minigrad.compiler import run
from minigrad.graph import Primitive, register
from minigrad.tensor_base import wrap


@pytest.fixture
def sample(device):
    """A float64 tensor of some distinct values."""

    def make(*shape: int, dtype=mg.float64):
        n = 1
        for extent in shape:
            n *= extent
        values = [((7 * k) % 11 - 4.7) / 3 for k in range(n)]
        return mg.tensor(values, dtype=dtype, device=device).reshape(shape)

    return make


@pytest.fixture
def identity_with_rule(monkeypatch):
    """Makes a throw-away primitive, an identity with the given vjp rule.

    The reference computes it: no backend knows it.
    """
    monkeypatch.setattr(graph, "PRIMITIVES", dict(graph.PRIMITIVES))
    monkeypatch.setattr(run, "run_graph", run.run_graph)
    monkeypatch.setitem(reference.MEANING, "throw_away", reference.MEANING["barrier"])
    reference.install()

    def make(rule):
        return register(Primitive("throw_away", "map", lambda x: (x.shape, x.dtype), rule))

    return make


def test_right_rule_passes(sample, identity_with_rule):
    op = identity_with_rule(lambda g, y, x: (g,))
    assert mg.gradcheck(lambda x: wrap(op((x * x).node)), sample(2, 3), order=2)


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_rule_wrong_by_a_thousandth_is_caught(factor, sample, identity_with_rule):
    op = identity_with_rule(lambda g, y, x: (g * factor,))
    with pytest.raises(mg.GradientError, match=r"with respect to input 1 \(float64\[2, 3\]\)"):
        mg.gradcheck(lambda x, y: x * wrap(op(y.node)), sample(2, 3), sample(2, 3) * 0.5)


def test_wrong_rule_of_a_normalization_is_caught(sample, identity_with_rule):
    """Where a plain sum of the outputs would see nothing: it is constant."""
    op = identity_with_rule(lambda g, y, x: (g * 1.001,))

    def normalize(x):
        centred = x - x.mean(axis=0, keepdims=True)
        inv_std = mg.rsqrt((centred * centred).mean(axis=0, keepdims=True) + 1e-5)
        return wrap(op(centred.node)) * inv_std

    x = sample(4, 3)
    with pytest.raises(mg.GradientError):
        mg.gradcheck(normalize, x)
    blind = mg.grad(lambda x: normalize(x).sum())(x)
    assert max(abs(v) for row in blind.tolist() for v in row) < 1e-12


def test_wrong_second_derivative_is_caught(sample, identity_with_rule):
    """The rule is right, but what it is made of is not differentiable as it should be."""
    op = identity_with_rule(lambda g, y, x: (g * ops.stop_gradient(x) * 2.0,))
    reference.MEANING["throw_away"] = lambda node, x: [v * v for v in x]

    def square(x):
        return wrap(op(x.node))

    assert mg.gradcheck(square, sample(2, 3))
    with pytest.raises(mg.GradientError, match="derivative of order 2 with respect to input 0"):
        mg.gradcheck(square, sample(2, 3), order=2)


def test_failure_names_the_worst_element(sample, identity_with_rule):
    def rule(g, y, x):
        places = ops.iota(6, mg.int64, x.device)
        spot = ops.cast(ops.equal(places, ops.like(4, places)), dtype=x.dtype)
        return (g * (1.0 + 0.01 * ops.reshape(spot, shape=(2, 3))),)

    op = identity_with_rule(rule)
    with pytest.raises(AssertionError, match=re.escape("Worst element: [1, 1]")):
        mg.gradcheck(lambda x: wrap(op(x.node)), sample(2, 3))


def test_nan_is_a_failure(sample, identity_with_rule):
    op = identity_with_rule(lambda g, y, x: (g * float("nan"),))
    with pytest.raises(mg.GradientError, match="got nan instead of"):
        mg.gradcheck(lambda x: wrap(op(x.node)), sample(3))


def test_missing_gradient_is_a_failure(sample):
    with pytest.raises(mg.GradientError, match="got 0 instead of"):
        mg.gradcheck(lambda x: mg.stop_gradient(x) * 3.0, sample(3))


def test_several_outputs_and_inputs(sample, device):
    labels = mg.tensor([2, 0], device=device)

    def f(x, labels, y):
        return {"picked": mg.take(x, labels, axis=0), "rest": [x @ y]}

    assert mg.gradcheck(f, sample(3, 2), labels, sample(2, 2), order=2)


def test_large_inputs(sample):
    """The step grows with the input, and its rounding is taken into account."""
    assert mg.gradcheck(lambda x: x * x, sample(3) + 1e6)


def test_third_order(sample):
    assert mg.gradcheck(mg.sin, sample(3), order=3)


def test_inputs_must_be_float64(sample):
    with pytest.raises(TypeError, match="expected float64 tensors, got float32 as input 1"):
        mg.gradcheck(lambda x, y: x, sample(2), sample(2, dtype=mg.float32))
    with pytest.raises(TypeError, match="got float as input 0"):
        mg.gradcheck(lambda x: x, 1.0)


def test_some_input_must_be_checked(device):
    with pytest.raises(TypeError, match="at least one float64 tensor"):
        mg.gradcheck(lambda x: x, mg.tensor([1, 2], device=device))


def test_outputs_must_be_float64(sample):
    with pytest.raises(TypeError, match="expected f to return float64 tensors, got float32"):
        mg.gradcheck(lambda x: x.astype(mg.float32), sample(2))
