"""The derived backward of layer, group, instance, RMS and local response norm, beside formulas.

Batch normalization's is in test_batchnorm_gradients.py, those of its relatives and of weights in
the files that are named after them.
"""

from __future__ import annotations

import pytest

import minigrad as mg
from minigrad import nn
from tests import closed_forms


def normal(*shape, seed=0):
    return mg.random.normal(shape, dtype="float64", generator=mg.random.Generator(seed))


def flat(t):
    return mg.reshape(t, (-1,)).tolist()


def assert_same(function, inputs, g, expected):
    """Value and gradients of every input, for the cotangent g."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    for found, by_hand in zip([y, *mg.gradients([y], inputs, [g])], expected, strict=True):
        scale = mg.max(mg.abs(by_hand)).item()
        assert flat(found) == pytest.approx(flat(by_hand), rel=1e-10, abs=1e-10 * scale)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (2, 4, 5)])
def test_group_norm(groups, shape):
    x, g, gamma, beta = 3 + normal(*shape), normal(*shape, seed=1), normal(4), normal(4, seed=2)
    expected = closed_forms.group_norm(x, gamma, beta, g, groups, 1e-3)
    assert_same(lambda x, w, b: nn.group_norm(x, groups, w, b, 1e-3), (x, gamma, beta), g, expected)
    if groups == 4:
        function = lambda x, w, b: nn.instance_norm(x, None, None, w, b, eps=1e-3)  # noqa: E731
        assert_same(function, (x, gamma, beta), g, expected)


@pytest.mark.parametrize("centred", [True, False])
def test_layer_and_rms_norm(centred):
    x, g, gamma = 3 + normal(5, 6), normal(5, 6, seed=1), normal(6, seed=2)
    norm = nn.layer_norm if centred else nn.rms_norm
    expected = closed_forms.row_norm(x, gamma, g, 1e-3, centred)
    assert_same(lambda x, w: norm(x, 6, w, eps=1e-3), (x, gamma), g, expected)


@pytest.mark.parametrize("mode", ["across_channels", "within_channel"])
@pytest.mark.parametrize("size", [3, 7])
def test_local_response_norm(mode, size):
    x, g = normal(2, 5, 4, 3), normal(2, 5, 4, 3, seed=1)
    within = mode == "within_channel"
    expected = closed_forms.local_response(x, g, size, 0.9, 0.75, 1.5, within)
    assert_same(lambda x: nn.local_response_norm(x, size, 0.9, 0.75, 1.5, mode), (x,), g, expected)
