"""Every rule alone: it applies where it should, and both of its sides have equal values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import reference
from cases import store
from rewrite_cases import Leaves

from minigrad import ops
from minigrad.device import cpu
from minigrad.dtype import float64, int64
from minigrad.graph import Node, const, iota, topological
from minigrad.ops.control import variable
from minigrad.rewrite import RULES, STATEMENTS, Sum, simplify
from minigrad.rewrite.algebra import MOST_FACTORS
from minigrad.rewrite.nested_sums import nested
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.rules import by_coefficient
from minigrad.rewrite.sums import MOST_NESTED, Parts
from minigrad.rewrite.terms import ONE, Terms, key_of, meant, ratio, times
from minigrad.rewrite.views import refine
from minigrad.rewrite.walk import Simplifier

FULL = (4, 3, 2)
Both = tuple[list[float], Terms]  # the left side's values, and the right side


class Region:
    """A simplifier in the middle of a region of full-size arrays, and leaves to make terms of."""

    def __init__(self) -> None:
        self.leaves = Leaves(3)
        full = self.leaves(*FULL).node
        self.builder = NodeBuilder([])
        self.algebra = Simplifier(self.builder, lambda n: False)
        self.algebra.run([full], [full])

    def leaf(self, *shape: int) -> int:
        """The symbol of a new random leaf."""
        return self.algebra.symbol(self.leaves(*shape, low=0.5).node)

    def kept(self, p: Terms) -> int:
        return self.algebra.keep(p)

    def value(self, p: Terms) -> list[float]:
        node = self.algebra.writer.lower_like(p, self.algebra.here)
        return evaluate(ops.expand(node, shape=FULL) if node.shape != FULL else node)

    def added(self, s: Sum) -> list[float]:
        """A reduction as it stands, with no rule."""
        node = self.algebra.writer.lower_like(s.terms, self.algebra.here)
        node = self.builder.expand(node, s.shape)
        node = self.builder.sum(node, [a for a in range(3) if s.axes >> a & 1])
        return evaluate(self.builder.expand(node, FULL))

    def combined(self, parts: list[tuple[Terms, Sum | None]]) -> list[float]:
        out = [0.0] * 24
        for k, inner in parts:
            factor = self.value(k)
            sums = [1.0] * 24 if inner is None else self.added(inner)
            out = [o + f * t for o, f, t in zip(out, factor, sums, strict=True)]
        return out


def evaluate(node: Node) -> list[float]:
    return reference.evaluate(node)


def single(*symbols: int, k: float = 1) -> Terms:
    m: tuple = ()
    for i in symbols:
        m = times(m, ((i, 1),))
    return {m: k}


def zero(r: Region) -> Sum:
    return Sum(single(r.leaf(4, 1, 2)), 0, FULL)


def open_centre(r: Region) -> Sum:
    x, w, k = r.leaf(*FULL), r.leaf(*FULL), r.leaf(1, 3, 1)
    r.algebra.waits[k] = 1
    late = r.kept({**single(x), **single(k, k=-1)})
    r.algebra.total(Sum(single(w, x), 0b101, FULL))
    r.algebra.total(Sum(single(w), 0b101, FULL))
    return Sum(single(w, late, k=3), 0b101, FULL)


def linearity(r: Region) -> Sum:
    x, k = r.leaf(*FULL), r.leaf(1, 3, 1)
    return Sum({**single(x, k=2), **single(k, k=-3)}, 0b101, FULL)


def split(r: Region) -> Sum:
    return Sum(single(r.leaf(*FULL), r.leaf(4, 1, 1), k=2), 0b101, FULL)


def count(r: Region) -> Sum:
    return Sum(single(r.leaf(1, 3, 1), k=5), 0b101, FULL)


def invariant_factor(r: Region) -> Sum:
    return Sum(single(r.leaf(*FULL), r.leaf(1, 3, 1), k=-2), 0b101, FULL)


def open_(r: Region) -> Sum:
    x, w, k = r.leaf(*FULL), r.leaf(*FULL), r.leaf(1, 3, 1)
    whole = r.kept({**single(x, k, k=2), **single(w, k=3)})
    return Sum(single(whole, w, k=0.5), 0b101, FULL)


def one_sum(r: Region) -> Sum:
    inner = r.algebra.total(Sum(single(r.leaf(*FULL), k=7), 0b100, FULL))
    (((symbol, _),),) = inner
    return Sum(single(symbol), 0b001, (4, 3, 1))


def one_hot(r: Region) -> Sum:
    labels = store([0, 2, 5, 1], (4, 1, 1), int64, cpu)
    classes = ops.expand(ops.reshape(iota(3, int64, cpu), shape=(1, 3, 1)), shape=(4, 3, 1))
    condition = ops.equal(ops.expand(labels, shape=(4, 3, 1)), classes)
    node = ops.cast(condition, dtype=float64)
    r.algebra.run(topological([node]), [node])
    return Sum(r.algebra.terms[node.id], 0b010, (4, 3, 1))


EXAMPLES: dict[str, Callable[[Region], Sum]] = {
    "zero": zero, "open centre": open_centre, "linearity": linearity, "split": split,
    "count": count, "invariant factor": invariant_factor, "open": open_, "one sum": one_sum,
    "one-hot": one_hot,
}  # fmt: skip


def test_every_rule_has_an_example_a_statement_and_its_consequence():
    assert list(EXAMPLES) == list(RULES)
    for name, rule in RULES.items():
        assert STATEMENTS[name]
        assert rule.__doc__, name


def applied(name: str) -> tuple[Region, Sum, Parts]:
    """A rule, applied to its example."""
    r = Region()
    s = EXAMPLES[name](r)
    r.algebra.top = 0b111
    if name == "open":  # two reductions for one are not affordable, unless they are made anyway
        for m in ({((0, 1),): 1},):
            r.algebra.total(Sum(m, 0b101, FULL))
        r.algebra.if_affordable = lambda s, parts, most=None: parts  # type: ignore[method-assign]
    if name == "open centre":
        r.algebra.if_affordable = lambda s, parts, most=None: parts  # type: ignore[method-assign]
    parts = RULES[name](r.algebra, s)
    assert parts is not None, "the rule does not apply"
    return r, s, parts


def wrong(p: Terms) -> Iterator[Terms]:
    """Terms in which one coefficient is wrong by a thousandth."""
    for m, k in p.items():
        yield {**p, m: 1.001 * float(k)}


def wrong_parts(parts: Parts) -> Iterator[Parts]:
    """What a rule gives, with one coefficient anywhere wrong by a thousandth."""
    for i, (k, inner) in enumerate(parts):
        before, after = parts[:i], parts[i + 1 :]
        yield from ([*before, (other, inner), *after] for other in wrong(k))
        if inner is not None:
            yield from ([*before, (k, inner.of(other)), *after] for other in wrong(inner.terms))


def equal(left: list[float], right: list[float]) -> bool:
    scale = max(map(abs, left))
    return max(abs(a - b) for a, b in zip(left, right, strict=True)) < 1e-12 * scale


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_sides_are_equal(name):
    r, s, parts = applied(name)
    assert equal(r.added(s), r.combined(parts))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_rule_that_is_wrong_by_a_thousandth_is_noticed(name):
    r, s, parts = applied(name)
    left = r.added(s)
    for mutant in wrong_parts(parts):
        assert not equal(left, r.combined(mutant)), mutant


# Arithmetic of terms: what the algebra gives, and the same by numbers.


def numbers(r: Region, p: Terms) -> list[float]:
    """Terms without any algebra: each symbol's node, powers, products and sums of floats."""
    out = [0.0] * 24
    for m, k in p.items():
        product = [float(k)] * 24
        for symbol, e in m:
            values = evaluate(r.builder.expand(r.algebra.node[symbol], FULL))
            product = [a * v**e for a, v in zip(product, values, strict=True)]
        out = [o + v for o, v in zip(out, product, strict=True)]
    return out


