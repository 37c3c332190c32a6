"""The named rules for reductions.

Each takes a `Sum` and gives a combination of simpler ones, [(terms, Sum or None), ...] for the sum
of terms * Sum, or None where it does not apply. It reads the algebra and changes nothing else, so
it is tested by evaluating both sides. None of them knows a layer. They are tried in the order of
this file; see [Note: termination] in `sums.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from minigrad.rewrite.algebra import LATE
from minigrad.rewrite.catalogue import CATALOGUE, named
from minigrad.rewrite.one_hot import in_range
from minigrad.rewrite.sums import Parts, Reductions, Rule, Sum
from minigrad.rewrite.terms import ONE, Coefficient, Monomial, Terms, exact, summed, times, without

# A trial may try this many further openings inside itself: trials that nest cost a power of depth.
DEEPEST_TRIAL = 1


def rule(name: str, statement: str) -> Callable[[Rule], Rule]:
    """Register a rule for reductions."""
    return named(name, statement, kind="reduction")


def invariant_part(a: Reductions, m: Monomial, axes: int) -> Monomial:
    """The factors of a monomial that do not vary along the axes."""
    return tuple([f for f in m if not a.mask[f[0]] & axes])


def varying_part(a: Reductions, m: Monomial, axes: int) -> Monomial:
    """The factors of a monomial that vary along the axes."""
    return tuple([f for f in m if a.mask[f[0]] & axes])


def by_coefficient(a: Reductions, s: Sum) -> dict[Monomial, Terms]:
    """{invariant factors: {the rest: number}}. A term that does not vary at all is a rest of 1."""
    groups: dict[Monomial, Terms] = {}
    for m, k in s.terms.items():
        outside = invariant_part(a, m, s.axes)
        groups.setdefault(outside, {})[varying_part(a, m, s.axes)] = k
    return groups


@rule("zero", "sum(0) = 0; a sum over no axes is the value itself")
def zero(a: Reductions, s: Sum) -> Parts | None:
    """Exact. Axes of extent 1 are no axes."""
    if not s.terms:
        return []
    axes = s.axes & ~sum([1 << i for i, n in enumerate(s.shape) if n == 1])
    if not axes:
        return [(s.terms, None)]
    return [(ONE, s.over(axes))] if axes != s.axes else None


@rule("open centre", "sum(w*(x - k)) = sum(w*x) - k*sum(w)")
def open_centre(a: Reductions, s: Sum) -> Parts | None:
    """Where k is a reduction of the backward that w and x did not wait for, if affordable.

    One pass over the data does instead of two. Loses log10(abs(mean) / std) digits of a covariance
    of cotangents; a centre of the forward is never opened.
    """
    if a.trial >= DEEPEST_TRIAL:
        return None
    late = {m: i for m in s.terms for i, e in m[::-1] if e == 1 and _opens_late(a, m, i)}
    if not late:
        return None
    rows = [_replaced(a, m, k, late[m]) if m in late else [(m, k)] for m, k in s.terms.items()]
    opened = s.of(a.without_zeros(summed(chain.from_iterable(rows))))
    if len(by_coefficient(a, opened)) > len(by_coefficient(a, s)):
        return a.if_affordable(s, [(ONE, opened)])
    return None


def _opens_late(a: Reductions, m: Monomial, symbol: int) -> bool:
    return a.kind[symbol] == LATE and a.waits[symbol] > a.wait(without(m, symbol))


def _replaced(
    a: Reductions, m: Monomial, k: Coefficient, symbol: int
) -> list[tuple[Monomial, Coefficient]]:
    """The terms of k*m with a kept sum in it opened."""
    rest = without(m, symbol)
    return [(a.times(rest, n), exact(k * c)) for n, c in a.opened(symbol).items()]


@rule("linearity", "sum(k*a + l*b) = sum(k*a) + sum(l*b)")
def linearity(a: Reductions, s: Sum) -> Parts | None:
    """Where the invariant factors k and l differ, if affordable. Changes the order of addition."""
    if len(s.terms) == 1:
        return None
    groups = by_coefficient(a, s)
    constant = groups.get((), {}).pop((), None)  # plain numbers are a group of their own
    if not groups.get((), True):
        del groups[()]
    parts: Parts = [
        (ONE, s.of({times(outside, m): k for m, k in rest.items()}))
        for outside, rest in groups.items()
    ]
    if constant is not None:
        parts.append((ONE, s.of({(): constant})))
    if len(parts) == 1:
        return None
    reductions = sum([any(m for m in rest) for rest in groups.values()])
    if a.trial >= DEEPEST_TRIAL or reductions < 2:
        return parts
    return a.if_affordable(s, parts)


@rule("split", "sum over A and B = sum over A of (sum over B)")
def split(a: Reductions, s: Sum) -> Parts | None:
    """Where fewer factors vary along B: they are summed first, and the others stay out of it.

    Changes the order of addition, to one nearer pairwise.
    """
    if not {a.mask[i] & s.axes for m in s.terms for i, _ in m} - {0, s.axes}:
        return None
    varying = {
        bit: frozenset((t, i) for t, m in enumerate(s.terms) for i, _ in m if a.mask[i] & bit)
        for bit in (1 << axis for axis in range(len(s.shape)))
        if bit & s.axes
    }
    fewest = min(varying.values(), key=len)
    inner = sum([bit for bit, factors in varying.items() if factors == fewest])
    if inner == s.axes:
        return None
    left = tuple([1 if inner >> axis & 1 else n for axis, n in enumerate(s.shape)])
    return [(ONE, Sum(a.total(s.over(inner)), s.axes & ~inner, left))]


@rule("count", "sum(k) = m*k")
def count(a: Reductions, s: Sum) -> Parts | None:
    """Where nothing varies along the axes, m elements. Exact instead of m additions."""
    if len(s.terms) == 1:
        ((m, k),) = s.terms.items()
        if not a.varies(m) & s.axes:
            return [({m: exact(k * s.count)}, None)]
    return None


@rule("invariant factor", "sum(k*a) = k*sum(a)")
def invariant_factor(a: Reductions, s: Sum) -> Parts | None:
    """Where k does not vary along the axes. sum(a) may overflow where sum(k*a) did not."""
    terms = a.whole(s.terms) if len(s.terms) > 1 else s.terms
    ((m, k),) = terms.items()
    outside = invariant_part(a, m, s.axes)
    if outside or k != 1:
        return [({outside: k}, s.of({varying_part(a, m, s.axes): 1}))]
    return [(ONE, s.of(terms))] if len(s.terms) > 1 else None


@rule("open", "sum(w*(k*a + l*b)) = k*sum(w*a) + l*sum(w*b)")
def open_(a: Reductions, s: Sum) -> Parts | None:
    """Takes a kept sum apart, if affordable; a centre only if at most one reduction is left.

    Then nothing is subtracted at run time: sum(x - mean) = 0, sum((x - mean)*(u - k)) =
    sum((x - mean)*u). In floating point sum(x - mean) is m times the rounding of the mean.
    """
    if len(s.terms) > 1:
        return None
    ((m, k),) = s.terms.items()
    for symbol, e in reversed(m):
        if not a.form[symbol] or e != 1 or (a.trial >= DEEPEST_TRIAL and len(m) > 1):
            continue
        opened = s.of(dict(_replaced(a, m, k, symbol)))
        if len(by_coefficient(a, opened)) == 1 or opened.key in a.busy:
            continue
        most = 1 if a.kind[symbol] else None
        parts = a.if_affordable(s, [(ONE, opened)], most)
        if parts is not None:
            return parts
    return None


@rule("one sum", "sum over A of (sum over B) = sum over A and B")
def one_sum(a: Reductions, s: Sum) -> Parts | None:
    """Where every factor varies along all of A and B, so that "split" cannot apply again.

    Changes the order of addition.
    """
    inner = _alone(s, a.reduced)
    if inner is None:
        return None
    if all(a.mask[i] & s.axes == s.axes for m in inner.terms for i, _ in m):
        return [(ONE, inner.over(inner.axes | s.axes))]
    return None


@rule("one-hot", "sum over j of [n == j] = [0 <= n < number of classes]")
def one_hot(a: Reductions, s: Sum) -> Parts | None:
    """The entries of a one-hot row add up to 1, or to 0 for a label that is out of range. Exact."""
    classes = _alone(s, a.indicators)
    if classes is None:
        return None
    parts = in_range(a, classes, s)
    return None if parts is None else [parts]


def _alone(s: Sum, known: dict[int, Any]) -> Any:
    """The entry of the symbol that is summed, if it is a symbol alone."""
    if len(s.terms) > 1:
        return None
    ((m, k),) = s.terms.items()
    return known.get(m[0][0]) if len(m) == 1 and m[0][1] == 1 and k == 1 else None


RULES: dict[str, Rule] = {  # in the order they are tried
    name: entry.home for name, entry in CATALOGUE.items() if entry.kind == "reduction"
}
