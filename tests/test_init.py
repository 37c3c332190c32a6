"""Initial values: fans, exact variances, reproducibility."""

from __future__ import annotations

import math

import pytest

import minigrad as mg
from layers import Conv2d, Linear, Parameter, init


def parameter(*shape, dtype="float32"):
    return Parameter(mg.zeros(shape, dtype=dtype))


def moments_of(tensor):
    values = mg.reshape(tensor, (-1,)).tolist()
    n = len(values)
    mean = sum(values) / n
    return n, mean, sum((v - mean) ** 2 for v in values) / (n - 1), max(map(abs, values))


def assert_variance(tensor, expected, fourth_moment):
    """Within four standard errors; fourth_moment is E[z^4] / E[z^2]^2: normal 3, uniform 9/5."""
    n, mean, variance, _ = moments_of(tensor)
    assert abs(mean) <= 4 * math.sqrt(expected / n)
    assert abs(variance / expected - 1) <= 4 * math.sqrt((fourth_moment - 1) / n)


NORMAL, UNIFORM = 3.0, 9 / 5


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 7), (7, 5)), ((6, 3, 5, 5), (75, 150)), ((16, 2, 3, 1), (6, 48)), ((4, 2, 3), (6, 12))],
)
def test_fans(shape, expected):
    assert init.fans(shape) == expected


def test_a_bias_has_no_fan():
    with pytest.raises(ValueError, match="expected a weight of shape"):
        init.fans((3,))


@pytest.mark.parametrize(
    ("fill", "variance", "shape_of"),
    [
        (init.xavier_normal, 2 / (40 * 9 + 20 * 9), NORMAL),
        (init.xavier_uniform, 2 / (40 * 9 + 20 * 9), UNIFORM),
        (init.kaiming_normal, 2 / (20 * 9), NORMAL),
        (init.kaiming_uniform, 2 / (20 * 9), UNIFORM),
    ],
)
def test_variance(fill, variance, shape_of):
    weight = fill(parameter(40, 20, 3, 3), generator=mg.random.Generator(1))
    assert_variance(weight, variance, shape_of)


def test_kaiming_modes_and_gains():
    generator = mg.random.Generator(2)
    weight = init.kaiming_normal(parameter(50, 80), mode="fan_out", generator=generator)
    assert_variance(weight, 2 / 50, NORMAL)
    weight = init.kaiming_uniform(parameter(50, 80), nonlinearity="linear", generator=generator)
    assert_variance(weight, 1 / 80, UNIFORM)
    weight = init.kaiming_normal(parameter(50, 80), a=1.0, generator=generator)
    assert_variance(weight, 1 / 80, NORMAL)


def test_gains_are_pytorchs():
    torch = pytest.importorskip("torch")
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    assert init.gain("leaky_relu", 0.3) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.3)
    )


def test_uniform_bounds():
    weight = init.xavier_uniform(parameter(30, 20), generator=mg.random.Generator(3))
    bound = math.sqrt(6 / 50)
    assert 0.95 * bound < moments_of(weight)[3] <= bound


@pytest.mark.parametrize(
    ("layer", "fan_in"), [(lambda: Linear(60, 30), 60), (lambda: Conv2d(4, 30, 5), 100)]
)
def test_default_initial_values_are_pytorchs(layer, fan_in):
    mg.random.seed(0)
    layer = layer()
    assert_variance(layer.weight, 1 / (3 * fan_in), UNIFORM)
    assert moments_of(layer.weight)[3] <= 1 / math.sqrt(fan_in)
    assert 0 < moments_of(layer.bias)[3] <= 1 / math.sqrt(fan_in)


def test_constants():
    assert init.zeros(parameter(2)).tolist() == [0.0, 0.0]
    assert init.ones(parameter(2)).tolist() == [1.0, 1.0]
    assert init.constant(parameter(2), 0.5).tolist() == [0.5, 0.5]


def test_uniform_and_normal_take_their_range():
    values = init.uniform(parameter(500), 2.0, 3.0, mg.random.Generator(4))
    assert 2 <= min(values.tolist()) < 2.05
    assert 2.95 < max(values.tolist()) <= 3
    n, mean, variance, _ = moments_of(
        init.normal(parameter(2000), 5.0, 0.1, mg.random.Generator(5))
    )
    assert mean == pytest.approx(5, abs=0.4 / math.sqrt(n))
    assert variance == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (4, 1, 2, 2)])
def test_orthogonal(shape):
    weight = init.orthogonal(
        parameter(*shape, dtype="float64"), gain=2.0, generator=mg.random.Generator(6)
    )
    matrix = mg.reshape(weight, (shape[0], -1))
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    eye = 4 * mg.eye(product.shape[0], dtype="float64")
    assert mg.max(mg.abs(product - eye)).item() < 1e-13


def test_filling_keeps_the_object_and_its_gradient_flag():
    weight = parameter(3, 2)
    assert init.xavier_normal(weight) is weight
    assert weight.requires_grad


def test_the_same_seed_gives_the_same_model():
    def values(seed):
        mg.random.seed(seed)
        return Linear(3, 2).weight.tolist()

    assert values(1) == values(1)
    assert values(1) != values(2)


def test_errors():
    with pytest.raises(ValueError, match="expected mode 'fan_in' or 'fan_out'"):
        init.kaiming_normal(parameter(2, 2), mode="both")
    with pytest.raises(ValueError, match="expected one of linear"):
        init.gain("cosine")