def added(*sides: list[float]) -> list[float]:
    return [math.fsum(v) for v in zip(*sides, strict=True)]


def multiplied(a: list[float], b: list[float]) -> list[float]:
    return [x * y for x, y in zip(a, b, strict=True)]


def powers(r: Region) -> Both:
    x, y = r.leaf(*FULL), r.leaf(1, 3, 1)
    a, b = ((x, 3), (y, -0.5)), ((x, -1), (y, -1))
    return multiplied(numbers(r, {a: 1}), numbers(r, {b: 1})), {times(a, b): 1}


def like_terms(r: Region) -> Both:
    x, y = r.leaf(*FULL), r.leaf(*FULL)
    p, q = {**single(x, k=2), **single(y)}, {**single(x, k=-5), **single(y, k=0.25)}
    return added(numbers(r, p), numbers(r, q)), r.algebra.add(p, q)


def multiply_out(r: Region) -> Both:
    x, y, k = r.leaf(*FULL), r.leaf(*FULL), r.leaf(1, 3, 1)
    p, q = {**single(x, k=2), **single(y, k=3)}, {**single(k, k=5), (): 7}
    return multiplied(numbers(r, p), numbers(r, q)), r.algebra.mul(p, q)


def kept_whole(r: Region) -> Both:
    """A product of full-size sums: common factors and leading numbers outside."""
    x, y, z = r.leaf(*FULL), r.leaf(*FULL), r.leaf(*FULL)
    p, q = {**single(x, y, k=2), **single(y, k=3)}, {**single(x, k=-4), **single(z)}
    return multiplied(numbers(r, p), numbers(r, q)), r.algebra.mul(p, q)


