"""ExponentialMovingAverage against TensorFlow's definition, in plain Python."""

from __future__ import annotations

import pytest

import minigrad as mg
from layers import ExponentialMovingAverage, Linear

BATCHES = [[1.0, 3, 5, 7], [2.0, 2, 4, 8], [0.0, 1, 0, 3]]


def test_the_recipe_of_a_hand_written_batch_norm():
    average = ExponentialMovingAverage(0.5, mean=(1,), var=(1,))
    seen = []
    for batch in BATCHES:
        mean, var = mg.nn.moments(mg.tensor(batch).reshape((4, 1)), axes=0)
        average.update(mean=mean, var=var)
        seen.append((average.average("mean").item(), average.average("var").item()))
    assert seen == [(2, 2.5), (3, 4.25), (2, 2.875)]


@pytest.mark.parametrize("warm_up", [False, True])
def test_warm_up_and_debiasing(warm_up):
    average = ExponentialMovingAverage(0.9, warm_up=warm_up, zero_debias=True, a=(2,))
    assert average.average("a").tolist() == [0, 0]
    shadow, product = [0.0, 0.0], 1.0
    for n in range(30):
        value = [n * 0.5, 3.0]
        average.update(a=mg.tensor(value))
        decay = min(0.9, (1 + n) / (10 + n)) if warm_up else 0.9
        shadow = [decay * s + (1 - decay) * v for s, v in zip(shadow, value, strict=True)]
        product *= decay
        expected = [s / (1 - product) for s in shadow]
        assert average.average("a").tolist() == pytest.approx(expected, rel=1e-5)


def test_a_variable_starts_at_its_value_and_a_constant_stays():
    linear = Linear(2, 1, bias=False)
    average = ExponentialMovingAverage(0.99, zero_debias=True, weight=linear.weight)
    before = linear.weight.tolist()
    for _ in range(5):
        average.update(weight=linear.weight)
    assert average.average("weight").tolist()[0] == pytest.approx(before[0], rel=1e-6)


def test_the_state_goes_with_the_model():
    one, other = (ExponentialMovingAverage(0.5, zero_debias=True, a=(1,)) for _ in range(2))
    one.update(a=mg.tensor([4.0]))
    other.load_state_dict(one.state_dict())
    assert other.average("a").tolist() == [4.0]
    assert not list(one.parameters())


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"decay: expected a weight in \[0, 1\], got 1.5"):
        ExponentialMovingAverage(1.5, a=(1,))
    with pytest.raises(ValueError, match="a name for each tensor to average, got none"):
        ExponentialMovingAverage(0.5)
    average = ExponentialMovingAverage(0.5, a=(1,), b=(1,))
    with pytest.raises(KeyError, match="expected a, b, got a"):
        average.update(a=mg.ones(1))
    with pytest.raises(KeyError, match="expected one of a, b, got c"):
        average.average("c")
