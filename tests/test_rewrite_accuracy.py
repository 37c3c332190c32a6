"""The simplified backward in floating point: bounds on its error, and what stays finite."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable

import pytest
import rewrite_cases as R
from cases import store
from test_rewrite import values

import minigrad as mg
from minigrad import Tensor, nn
from minigrad.device import cpu
from minigrad.dtype import DType, float32, float64
from minigrad.graph import Node
from minigrad.rewrite import simplify
from minigrad.tensor_base import wrap


def exactly(x: float) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", x))[0]


def bn_errors(ratio: float, how: R.Moments) -> tuple[float, float]:
    """Largest relative error of dx in float32 at mean / std = ratio: chain rule, and simplified."""
    m, worst = 512, [0.0, 0.0]
    for seed in range(3):
        rng = random.Random(seed)
        x = [exactly(rng.gauss(ratio, 1.0)) for _ in range(m)]
        centre = math.fsum(x) / m
        g = [exactly(rng.gauss(0, 1) + 0.2 + 0.7 * (v - centre)) for v in x]
        nodes = []
        for data in (x, g):
            nodes.append(store(data, (m, 1), float32, cpu, needs_grad=True))
        tensor = wrap(nodes[0])
        c, v = how(tensor, (0,))
        y = c * mg.rsqrt(v + R.EPS)
        dx = mg.gradients(y, tensor, wrap(nodes[1])).node
        rho = 1 / math.sqrt(math.fsum((v - centre) ** 2 for v in x) / m + R.EPS)
        s = math.fsum(g) / m
        p = math.fsum(b * (a - centre) for a, b in zip(x, g, strict=True)) / m
        right = [rho * (b - s - (a - centre) * rho * rho * p) for a, b in zip(x, g, strict=True)]
        scale = max(map(abs, right))
        for k, node in enumerate((dx, *simplify([y.node, dx])[1:])):
            ((found),) = values([node])
            worst[k] = max(
                worst[k], max(abs(a - b) for a, b in zip(found, right, strict=True)) / scale
            )
    return worst[0], worst[1]


@pytest.mark.parametrize(
    ("ratio", "bound"), [(0, 1e-6), (100, 1e-5), (1_000, 1e-4), (10_000, 2e-3)]
)
def test_float32_error_of_the_closed_form(ratio, bound):
    """Up to about twice the chain rule's, which measures sum(x - mean) and corrects for it."""
    chain, simplified = bn_errors(ratio, R.shared)
    assert simplified < bound
    assert simplified < 8 * chain + 1e-6


@pytest.mark.parametrize("ratio", [0, 100, 1_000, 10_000])
def test_centred_on_a_sample_the_gradient_is_right_at_any_mean(ratio):
    _, simplified = bn_errors(ratio, R.barriered)
    assert simplified < 1e-6


def test_no_variance_and_no_eps_stays_finite_where_the_chain_rule_is():
    for deviation in (1e-14, 1e-18):
        rng = random.Random(0)
        x, g = ([rng.gauss(0, s) for _ in range(32)] for s in (deviation, 1.0))
        tensor = wrap(store(x, (32, 1), float32, cpu, needs_grad=True))
        c, v = R.shared(tensor, (0,))
        y = c / mg.sqrt(v)
        dx = mg.gradients(y, tensor, wrap(store(g, (32, 1), float32, cpu))).node
        (new,) = simplify([dx])
        old_values, new_values = values([dx]), values([new])
        for a, b in zip(old_values[0], new_values[0], strict=True):
            assert math.isfinite(b) or not math.isfinite(a)


# Compiled, with the functions' own statistics.