def collect(r: Region) -> Both:
    x, k, a = r.leaf(*FULL), r.leaf(1, 3, 1), r.leaf(1, 3, 1)
    r.kept({**single(x), **single(k, k=-2)})
    p = {**single(a, x, k=3), **single(a, k, k=-6)}
    return numbers(r, p), r.algebra.collect(p)


def collect_difference(r: Region) -> Both:
    x, k = r.leaf(*FULL), r.leaf(1, 3, 1)
    whole = r.kept({**single(x, k=2), **single(k)})
    p = {**single(whole, k=3), **single(k, k=-3)}
    return numbers(r, p), r.algebra.collect(p)


def cancelled_terms(r: Region) -> Both:
    x, y = r.leaf(*FULL), r.leaf(*FULL)
    p, q = {**single(x, k=2), **single(y)}, single(x, k=-2)
    return added(numbers(r, p), numbers(r, q)), r.algebra.add(p, q)


def product_with_zero(r: Region) -> Both:
    x = r.leaf(*FULL)
    return [0.0 * v for v in numbers(r, single(x))], r.algebra.mul(single(x), {})


def cancelled_powers(r: Region) -> Both:
    x, y = r.leaf(*FULL), r.leaf(*FULL)
    a, b = {((x, 1), (y, 2)): 3}, {((x, -1), (y, -1)): 1}
    return multiplied(numbers(r, a), numbers(r, b)), r.algebra.mul(a, b)


def power_of_a_root(r: Region) -> Both:
    x = r.leaf(*FULL)
    root = r.algebra.power(single(x), 0.5)
    return [math.sqrt(v) ** 2 for v in numbers(r, single(x))], r.algebra.power(root, 2)


def fold(r: Region) -> Both:
    """A long coefficient and many terms become named values."""
    x, small = r.leaf(*FULL), [r.leaf(1, 3, 1) for _ in range(MOST_FACTORS + 2)]
    p = {**single(x, *small, k=2), **{k: v for i in small for k, v in single(x, i).items()}}
    out = r.algebra.fold(p)
    assert len(out) < len(p)
    return numbers(r, p), out


