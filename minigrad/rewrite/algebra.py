"""Arithmetic on terms, with the table of symbols.

A symbol stands for a node that the algebra does not look into: a leaf, exp(...), a convolution, a
reduction; or for a *sum kept whole*, whose terms `form` then holds: a centre x - mean, a
denominator v + eps, a factor of a larger product. Symbols are numbered by first use, so results do
not depend on what the process built before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from minigrad.rewrite.catalogue import named
from minigrad.rewrite.terms import (
    ONE,
    Coefficient,
    Exponent,
    Hidden,
    Monomial,
    Terms,
    axes_of,
    exact,
    inverse,
    key_of,
    ratio,
    scaled,
    summed,
    times,
    without,
)

# Kinds of kept sums. A centre is one full-size variable plus a smaller offset: x - mean, v + eps.
# It is late if the offset is a reduction that the variable did not have to wait for.
CENTRE, LATE = 1, 2
# Products of sums are never multiplied out beyond this many terms.
MOST_PRODUCTS = 64
# A coefficient of more factors, or a value of more terms, gets a name of its own.
MOST_FACTORS, MOST_TERMS = 10, 16


class Algebra:
    """Arithmetic on terms.

    Args:
        lower: gives the node that computes some terms.
        off: names of rules that do not apply.
        record: called with (rule, before, after) where a rule applied.
    """

    def __init__(
        self, lower: Callable[[Terms], Any], off: Collection[str] = (), record: Any = None
    ):
        self.lower, self.off, self.record = lower, frozenset(off), record
        # By symbol: its node, the axes it varies along, its terms if it is a kept sum, its kind,
        # and how many reductions of the backward it waits for.
        self.node: list[Any] = []
        self.mask: list[int] = []
        self.form: list[Terms | None] = []
        self.kind: list[int] = []
        self.waits: list[int] = []
        self.symbol_of: dict[int, int] = {}  # node id -> symbol
        self._kept: dict[frozenset[Any], int] = {}
        self._leads: dict[int, list[int]] = {}  # symbol -> the kept sums whose leading term it is
        self._masks: dict[Monomial, int] = {(): 0}
        self.top = 0  # the axes along which a full-size value of the region in hand varies
        self.times = self._careful_times if "cancelled powers" in self.off else times

    # --- symbols ---------------------------------------------------------------------------------

    def symbol(self, node: Any, form: Terms | None = None, waits: int = 0) -> int:
        """The symbol of a node. Two forms can lower to one node; the first one stays."""
        found = self.symbol_of.get(node.id)
        if found is None:
            found = self.symbol_of[node.id] = len(self.node)
            self.node.append(node)
            self.mask.append(axes_of(node.shape))
            self.form.append(form)
            self.waits.append(waits)
            self.kind.append(self._kind(form) if form else 0)
        return found

    def opened(self, symbol: int) -> Terms:
        """The terms of a kept sum."""
        form = self.form[symbol]
        assert form is not None
        return form

    def varies(self, m: Monomial) -> int:
        """Bit mask of the axes along which a monomial varies."""
        mask = self._masks.get(m)
        if mask is None:
            mask = 0
            for symbol, _ in m:
                mask |= self.mask[symbol]
            self._masks[m] = mask
        return mask

    def extent(self, p: Terms) -> int:
        """Bit mask of the axes along which terms vary."""
        mask = 0
        for m in p:
            mask |= self.varies(m)
        return mask

    def wait(self, m: Monomial) -> int:
        """How many reductions of the backward a monomial waits for, one after the other."""
        return max([self.waits[symbol] for symbol, _ in m], default=0)

    def is_small(self, m: Monomial) -> bool:
        """Whether a monomial does not vary along all axes of the region."""
        return self.varies(m) != self.top

    def by_core(self, p: Terms, top: int) -> dict[Monomial, Terms]:
        """{product of the factors that vary along exactly the axes `top`: its coefficient}."""
        rows: dict[Monomial, Terms] = {}
        for m, k in p.items():
            core = tuple([f for f in m if self.mask[f[0]] == top])
            small = tuple([f for f in m if self.mask[f[0]] != top])
            rows.setdefault(core, {})[small] = k
        return rows

    # --- sums kept whole -------------------------------------------------------------------------

    def primitive(self, p: Terms) -> tuple[Coefficient, Monomial, Terms]:
        """(k, common, rest): p = k * common * rest, rest without a common factor, its lead 1."""
        common = _common(p)
        k = p[max(p, key=self._precedence)]
        if k == 1 and not common:
            return k, common, p
        back = inverse(common)
        return k, common, {times(m, back): ratio(c, k) for m, c in p.items()}

    def _precedence(self, m: Monomial) -> tuple[int, int, list[int]]:
        return self.varies(m).bit_count(), -len(m), [-symbol for symbol, _ in m]

    def _kind(self, p: Terms) -> int:
        top = self.extent(p)
        big = [m for m in p if self.varies(m) == top]
        if not 0 < len(big) < len(p):
            return 0
        if any(self.mask[symbol] != top for m in big for symbol, _ in m):
            return 0
        offsets = [self.wait(m) for m in p if self.varies(m) != top]
        return LATE if max(offsets) > max([self.wait(m) for m in big]) else CENTRE

    def keep(self, p: Terms) -> int:
        """The symbol of terms that are to stay one value."""
        key = key_of(p)
        found = self._kept.get(key)
        if found is None:
            found = self.symbol(self.lower(p), p, max([self.wait(m) for m in p]))
            self._kept[key] = found
            alone = [m for m in p if len(m) == 1 and m[0][1] == 1]
            if alone and self.kind[found] != LATE and self.form[found] is p:
                lead = max(alone, key=self.varies)[0][0]
                self._leads.setdefault(lead, []).append(found)
        return found

    def whole(self, p: Terms) -> Terms:
        """The same value as one monomial: common factors, and the rest kept whole."""
        k, common, rest = self.primitive(p)
        return {times(common, ((self.keep(rest), 1),)): k}

    def _stays_whole(self, p: Terms) -> bool:
        return self._kind(self.primitive(p)[2]) == CENTRE

    # --- arithmetic ------------------------------------------------------------------------------

    @named("cancelled powers", "x^p * x^(-q) = x^(p-q)", hides=True)
    def _careful_times(self, a: Monomial, b: Monomial) -> Monomial:
        """`times` without this part of it."""
        if _cancel(a, b):
            raise Hidden
        return times(a, b)

    @named("cancelled terms", "a*x - a*x = 0", hides=True)
    def without_zeros(self, p: Terms) -> Terms:
        """Hides that x is infinite or NaN."""
        if "cancelled terms" in self.off and any(m and not k for m, k in p.items()):
            raise Hidden
        return {m: k for m, k in p.items() if k}

    @named("like terms", "a*x + b*x = (a+b)*x")
    def add(self, p: Terms, q: Terms, k: Coefficient = 1) -> Terms:
        """The sum p + k * q. Nearer to the exact value: one product less; a+b may be 0."""
        if not q:
            return p
        if not p:
            return scaled(q, k)
        met = not p.keys().isdisjoint(q)
        out = summed([(m, k * c) for m, c in q.items()], p)
        if met:
            out = self.without_zeros(out)
            if self.record is not None:
                self.record("like terms", (p, scaled(q, k)), out)
        return self.collect(out)

    @named("multiply out", "k*(a + b) = k*a + k*b")
    def mul(self, p: Terms, q: Terms) -> Terms:
        """The product. Multiplied out are small k, and no centre a+b.

        Undone when terms become nodes; k*a may overflow where k*(a+b) does not.
        """
        if not p or not q:
            return self._nothing(p, q)
        if len(p) > 1 and len(q) > 1:
            if all(map(self.is_small, q)):
                p, q = q, p
            if not self._distributes(p, q):
                p, q = self.whole(p), self.whole(q)
        if len(q) == 1 < len(p):
            p, q = q, p
        if len(p) > 1:
            rows = [self.mul({m: k}, q) for m, k in p.items()]
            out = summed([term for row in rows for term in row.items()])
            return self.collect(self.without_zeros(out))
        ((m, k),) = p.items()
        if m and len(q) > 1 and not self._multiplies_out(m, q):
            q = self.whole(q)
        out = {self.times(m, n): exact(k * c) for n, c in q.items()}
        return self.collect(out) if m and len(q) > 1 else out

    @named("product with zero", "0*x = 0", hides=True)
    def _nothing(self, p: Terms, q: Terms) -> Terms:
        """A product of which one factor is zero. Hides that the other is infinite or NaN.

        A plain number, of which the only monomial is (), is neither.
        """
        if "product with zero" in self.off and any(p or q):
            raise Hidden
        return {}

    def _distributes(self, p: Terms, q: Terms) -> bool:
        """Whether a sum times a sum is multiplied out."""
        small = "multiply out" not in self.off and all(map(self.is_small, p))
        return small and len(p) * len(q) <= MOST_PRODUCTS and not self._stays_whole(p)

    def _multiplies_out(self, m: Monomial, q: Terms) -> bool:
        """Whether a monomial times a sum is multiplied out.

        If a power cancels, even if the sum is a centre: e * (y/e - 1/s) must become y - e/s.
        """
        if "multiply out" in self.off:
            return False
        return not self._stays_whole(q) if self.is_small(m) else any(_cancel(m, n) for n in q)

    def power(self, p: Terms, r: Exponent) -> Terms:
        """The power p ** r. The root of a product is not split: sqrt(x*x) is |x|."""
        if r == 0:
            return ONE
        if len(p) == 1:
            ((m, k),) = p.items()
            positive = len(m) == 1 and (m[0][1] == 1 or isinstance(m[0][1], float))
            if isinstance(r, int) or (k == 1 and positive):
                if k != 1:
                    k = k**r if r > 0 else ratio(1, k**-r)
                return {tuple([(symbol, _simple(e * r)) for symbol, e in m]): exact(k)}
        elif isinstance(r, int):
            return self.power(self.whole(p), r)
        return {((self.keep(p), r),): 1}

    @named("collect", "k*a + k*b = k*(a+b), where a+b is already a value of the graph")
    def collect(self, p: Terms) -> Terms:
        """Where terms get fewer: one product less, and a sum that is made anyway.

        Also k*(a+b) - k*a = k*b, which "cancelled terms" must allow. Not if the value would vary
        along another axis.
        """
        if len(p) < 2 or not self._kept or "collect" in self.off:
            return p
        top = self.extent(p)
        for m, c in p.items():
            for symbol, e in m:
                for whole, k in self._swaps(symbol, c) if e == 1 else ():
                    new = self._swapped(p, top, without(m, symbol), whole, k)
                    if new is not None:
                        if self.record is not None:
                            self.record("collect", (p,), new)
                        return self.collect(new)
        return p

    def _swaps(self, symbol: int, c: Coefficient) -> list[tuple[int, Coefficient]]:
        """The sums that c * symbol may be part of, or taken from, and how many times each."""
        swaps = [(w, ratio(c, self.opened(w)[((symbol, 1),)])) for w in self._leads.get(symbol, ())]
        if self.form[symbol] and "cancelled terms" not in self.off:
            swaps.append((symbol, -c))
        return swaps

    def _swapped(
        self, p: Terms, top: int, rest: Monomial, whole: int, k: Coefficient
    ) -> Terms | None:
        """p with k * rest * (the kept sum) in place of the terms of that; None if they get more."""
        parts = [(times(rest, n), exact(k * c)) for n, c in self.opened(whole).items()]
        gone = sum([p.get(n) == c for n, c in parts])
        one = times(rest, ((whole, 1),))
        own = 1 if one not in p else -1 if p[one] == -k else 0
        if "cancelled terms" in self.off and (gone < len(parts) or own < 0):
            return None
        if len(parts) - 2 * gone + own >= 0 or self.varies(one) & ~top:
            return None
        new = summed([*[(n, -c) for n, c in parts], (one, k)], p)
        return {m: c for m, c in new.items() if c}

    def fold(self, p: Terms) -> Terms:
        """A value of few terms, coefficients of few factors: longer ones become named values.

        This keeps rewriting linear in the depth of a graph.
        """
        if len(p) <= MOST_TERMS and all(len(m) <= MOST_FACTORS for m in p):
            return p
        rows: list[tuple[Monomial, Coefficient]] = []
        for core, factor in self.by_core(p, self.top).items():
            if len(factor) > 1 or len(next(iter(factor))) > MOST_FACTORS // 2:
                waits = max([self.wait(m) for m in factor])
                factor = {((self.symbol(self.lower(factor), None, waits), 1),): 1}
            rows += [(times(core, m), k) for m, k in factor.items()]
        return self.without_zeros(summed(rows))


def _common(p: Terms) -> Monomial:
    """The factors that all monomials share, each to the power nearest to 0."""
    monomials = iter(p)
    shared = dict(next(monomials))
    for m in monomials:
        exponents = dict(m)
        for symbol, least in list(shared.items()):
            e = exponents.get(symbol, 0)
            if e * least <= 0:
                del shared[symbol]
            elif abs(e) < abs(least):
                shared[symbol] = e
        if not shared:
            break
    return tuple(sorted(shared.items()))


def _cancel(a: Monomial, b: Monomial) -> bool:
    """Whether some power of one would cancel in the product with the other."""
    exponents = dict(a)
    return any(exponents.get(symbol, 0) * e < 0 for symbol, e in b)


def _simple(e: Exponent) -> Exponent:
    return int(e) if e == int(e) else e