NORMS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int]] = {
    "batch_norm": (
        lambda x, g, b: nn.batch_norm(x, None, None, g, b, training=True), (64, 4, 8, 8), 4,
    ),
    "instance_norm": (lambda x, g, b: nn.instance_norm(x, None, None, g, b), (4, 4, 32, 32), 4),
    "group_norm": (lambda x, g, b: nn.group_norm(x, 2, g, b), (4, 4, 16, 32), 4),
    "layer_norm": (lambda x, g, b: nn.layer_norm(x, 1024, g, b), (16, 1024), 1024),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("ratio", [0, 100, 1_000, 10_000])
def test_gradients_that_run_are_right_at_any_mean(name, ratio):
    f, shape, channels = NORMS[name]
    rng = random.Random(ratio)
    size = math.prod(shape)
    x = [exactly(rng.gauss(ratio, 1.0)) for _ in range(size)]
    g = [exactly(rng.gauss(0.2, 1.0) + 0.7 * (v - ratio)) for v in x]
    weight = [exactly(rng.uniform(0.5, 1.5)) for _ in range(channels)]

    def gradients(dtype: str) -> list[list[float]]:
        inputs = [
            mg.tensor(data, dtype=dtype).reshape(s).requires_grad_()
            for data, s in ((x, shape), (weight, (channels,)), (weight, (channels,)))
        ]
        y = f(*inputs)
        found = mg.gradients([y], inputs, [mg.tensor(g, dtype=dtype).reshape(shape)])
        mg.evaluate(y, *found)
        return [d.flatten().tolist() for d in found]

    with mg.rewrites(False):
        right = gradients("float64")
    dx, dweight, dbias = map(relative_error, gradients("float32"), right)
    assert dx < 1e-6
    assert max(dweight, dbias) < 1e-6


def relative_error(found: list[float], right: list[float]) -> float:
    worst = max(abs(a - b) for a, b in zip(found, right, strict=True))
    return worst / max(map(abs, right))


# What is finite stays finite.


def backward(
    x: list[float],
    g: list[float],
    axes: tuple[int, ...],
    gamma: float = 1.5,
    dtype: DType = float32,
) -> tuple[list[Node], list[Node]]:
    """Gradients of a normalization over 32 elements: by the chain rule, and simplified."""
    shape, small = ((32, 2), (1, 2)) if axes == (0,) else ((2, 32), (2, 1))
    tensor = wrap(store(x, shape, dtype, cpu, needs_grad=True))
    scale = wrap(store([gamma] * 2, small, dtype, cpu, needs_grad=True))
    y = scale * R.normalized(tensor, axes) + scale
    cotangent = wrap(store(g, shape, dtype, cpu))
    old = [d.node for d in mg.gradients(y, [tensor, scale], cotangent)]
    return old, simplify([y.node, *old])[1:]


def draws(seed: int, scale: float = 1.0) -> list[float]:
    rng = random.Random(seed)
    return [exactly(rng.gauss(0, scale)) for _ in range(64)]


@pytest.mark.parametrize("axes", [(0,), (1,)])
@pytest.mark.parametrize(
    ("x", "g", "gamma"),
    [
        (draws(0), draws(1), 0.0),
        ([5.0] * 64, draws(1), 1.5),
        (draws(0), draws(1, 1e37), 1.5),
        (draws(0, 1e-18), draws(1), 1.5),
        (draws(0, 1e15), draws(1), 1.5),
    ],
    ids=["gamma 0", "constant", "g of 1e37", "x of 1e-18", "x of 1e15"],
)
def test_extremes_are_as_near_as_the_chain_rule_has_them(x, g, gamma, axes):
    old, new = backward(x, g, axes, gamma)
    right, _ = backward(x, g, axes, gamma, float64)
    for a, b, r in zip(values(old), values(new), values(right), strict=True):
        scale = max(map(abs, r))
        assert all(map(math.isfinite, b))
        errors = [max(abs(p - q) for p, q in zip(found, r, strict=True)) for found in (a, b)]
        assert errors[1] <= 2 * errors[0] + 1e-6 * scale


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "g"])
@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_what_is_not_finite_spoils_the_same_elements(bad, where, axes):
    data = {"x": draws(0), "g": draws(1)}
    data[where][10] = bad
    old, new = backward(data["x"], data["g"], axes)
    for a, b in zip(values(old), values(new), strict=True):
        assert [math.isfinite(p) for p in a] == [math.isfinite(q) for q in b]
    assert not all(math.isfinite(p) for p in values(old)[0])


@pytest.mark.parametrize("k", [1.0, 1e4])
def test_a_sum_around_a_constant_is_undone_unless_a_barrier_holds_it(k):
    """mean(x - k) + k simplifies to the plain mean; behind a barrier it keeps its accuracy."""
    x = wrap(store([exactly(k + v) for v in draws(0)], (64,), float32, cpu))
    right = math.fsum(x.tolist()) / 64

    def error(shifted: Tensor) -> float:
        (node,) = simplify([(mg.sum(shifted) / 64.0 + k).node])
        return abs(values([node])[0][0] - right)

    assert error(mg.barrier(x - k)) <= error(x - k) + 1e-7 * k
    assert error(mg.barrier(x - k)) <= 1e-7 * k
