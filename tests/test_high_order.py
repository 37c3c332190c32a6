"""Derivatives of every normalization to the fifth order against formulas with 40 digits."""

from __future__ import annotations

import mpmath
import pytest

from examples.high_order import CASES, COLUMNS, Probe, error, ours
from examples.multidual import derivative

BOUND = 1e-12  # the rounding of float64, of numbers that cancel a little


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_order_is_right_to_the_rounding(case):
    probe = Probe(case, seed=1)
    found, expected = ours(probe), probe.expected()
    worst = {column: error(found[column], expected[column]) for column in COLUMNS}
    assert max(worst.values()) <= BOUND, worst


def test_the_reference_differentiates():
    def f(x):
        return [x[0] * x[0] * x[0] * x[1] ** -0.5]

    (found,) = derivative(f, [2.0, 3.0], [[1, 0], [1, 0], [0, 1]])
    with mpmath.workdps(40):
        expected = 6 * 2 * mpmath.mpf(-0.5) * mpmath.mpf(3) ** -1.5
        assert abs(found - expected) < mpmath.mpf(10) ** -38


def test_a_wrong_derivative_is_seen():
    probe = Probe(CASES[0], seed=1)
    expected = probe.expected()["reverse 3"]
    found = [float(e) for e in expected]
    found[0] *= 1 + 1e-9
    assert error(found, expected) > BOUND
