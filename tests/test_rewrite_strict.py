"""`mg.rewrites("strict")`: no NaN and no infinity of the unsimplified values disappears."""

from __future__ import annotations

import math
import random

import pytest
import reference
import rewrite_cases as R
from cases import store
from test_rewrite import CASES, assert_close, values
from test_rewrite_random import graph

import minigrad as mg
from minigrad import Tensor, ops
from minigrad.device import default_device
from minigrad.dtype import float64
from minigrad.graph import Node, const_value, topological
from minigrad.rewrite import HIDING, cost, simplify
from minigrad.tensor_base import wrap

SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -2.0, 3.0]


def special() -> Node:
    return store([*SPECIAL, *SPECIAL[::-1]], (6, 2), float64, default_device())


def finite(nodes: list[Node]) -> list[list[bool]]:
    return [[math.isfinite(v) for v in row] for row in values(nodes)]


# What each hides, with a sum over one column that has no other way to be simplified.
HIDERS = {
    "cancelled terms": lambda x: x - x,
    "product with zero": lambda x: x * ops.zeros_like(x),
    "cancelled powers": lambda x: x / x,
    "power of a root": lambda x: ops.sqrt(x) * ops.sqrt(x),
}


@pytest.mark.parametrize("name", HIDING)
def test_what_each_rule_hides_is_kept_without_it(name):
    x = special()
    old = [ops.sum_(HIDERS[name](x), axes=(1,))]
    assert finite(simplify(old, off={name})) == finite(old)
    hidden = finite(simplify(old))[0]
    assert sum(hidden) > sum(finite(old)[0]), "it hides nothing"


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w: (x - w) - (x + w),
        lambda x, w: (x + w) * (x - w) - x * x,
        lambda x, w: ops.rsqrt(x) * ops.sqrt(x) * w,
        lambda x, w: ops.pow_(ops.sqrt(x), ops.like(4.0, x)),
        lambda x, w: w * x * x / x,
        lambda x, w: 1.0 / (1.0 / x),
        lambda x, w: ops.exp(x) * (w / ops.exp(x) - 1.0),
        lambda x, w: (x + ops.expand(ops.sum_(x, axes=(1,)), shape=(6, 2))) - x,
        lambda x, w: x - ops.expand(ops.sum_(x, axes=(1,)) / 2.0, shape=(6, 2)),
    ],
)
def test_strict_keeps_every_nan(f):
    x, w = special(), R.Leaves()(6, 2).node
    y = f(x, w)
    total = ops.expand(ops.sum_(y, axes=(1,)), shape=(6, 2))
    old = [y, total, ops.sum_(y * total, axes=(0,)), total * w - y]
    assert finite(simplify(old, off=HIDING)) == finite(old)


@pytest.mark.parametrize("name", CASES)
def test_layers_are_right_and_keep_what_is_not_finite(name):
    build = CASES[name][0]
    old = [n for part in build() for n in part]
    new = simplify(old, off=HIDING)
    assert_close(old, new)
    leaves = [n for n in topological(old) if n.storage is not None and n.dtype.is_floating]
    rng = random.Random(0)
    for leaf in rng.sample(leaves, min(3, len(leaves))):
        spoiled = spoil(leaf, rng)
        try:
            for a, b in zip(finite(old), finite(new), strict=True):
                assert all(p or not q for p, q in zip(a, b, strict=True)), leaf
        finally:
            leaf.storage = spoiled


def spoil(leaf: Node, rng: random.Random) -> object:
    """Make one element NaN or infinite; gives the storage to put back."""
    data = reference.evaluate(leaf)
    data[rng.randrange(len(data))] = rng.choice([math.nan, math.inf, -math.inf])
    before, leaf.storage = (
        leaf.storage,
        store(data, leaf.shape, leaf.dtype, default_device()).storage,
    )
    return before


@pytest.mark.parametrize("seed", range(400, 440))
def test_random_graphs_keep_what_is_not_finite(seed):
    old = graph(seed)
    new = simplify(old, off=HIDING)
    rng = random.Random(seed)
    leaves = [n for n in topological(old) if n.storage is not None]
    for leaf in rng.sample(leaves, min(2, len(leaves))):
        spoil(leaf, rng)
    for a, b in zip(finite(old), finite(new), strict=True):
        assert all(p or not q for p, q in zip(a, b, strict=True))


def test_it_costs_one_reduction_of_a_batch_normalization():
    forward, gradients = R.bn()
    out = simplify([*forward, *gradients], off=HIDING)
    assert cost(out[1:], out[:1])[:2] == (3, 2)
    *_, db = simplify([n for part in R.bias_norm(R.BN) for n in part], off=HIDING)
    assert const_value(db) is None  # that it is 0 takes x - x = 0


def test_in_a_plan():
    x = mg.tensor([[math.inf, 1.0], [2.0, math.nan]])

    def total(x: Tensor) -> list[float]:
        return mg.sum((x + 1.0) - x, axis=1).tolist()

    assert total(x) == [2.0, 2.0]
    with mg.rewrites("strict"):
        assert all(math.isnan(v) for v in total(x))
        assert total(wrap(R.Leaves()(2, 2).node)) == pytest.approx([2.0, 2.0])
    assert total(x) == [2.0, 2.0]


def test_another_mode_is_an_error():
    with pytest.raises(ValueError, match="rewrites: expected True, False or 'strict', got 'fast'"):
        mg.rewrites("fast")  # type: ignore[arg-type]