ARITHMETIC: dict[str, Callable[[Region], Both]] = {
    "powers": powers, "like terms": like_terms, "multiply out": multiply_out,
    "multiply out: kept whole": kept_whole, "collect": collect,
    "collect: a difference": collect_difference, "fold": fold,
    "cancelled terms": cancelled_terms, "product with zero": product_with_zero,
    "cancelled powers": cancelled_powers, "power of a root": power_of_a_root,
}  # fmt: skip


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_of_terms(name):
    r = Region()
    r.algebra.top = 0b111
    left, right = ARITHMETIC[name](r)
    if not right:
        assert not any(left)
        return
    assert equal(left, numbers(r, right))
    assert equal(left, r.value(right)), "as nodes"
    for mutant in wrong(right):
        assert not equal(left, numbers(r, mutant)), mutant


# Rules on graphs.


def sums(roots: list[Node]) -> list[tuple[int, ...]]:
    """The shapes that reductions read, the largest first."""
    found = [n.inputs[0].shape for n in topological(roots) if n.op is ops.sum_]
    return sorted(found, key=math.prod, reverse=True)


def test_same_value():
    a, b = (Leaves(k)(*FULL).node for k in range(2))
    one, two = ops.sum_(a * b, axes=(0, 2)), ops.sum_(b * a, axes=(0, 2))
    old = [one * one, one * two]
    new = simplify(old)
    assert evaluate(new[0]) == evaluate(new[1])
    assert equal(evaluate(old[1]), evaluate(new[1]))
    assert len(sums(old)) == 2
    assert len(sums(new)) == 1


def test_views():
    """Two shapes of one array become the finest, so that their sums can be shared."""
    x = Leaves()(4, 6).node
    fine = ops.reshape(x * 2.0, shape=(4, 2, 3))
    old = [ops.sum_(x * 2.0, axes=(1,)), ops.sum_(fine, axes=(2,))]
    builder = NodeBuilder(topological(old))
    new, changed = refine(topological(old), old, builder)
    assert changed
    for a, b in zip(old, new, strict=True):
        assert a.shape == b.shape
        assert equal(evaluate(a), evaluate(b))
    assert set(sums(new)) == {(4, 2, 3)}


def test_nested_sums():
    """The larger sum is taken from the smaller; two that overlap, from what they share."""
    x = Leaves()(*FULL).node
    for axes in [((0,), (0, 1)), ((0, 1), (1, 2))]:
        old = [ops.sum_(x, axes=a) for a in axes]
        new = nested(old, NodeBuilder(topological(old)))
        for a, b in zip(old, new, strict=True):
            assert a.shape == b.shape
            assert equal(evaluate(a), evaluate(b))
        assert sums(old) == [FULL, FULL]
        assert sums(new).count(FULL) == 1


GRAPHS = {"same value": test_same_value, "views": test_views, "nested sums": test_nested_sums}


def test_a_rule_without_end_is_cut_short():
    """[Note: termination]: a Sum within many others stays as it is."""
    r = Region()
    r.algebra.top = 0b111
    depth = []

    def endless(a: Simplifier, s: Sum) -> Parts:
        depth.append(len(a.busy))
        return [(ONE, s.of({m: 2 * k for m, k in s.terms.items()}))]

    r.algebra.rules = [("endless", endless)]
    r.algebra.total(Sum(single(r.leaf(*FULL)), 0b101, FULL))
    assert max(depth) == MOST_NESTED


def test_two_forms_of_one_node_are_one_symbol_with_the_first_form():
    r = Region()
    x, k = r.leaf(*FULL), r.leaf(1, 3, 1)
    first = {**single(x), **single(k, k=-1)}
    symbol = r.kept(first)
    other = {**single(r.leaf(*FULL)), **single(k)}
    assert r.algebra.symbol(r.algebra.node[symbol], other) == symbol
    assert r.algebra.form[symbol] == first


