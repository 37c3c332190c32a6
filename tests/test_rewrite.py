"""What the simplifier makes of layers and losses: exact counts, equal values, accuracy, growth."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from functools import partial

import pytest
import reference
import rewrite_cases as R
from cases import store

import minigrad as mg
from minigrad import nn, ops
from minigrad.compiler.run import structure
from minigrad.device import default_device
from minigrad.dtype import float32
from minigrad.graph import Node, const_value, topological
from minigrad.rewrite import STATEMENTS, cost, simplify
from minigrad.tensor_base import wrap

affine = ((3,), (3,))
BATCH_NORM = partial(R.layer, lambda x, g, b: nn.batch_norm(x, None, None, g, b, True), *affine)
INSTANCE_NORM = partial(R.layer, lambda x, g, b: nn.instance_norm(x, None, None, g, b), *affine)
GROUP_NORM = partial(R.layer, lambda x, g, b: nn.group_norm(x, 2, g, b), (4,), (4,), x=(3, 4, 2, 2))
LAYER_NORM = partial(R.layer, lambda x, g, b: nn.layer_norm(x, 5, g, b), (5,), (5,), x=R.TABLE)
WEIGHT_NORM = partial(R.layer, nn.weight_norm, (4,), x=R.TABLE)
FILTER_RESPONSE = partial(R.layer, nn.filter_response_norm, *affine)
RENORM = partial(
    R.layer,
    lambda x, g, b: nn.batch_renorm(
        x, mg.full((3,), 0.5), mg.full((3,), 1.5), g, b, training=True, r_max=3.0, d_max=5.0
    ),
    *affine,
)
MEAN_ONLY = partial(R.layer, lambda x, b: nn.mean_only_batch_norm(x, mg.zeros((3,)), b, True), (3,))
DECORRELATED = partial(
    R.layer, lambda x, g, b: nn.decorrelated_batch_norm(x, None, None, g, b), *affine
)
STANDARDIZED = partial(R.layer, nn.weight_standardization, x=R.TABLE)
RMS_NORM = partial(R.layer, lambda x, g: nn.rms_norm(x, 5, g), (5,), x=R.TABLE)

# (full-size reductions, dependent sweeps) of the backward: chain rule, simplified, and the
# full-size elementwise operations of the latter. The forward's reductions are free.
CASES: dict[str, tuple[Callable[[], R.Case], tuple[int, int], tuple[int, int, int]]] = {
    "BN": (R.bn, (4, 3), (2, 2, 5)),
    "BN, centred twice": (partial(R.bn, R.separate), (5, 3), (2, 2, 5)),
    "BN, E[x2] - E[x]2": (partial(R.bn, R.raw), (4, 2), (2, 2, 5)),
    "BN, mean detached in the variance": (partial(R.bn, R.detached), (4, 2), (2, 2, 5)),
    "BN, statistics reshaped": (partial(R.bn, R.dropped), (4, 3), (2, 2, 5)),
    "BN, centred on a sample": (partial(R.bn, R.barriered), (4, 3), (2, 2, 5)),
    "BN, x * inv + (beta - mu * inv)": (R.bn_folded, (2, 2), (2, 2, 5)),
    "BN, c / sqrt": (R.bn_divided, (4, 3), (2, 2, 5)),
    "BN, eps of old Keras": (partial(R.bn_divided, 1e-5), (4, 3), (2, 2, 5)),
    "BN, no affine": (R.bn_plain, (2, 3), (2, 2, 5)),
    "BN, mean only": (R.bn_mean_only, (2, 2), (1, 2, 1)),
    "bias + BN": (partial(R.bias_norm, R.BN), (5, 3), (2, 2, 5)),
    "bias + IN": (partial(R.bias_norm, (2, 3)), (5, 3), (2, 2, 5)),
    "BN + Scale": (R.bn_scale, (6, 3), (2, 2, 5)),
    "BN + ReLU": (R.bn_relu, (4, 3), (2, 2, 6)),
    "BN + residual + ReLU": (partial(R.bn_relu, True), (4, 3), (2, 2, 6)),
    "BN of a residual sum": (R.bn_of_residual, (4, 3), (2, 2, 5)),
    "BN and running statistics": (R.bn_with_running_statistics, (4, 3), (2, 2, 5)),
    "BN, eval": (R.bn_eval, (2, 1), (2, 1, 3)),
    "BN, eval, dx": (partial(R.bn_eval, False), (0, 1), (0, 1, 2)),
    "BatchRenorm": (R.renorm, (4, 3), (2, 2, 5)),
    "BatchRenorm, no dbeta": (partial(R.renorm, False), (3, 3), (2, 2, 5)),
    "LN": (R.ln, (4, 3), (4, 2, 8)),
    "LN, (B, T, D)": (partial(R.ln, (2, 3, 4), (2,)), (4, 3), (4, 2, 8)),
    "LN, (N, C, H, W)": (partial(R.ln, R.IMAGE, (1, 2, 3)), (4, 3), (4, 2, 8)),
    "LN, centred on a sample": (partial(R.ln, how=R.barriered), (4, 3), (4, 2, 8)),
    "LN, per channel": (partial(R.per_channel, (1, 2, 3)), (4, 3), (2, 2, 5)),
    "IN": (partial(R.per_channel, (2, 3)), (4, 3), (2, 2, 5)),
    "GN, 5-D view": (R.gn, (4, 3), (2, 2, 5)),
    "GN, flat view": (partial(R.gn, True), (4, 3), (2, 2, 5)),
    "RMSNorm": (R.rms, (2, 2), (2, 2, 7)),
    "weight norm": (R.weight_norm, (2, 2), (1, 2, 4)),
    "weight standardization": (R.weight_standardization, (2, 3), (2, 2, 5)),
    "filter response norm": (R.filter_response, (4, 2), (3, 2, 6)),
    "cross-entropy": (R.cross_entropy, (1, 2), (0, 1, 4)),
    "cross-entropy by log(p)": (partial(R.cross_entropy, True), (1, 2), (0, 1, 3)),
    "softmax": (R.softmax, (1, 2), (1, 2, 4)),
    "mean squared error": (R.mse, (0, 1), (0, 1, 2)),
    "BN twice": (R.bn_twice, (9, 4), (5, 2, 20)),
    "BN twice, dx only": (partial(R.bn_twice, False), (9, 4), (5, 2, 17)),
    "BN twice, E[x2] - E[x]2": (partial(R.bn_twice, True, R.raw), (9, 3), (5, 2, 22)),
    "BN twice, centred on a sample": (partial(R.bn_twice, True, R.barriered), (9, 4), (5, 2, 20)),
    "LN twice": (R.ln_twice, (9, 4), (9, 2, 33)),
    "BN three times": (R.bn_thrice, (11, 4), (9, 2, 27)),
    "gradient penalty, IN": (partial(R.penalty, (2, 3)), (7, 6), (5, 3, 24)),
    "gradient penalty, LN": (partial(R.penalty, (1, 2, 3)), (7, 6), (5, 3, 24)),
    "gradient penalty, BN": (partial(R.penalty, R.BN), (7, 6), (7, 3, 27)),
    "Caffe BN + Scale": (R.caffe_bn_scale, (4, 3), (2, 2, 5)),
    # The sum of a channel's c stays: opened it would subtract at run time.
    "bias + GN": (R.bias_gn, (5, 3), (3, 2, 5)),
    "weight norm twice": (partial(R.weight_norm, 2), (5, 3), (3, 2, 15)),
    "BatchRenorm twice": (partial(R.renorm, True, 2), (9, 5), (5, 2, 22)),
    "nn.batch_norm": (BATCH_NORM, (4, 3), (2, 2, 5)),
    "nn.instance_norm": (INSTANCE_NORM, (4, 3), (2, 2, 5)),
    "nn.group_norm": (GROUP_NORM, (4, 3), (2, 2, 5)),
    "nn.layer_norm": (LAYER_NORM, (4, 3), (4, 2, 8)),
    "nn.rms_norm": (RMS_NORM, (2, 2), (2, 2, 7)),
    "nn.weight_norm": (WEIGHT_NORM, (1, 2), (1, 2, 4)),
    "nn.weight_standardization": (STANDARDIZED, (2, 3), (2, 2, 5)),
    "nn.filter_response_norm": (FILTER_RESPONSE, (3, 2), (2, 2, 4)),
    "nn.filter_response_norm, threshold": (partial(FILTER_RESPONSE, (3,)), (4, 2), (3, 2, 6)),
    "nn.batch_renorm": (RENORM, (4, 3), (2, 2, 5)),
    "nn.mean_only_batch_norm": (MEAN_ONLY, (2, 2), (1, 2, 1)),
    "nn.decorrelated_batch_norm": (DECORRELATED, (3, 2), (3, 2, 8)),  # beside matrix products
    "nn.batch_norm twice": (partial(BATCH_NORM, order=2), (9, 4), (5, 2, 20)),
    "nn.instance_norm twice": (partial(INSTANCE_NORM, order=2), (9, 4), (5, 2, 20)),
    "nn.group_norm twice": (partial(GROUP_NORM, order=2), (9, 4), (5, 2, 20)),
    "nn.layer_norm twice": (partial(LAYER_NORM, order=2), (9, 4), (9, 2, 33)),
    "nn.rms_norm twice": (partial(RMS_NORM, order=2), (5, 2), (5, 2, 30)),
}


def split(case: R.Case) -> tuple[list[Node], list[Node], list[Node], list[Node]]:
    forward, gradients = case
    out = simplify([*forward, *gradients])
    return forward, gradients, out[: len(forward)], out[len(forward) :]


def values(roots: list[Node]) -> list[list[float]]:
    found = reference._evaluate(list(roots), lambda n: n.op.name == "stored")
    return [found[r] for r in roots]


def assert_close(old: list[Node], new: list[Node], tolerance: float = 1e-9) -> None:
    for a, b, x, y in zip(old, new, values(old), values(new), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = max(1e-3, max(map(abs, x)))
        assert max(abs(p - q) for p, q in zip(x, y, strict=True)) <= tolerance * scale


@pytest.mark.parametrize("name", CASES)
def test_reductions_and_sweeps(name):
    build, before, after = CASES[name]
    forward, gradients, new_forward, new_gradients = split(build())
    assert tuple(cost(gradients, forward))[:2] == before
    assert tuple(cost(new_gradients, new_forward)) == after
    assert cost(new_forward)[:2] <= cost(forward)[:2]
    assert_close([*forward, *gradients], [*new_forward, *new_gradients])


@pytest.mark.parametrize("build", [BATCH_NORM, INSTANCE_NORM, GROUP_NORM, LAYER_NORM, RMS_NORM])
def test_forward_reductions_and_sweeps(build):
    *_, new_forward, _ = split(build())
    assert cost(new_forward)[:2] == ((1, 2) if build is RMS_NORM else (2, 3))


@pytest.mark.parametrize(
    "name", ["BN", "IN", "BN + Scale", "BatchRenorm", "LN", "RMSNorm", "BN twice"]
)
@pytest.mark.parametrize("seed", range(3))
def test_at_other_extents(name, seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(R, "IMAGE", (rng.randint(3, 5), 3, rng.randint(2, 4), rng.randint(2, 4)))
    monkeypatch.setattr(R, "TABLE", (rng.randint(3, 6), rng.randint(3, 6)))
    test_reductions_and_sweeps(name)


@pytest.mark.parametrize("name", ["BN", "LN", "GN, 5-D view", "BN twice", "nn.batch_norm"])
def test_any_order_and_any_subset_of_the_outputs(name):
    build, _, (reductions, sweeps, _) = CASES[name]
    forward, gradients = build()
    rng = random.Random(0)
    for _ in range(6):
        some = rng.sample(gradients, rng.randint(1, len(gradients)))
        out = simplify([*some, *forward])
        found = cost(out[: len(some)], out[len(some) :])
        assert found.reductions <= reductions
        assert found.sweeps <= sweeps
        if len(some) == len(gradients):
            assert found[:2] == (reductions, sweeps)


def test_the_same_program_simplifies_to_the_same_structure():
    def made() -> object:
        out = simplify([n for part in R.bn_twice() for n in part])
        return structure(topological(out), out)

    first = made()
    assert made() == first


def test_the_gradient_of_a_bias_before_a_normalization_is_the_constant_0():
    for axes in (R.BN, (2, 3)):
        *_, gradients = split(R.bias_norm(axes))
        assert const_value(gradients[-1]) == 0.0
    for case in (R.bias_norm((1, 2, 3)), R.bias_gn()):  # LN, GN: it is not 0
        *_, gradients = split(case)
        assert const_value(gradients[-1]) is None


def test_all_forms_of_a_variance_share_their_reductions():
    """The sums of the backward are of g and of g times what the forward centres.

    (A mask of g is a factor of its own. Where y is written x*inv + k the chain rule sums g*x.)
    """

    def summed(case: R.Case) -> list[tuple[str, ...]]:
        *_, new_forward, new = split(case)
        before = {n.id for n in topological(new_forward)}
        sums = [n for n in topological(new) if n.op is ops.sum_ and n.id not in before]
        return sorted(tuple(sorted(_factors(n.inputs[0]))) for n in sums)

    def _factors(n: Node) -> list[str]:
        if n.op is ops.mul:
            return [f for i in n.inputs for f in _factors(i)]
        return ["g" if n.storage is not None or n.op is ops.where else "c"]

    forms = [R.bn(how) for how in (R.shared, R.separate, R.dropped, R.raw, R.detached)]
    forms += [R.bn_divided(), R.bn_divided(1e-5), R.bn_relu(), R.bn_scale(), R.caffe_bn_scale()]
    for case in forms:
        assert summed(case) == [("c", "g"), ("g",)]


@pytest.mark.parametrize("build", [R.adam, R.sgd, R.gelu])
def test_what_has_nothing_to_gain_comes_back_as_the_same_nodes(build):
    roots = build()
    assert simplify(roots) == roots


def test_with_every_rule_off_values_are_equal():
    for build in (R.bn, R.gn, R.bn_twice):
        old = [n for part in build() for n in part]
        assert_close(old, simplify(old, off=STATEMENTS.keys()))


GROWTH = {
    "BN + ReLU": lambda depth: R.chain(depth, nn.relu),
    "BN + tanh": lambda depth: R.chain(depth, mg.tanh),
    "BN": R.chain,
    "residual blocks": R.blocks,
}


@pytest.mark.parametrize("name", GROWTH)
def test_time_grows_linearly_with_depth(name):
    def seconds_a_node(depth: int) -> float:
        forward, gradients = GROWTH[name](depth)
        roots = [*forward, *gradients]
        best = math.inf
        for _ in range(3):
            begin = time.process_time()
            simplify(roots)
            best = min(best, time.process_time() - begin)
        return best / len(topological(roots))

    # Superlinear growth would give 6 or more.
    assert seconds_a_node(60) < 3 * seconds_a_node(10) + 2e-5


# Pitfalls: each gave a wrong or slow result once.


def leaf(*shape: int, seed: int = 0) -> Node:
    return R.Leaves(seed)(*shape).node


def negative(*shape: int) -> Node:
    return R.Leaves(1)(*shape, low=-2.0).node


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: ops.sqrt(x * x),
        lambda x, y: x * ops.rsqrt(x * x),
        lambda x, y: ops.sqrt(4.0 * x * x),
        lambda x, y: x * y / y,
        lambda x, y: ops.sqrt(x * x) * ops.sqrt(x * x),
        lambda x, y: ops.pow_(x * x, ops.like(0.25, x)),
        lambda x, y: ops.pow_(ops.sqrt(x * x), ops.like(3.0, x)),
        lambda x, y: ops.pow_(x, ops.like(0.0, x)),
        lambda x, y: x - x,
        lambda x, y: y / (y * y),
    ],
)
def test_roots_and_powers_of_negative_numbers(f):
    old = [f(negative(3, 4), leaf(3, 4))]
    total = ops.expand(ops.sum_(old[0], axes=(1,)), shape=(3, 4))
    old.append(total * old[0])
    assert_close(old, simplify(old))


def test_a_parameter_made_anew_changes_nothing():
    """Symbols are numbered by first use, not by the ids that their nodes happen to have."""

    def made(first: str) -> object:
        values = {name: R.Leaves(k) for k, name in enumerate(("x", "gamma", "beta", "g"))}
        made: dict[str, mg.Tensor] = {}
        for name in (first, *(n for n in values if n != first)):
            L = values[name]
            made[name] = L.channels(3) if name in ("gamma", "beta") else L(*R.IMAGE)
        x, gamma, beta = made["x"], made["gamma"], made["beta"]
        y = gamma * R.normalized(x, R.BN) + beta
        dx = mg.gradients(y, [x, gamma, beta], made["g"], create_graph=True)
        out = simplify([y.node, *(d.node for d in dx)])
        return structure(topological(out), out)

    assert len({repr(made(first)) for first in ("x", "gamma", "beta", "g")}) == 1


def test_opening_keeps_the_number_of_its_term():
    x, w, k = leaf(4, 6), leaf(4, 6, seed=2), leaf(4, 1, seed=3)
    centre = x - ops.expand(ops.sum_(x, axes=(1,)) / 6.0, shape=(4, 6))
    old = [ops.sum_(3.0 * w * centre * ops.expand(k, shape=(4, 6)), axes=(1,))]
    old.append(ops.sum_(-0.5 * centre * centre + centre * 7.0, axes=(0,)))
    assert_close(old, simplify(old))


def test_one_sum_keeps_the_factor_of_the_inner_sum():
    x = leaf(3, 4, 5)
    inner = ops.sum_(2.5 * x, axes=(1,))
    old = [ops.sum_(inner, axes=(0,)), ops.sum_(inner * inner, axes=(2,))]
    assert_close(old, simplify(old))
    (whole,) = simplify(old[:1])
    assert_close(old[:1], [whole])
    assert sum(n.op is ops.sum_ for n in topological([whole])) == 1


def test_collecting_never_widens_a_value():
    x, k = leaf(4, 5), leaf(1, 5, seed=2)
    mean = ops.sum_(x, axes=(0,)) / 4.0
    centre = x - ops.expand(mean, shape=(4, 5))
    old = [centre * ops.expand(k, shape=(4, 5)), k * mean, mean - k]
    new = simplify(old)
    assert_close(old, new)
    assert [n.shape for n in new] == [n.shape for n in old]


def test_linearity_does_not_make_two_reductions_of_one():
    r, s, k = leaf(4, 5), leaf(4, 5, seed=2), leaf(4, 1, seed=3)
    old = [ops.sum_(r + s * ops.expand(k, shape=(4, 5)), axes=(1,))]
    assert cost(simplify(old)).reductions == 1


def test_a_cancelling_power_opens_a_centre():
    """e * (y/e - 1/s) must become y - e/s."""
    _, gradients, _, new = split(R.cross_entropy(True))
    exponentials = [n for n in topological(new) if n.op is ops.div and n.size > 4]
    assert not exponentials
    assert_close(gradients, new)


def test_a_one_hot_label_out_of_range_still_counts_for_nothing():
    labels = wrap(store([0, 2, 5, -1], (4,), mg.int64, default_device()))
    old = [mg.sum(mg.one_hot(labels, 3, mg.float64), axis=1).node]
    new = simplify(old)
    assert values(new) == [[1.0, 1.0, 0.0, 0.0]]
    assert not [n for n in topological(new) if n.op is ops.sum_]


def test_extents_of_0_and_numbers_without_a_reciprocal_are_left_alone():
    x = leaf(0, 3)
    zero = ops.zeros_like(leaf(2, 2))
    old = [ops.sum_(x, axes=(0,)), ops.sum_(x * 2.0, axes=(0, 1)), leaf(2, 2) * zero]
    assert_close(old[:1], simplify(old[:1]), 0.0)
    assert [n.shape for n in simplify(old)] == [n.shape for n in old]
    for f in (lambda a: 1.0 / a, ops.rsqrt, lambda a: ops.sqrt(a - 1.0)):
        (new,) = simplify([f(zero)])
        (kept,) = values([new])
        assert repr(kept) == repr(values([f(zero)])[0])


def test_infinite_constants_survive():
    x = leaf(3, 4)
    masked = ops.where(ops.less(x, ops.like(0.5, x)), ops.like(-math.inf, x), x)
    old = [ops.max_(masked, axes=(1,)), ops.sum_(ops.exp(masked), axes=(1,))]
    assert_close(old[1:], simplify(old)[1:])


def test_only_one_floating_dtype_is_looked_through():
    x = leaf(4, 5)
    narrow = ops.cast(x, dtype=float32)
    old = [
        ops.cast(narrow, dtype=x.dtype) - x,
        ops.sum_(ops.cast(narrow, dtype=x.dtype), axes=(0,)),
    ]
    assert values(simplify(old)) == values(old)


def test_barrier_stops_the_algebra():
    x, k = leaf(8, 2), leaf(1, 2, seed=2)
    wide = ops.expand(k, shape=(8, 2))
    shifted = x - wide
    plain = simplify([ops.sum_(shifted, axes=(0,)) / 8.0 + k])
    guarded = simplify([ops.sum_(ops.barrier(shifted), axes=(0,)) / 8.0 + k])
    assert not [n for n in topological(plain) if n.op is ops.sub]
    assert [n for n in topological(guarded) if n.op is ops.sub]


def test_a_checkpoint_still_recomputes():
    L = R.Leaves()
    x, w = L(4, 5), L(4, 5)
    y = mg.checkpoint(lambda a: mg.tanh(mg.exp(a * w) * 0.1))(x)
    dx = mg.gradients(y, x, L(4, 5))
    exponentials = [n for n in topological([y.node, dx.node]) if n.op is ops.exp]
    new = simplify([y.node, dx.node])
    assert len([n for n in topological(new) if n.op is ops.exp]) == len(exponentials) == 2


def test_forward_reductions_that_are_not_told_are_never_opened():
    forward, gradients = R.bn_twice()
    every = topological([*forward, *gradients])
    out = simplify([*forward, *gradients], given={n.id for n in every})
    found = cost(out[len(forward) :], out[: len(forward)])
    assert found[:2] == (5, 3)


# Compiled.


def trained(on: bool) -> list[float]:
    """A few steps of a small network with BN, as the engine runs them."""
    L = R.Leaves(0, float32)
    x, w, gamma, beta = L(8, 2, 6, 6), L(3, 2, 3, 3), L(3, low=0.5), L(3)
    m, v = mg.zeros(3), mg.ones(3)
    for t in (w, gamma, beta):
        t.requires_grad_()

    @mg.compile
    def step() -> mg.Tensor:
        h = nn.batch_norm(nn.conv2d(x, w), m, v, gamma, beta, training=True)
        loss = mg.mean(mg.tanh(h) * nn.relu(h) - h)
        grads = mg.gradients(loss, [w, gamma, beta])
        for p, g in zip((w, gamma, beta), grads, strict=True):
            p.assign(mg.stop_gradient(p) - 0.5 * g)
        return loss

    with mg.rewrites(on):
        losses = [step().item() for _ in range(4)]
    return [*losses, *itertools.chain(*(t.tolist() for t in (m, v, gamma, beta)))]


def test_training_is_the_same_with_and_without():
    for a, b in zip(trained(True), trained(False), strict=True):
        assert abs(a - b) < 2e-5 * max(1.0, abs(b))


def test_switched_off_what_runs_is_what_was_written(monkeypatch):
    from minigrad.compiler import pipeline
    from minigrad.compiler.run import planned

    placed: list[list[Node]] = []
    monkeypatch.setattr(
        pipeline, "Placement",
        lambda nodes, roots, make=pipeline.Placement: placed.append([*nodes, *roots])
        or make(nodes, roots),
    )  # fmt: skip
    forward, gradients = R.bn()
    roots = [*forward, *gradients]
    with mg.rewrites(False):
        planned(roots)
    written = {n.id for n in topological(roots)}
    assert {n.id for n in placed[0]} == written
    planned(roots)
    assert {n.id for n in placed[1]} != written


def test_switched_off_by_context_and_under_eager():
    from minigrad.compiler import pipeline

    assert pipeline.rewriting()
    with mg.rewrites(False):
        assert not pipeline.rewriting()
    with mg.eager():
        assert not pipeline.rewriting()
    assert pipeline.rewriting()


def test_a_plan_is_not_shared_between_different_constants():
    L = R.Leaves(0, float32)
    x = L(4, 4)
    for eps in (0.5, 2.0):
        y = mg.sum(x * x, axis=1) + eps
        want = [sum(v * v for v in row) + eps for row in x.tolist()]
        assert all(abs(a - b) < 1e-5 * abs(b) for a, b in zip(y.tolist(), want, strict=True))


def test_wanted_leaves_and_views_come_out_dense():
    L = R.Leaves(0, float32)
    x = L(3, 4)
    flipped = mg.permute_dims(mg.permute_dims(x, (1, 0)) * 1.0, (1, 0))
    same = x + mg.sum(x - x, axis=0)
    wide = mg.broadcast_to(mg.sum(x * 0.0 + 1.0, axis=0, keepdims=True), (3, 4))
    mg.evaluate(flipped, same, wide)
    assert flipped.tolist() == same.tolist() == x.tolist()
    assert wide.tolist() == [[3.0] * 4] * 3
