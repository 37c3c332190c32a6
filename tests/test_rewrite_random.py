"""Random graphs of arithmetic, sums, broadcasts and views, with their derivatives: equal values."""

from __future__ import annotations

import math
import os
import random
import time

import pytest
import reference
from rewrite_cases import Leaves

from minigrad import ops
from minigrad.autodiff import gradients
from minigrad.graph import Node, like, topological
from minigrad.rewrite import HIDING, RULES, cost, simplify

SEEDS = int(os.environ.get("REWRITE_SEEDS", "150"))
SWITCHES = [*RULES, "collect", "multiply out", "views", "nested sums", *HIDING]


class Builder:
    """Grows a graph of up to three axes whose extents are small."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.leaves = Leaves(seed)
        self.shape = tuple(self.rng.choice(e) for e in ([2, 3, 4], [1, 3, 4], [2, 5]))
        self.pool = [self.leaf() for _ in range(4)]
        self.pool.append(self.leaves(*self.shape).node)
        self.sources = list(self.pool)

    def leaf(self) -> Node:
        return self.leaves(*(n if self.rng.random() < 0.6 else 1 for n in self.shape)).node

    def together(self, a: Node, b: Node) -> tuple[Node, Node]:
        shape = tuple(max(p, q) for p, q in zip(a.shape, b.shape, strict=True))
        return expanded(a, shape), expanded(b, shape)

    def step(self) -> Node:
        rng = self.rng
        kind = rng.random()
        a, b = self.together(rng.choice(self.pool[-8:] + self.sources), rng.choice(self.pool))
        if kind < 0.17:
            return a + b
        if kind < 0.32:
            return a - b
        if kind < 0.54:
            return a * b
        if kind < 0.59:
            return a / (b * b + rng.choice([0.5, 1.0, 2.0]))
        if kind < 0.62:
            return -a
        if kind < 0.68:
            return ops.rsqrt(a * a + rng.choice([0.5, 0.1]))
        if kind < 0.71:
            return ops.sqrt(a * a + 1.0) * rng.choice([2.0, 0.5])
        if kind < 0.74:
            return ops.tanh(a)
        if kind < 0.76:
            return ops.where(ops.less(a, like(0.1, a)), like(0.0, a), a)
        if kind < 0.79:
            return a / rng.choice([2.0, 3.0, 4.0])
        if kind < 0.81:
            return ops.stop_gradient(a)
        if kind < 0.83:
            return ops.pow_(a * a + 0.5, like(rng.choice([2.0, -1.0, 0.5, -1.5, 0.75]), a))
        if kind < 0.86:
            return self.viewed(a)
        return self.reduced(a)

    def viewed(self, a: Node) -> Node:
        """The same extents after a detour through other axes, with some arithmetic on the way."""
        if self.rng.random() < 0.5:
            z = ops.permute(a, axes=(2, 0, 1))
            z = z - ops.expand(mean(z, (0,)), shape=z.shape)
            return ops.permute(z, axes=(1, 2, 0))
        n, k, m = a.shape
        z = ops.reshape(a, shape=self.rng.choice([(n * k, m), (n, k * m), (n, 1, k, m, 1)]))
        z = z * 0.5 + ops.expand(mean(z, (z.ndim - 1,)), shape=z.shape)
        return ops.reshape(z, shape=a.shape)

    def reduced(self, a: Node) -> Node:
        axes = tuple(i for i in range(3) if self.rng.random() < 0.5)
        total = mean(a, axes) if axes and self.rng.random() < 0.6 else ops.sum_(a, axes=axes)
        if self.rng.random() < 0.5 and a.shape != total.shape:
            return a - ops.expand(total, shape=a.shape)
        return total


def expanded(a: Node, shape: tuple[int, ...]) -> Node:
    return a if a.shape == shape else ops.expand(a, shape=shape)


def mean(a: Node, axes: tuple[int, ...]) -> Node:
    return ops.sum_(a, axes=axes) / float(math.prod(a.shape[i] for i in axes))


def graph(seed: int) -> list[Node]:
    """Two outputs, their gradients for random cotangents, for some seeds the second ones too."""
    build = Builder(seed)
    for _ in range(build.rng.choice([6, 10, 16, 24])):
        build.pool.append(build.step())
    outputs = [build.rng.choice(build.pool[-6:]) for _ in range(2)]
    roots = list(outputs)
    for _ in range(build.rng.choice([1, 1, 2])):
        cotangents = [build.leaves(*o.shape).node for o in outputs]
        found = gradients(outputs, build.sources, cotangents, unreached="none")
        outputs = [g for g in found if g is not None]
        roots += outputs
    return roots


def values(roots: list[Node]) -> list[list[float]]:
    found = reference._evaluate(list(roots), lambda n: n.op.name == "stored")
    return [found[r] for r in roots]


def assert_equal(seed: int, old: list[Node], new: list[Node]) -> None:
    for a, b, x, y in zip(old, new, values(old), values(new), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = max(1.0, max(map(abs, x)))
        if not math.isfinite(scale) or scale > 1e12:
            continue
        worst = max(abs(p - q) for p, q in zip(x, y, strict=True))
        assert worst <= 1e-8 * scale, (seed, worst, scale)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_graphs_keep_their_values(seed):
    old = graph(seed)
    times = []
    for _ in range(2):  # a garbage collection may come in between once
        begin = time.process_time()
        new = simplify(old)
        times.append(time.process_time() - begin)
    seconds = min(times)
    assert seconds < 1e-3 * len(topological(old)) + 0.05, "far from 90 microseconds a node"
    assert_equal(seed, old, new)


@pytest.mark.parametrize("name", SWITCHES)
def test_each_rule_can_be_switched_off(name):
    for seed in range(200, 206):
        old = graph(seed)
        assert_equal(seed, old, simplify(old, off={name}))


@pytest.mark.parametrize("seed", range(300, 310))
def test_simplifying_again_costs_no_more(seed):
    once = simplify(graph(seed))
    again = simplify(once)
    assert_equal(seed, once, again)
    assert cost(again).reductions <= cost(once).reductions + 1