def test_powers():
    x, y = (0, 1), (1, 2)
    assert times((x,), (x, y)) == ((0, 2), (1, 2))
    assert times((x,), ((0, -1),)) == ()
    assert times((), (y,)) == (y,)


def test_like_terms():
    r = Region()
    x, y = r.leaf(*FULL), r.leaf(*FULL)
    assert r.algebra.add(single(x, k=2), single(x, k=3)) == single(x, k=5)
    assert r.algebra.add(single(x), single(x), -1) == {}
    assert r.algebra.add(single(x), single(y)) == {**single(x), **single(y)}


def test_multiply_out_small_factors_but_no_centre():
    r = Region()
    r.algebra.top = 0b111
    x, y, k = r.leaf(*FULL), r.leaf(*FULL), r.leaf(1, 3, 1)
    assert len(r.algebra.mul(single(k), {**single(x), **single(y)})) == 2
    centre = {**single(x), **single(k, k=-1)}
    ((m, _),) = r.algebra.mul(single(r.leaf(1, 3, 1)), centre).items()
    assert len(m) == 2
    r.algebra.off = frozenset({"multiply out"})
    assert len(r.algebra.mul(single(k), {**single(x), **single(y)})) == 1


def test_collect_uses_a_sum_that_is_kept():
    r = Region()
    r.algebra.top = 0b111
    x, k = r.leaf(*FULL), r.leaf(1, 3, 1)
    whole = r.kept({**single(x), **single(k, k=-1)})
    a = r.leaf(1, 3, 1)
    assert r.algebra.collect({**single(a, x), **single(a, k, k=-1)}) == single(a, whole)
    assert r.algebra.collect({**single(whole), **single(k)}) == single(x)


def test_a_root_of_a_product_is_not_split():
    r = Region()
    x = r.leaf(*FULL)
    ((m, _),) = r.algebra.power(single(x, x), 0.5).items()
    assert m != ((x, 1),)
    assert r.algebra.power(single(x), 0.5) == {((x, 0.5),): 1}
    assert r.algebra.power(r.algebra.power(single(x), -0.5), 2) == {((x, -1),): 1}


def test_numbers_are_exact_where_a_person_meant_a_fraction():
    assert meant(0.5) == ratio(1, 2)
    assert meant(3.0) == 3
    assert meant(1e-5) == 1e-5
    assert meant(0.1) == 0.1
    assert ratio(1, 3) * 3 == 1


def test_groups_by_invariant_factor():
    r = Region()
    x, k = r.leaf(*FULL), r.leaf(1, 3, 1)
    s = Sum({**single(x, k, k=2), **single(k, k=3), **single(x)}, 0b101, FULL)
    assert len(by_coefficient(r.algebra, s)) == 2


def test_terms_in_another_order_are_equal():
    assert key_of({((0, 1),): 1, (): 2}) == key_of({(): 2, ((0, 1),): 1})
    assert ONE == {(): 1}


def test_a_table_takes_nothing_from_the_process():
    """What somebody else has computed must not become an input of a plan."""
    x = Leaves()(2, 2).node
    computed = x * x
    computed.storage = x.storage
    builder = NodeBuilder([x])
    builder.here = x
    again = builder.mul(x, x)
    assert again is not computed
    assert again.storage is None
    computed.storage = None


def test_a_variable_is_a_leaf_unless_it_copies_what_needs_a_gradient():
    x = Leaves()(2, 2).node
    for source, merged in ((ops.stop_gradient(x), True), (x, False)):
        roots = [ops.tanh(x), ops.tanh(variable(source))]
        builder = NodeBuilder(topological(roots))
        out = Simplifier(builder, lambda n: True).run(topological(roots), roots)
        assert (out[0] is out[1]) == merged


def test_constants_stay_of_their_dtype():
    builder = NodeBuilder([])
    x = Leaves()(2, 2).node
    builder.here = x
    assert builder.number(2, x).dtype is float64
    assert builder.number(0, const(1, int64, cpu, (2, 2))).inputs[0].attrs["value"] == 0
