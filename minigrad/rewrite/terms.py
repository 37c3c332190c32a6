"""Values as sums of products of powers over numbered symbols.

    terms     {monomial: coefficient}; {} is zero
    monomial  ((symbol, exponent), ...) sorted by symbol; () is 1
    coefficient, exponent  int or Fraction; float where a number is no simple fraction

A symbol stands for a node that the algebra does not look into: a leaf, exp(...), a convolution, a
reduction; or for a *sum kept whole*, whose terms `form` then holds: a centre x - mean, a
denominator v + eps, a factor of a larger product. Symbols are numbered by first use, so results do
not depend on what the process built before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction
from typing import Any

Exponent = int | float
Monomial = tuple[tuple[int, Exponent], ...]
Coefficient = int | float | Fraction
Terms = dict[Monomial, Coefficient]

ONE: Terms = {(): 1}
# Kinds of kept sums. A centre is one full-size variable plus a smaller offset: x - mean, v + eps.
# It is late if the offset is a reduction that the variable did not have to wait for.
CENTRE, LATE = 1, 2
# Products of sums are never multiplied out beyond this many terms.
MOST_PRODUCTS = 64
# A coefficient of more factors, or a value of more terms, gets a name of its own.
MOST_FACTORS, MOST_TERMS = 10, 16


# Parts of "powers" and "like terms" that turn a NaN into a number. They have names of their own, so
# that they can be switched off and the rest stay on.
HIDING = {
    "cancelled terms": "a*x - a*x = 0",
    "product with zero": "0*x = 0",
    "cancelled powers": "x^p * x^(-q) = x^(p-q)",
    "power of a root": "sqrt(x)^2 = x",
}


class Hidden(Exception):
    """A NaN or an infinity would be hidden, and the rule that may do so is switched off."""


def exact(k: Coefficient) -> Coefficient:
    """A fraction that is an integer, as one."""
    return k.numerator if type(k) is Fraction and k.denominator == 1 else k


def ratio(a: Coefficient, b: Coefficient) -> Coefficient:
    """The quotient, exactly if both are exact."""
    if isinstance(a, float) or isinstance(b, float):
        return float(a) / float(b)
    return exact(Fraction(a) / b)


def product(a: Coefficient, b: Coefficient) -> Coefficient:
    """The product, exactly if both are exact."""
    return exact(a * b)


def meant(value: float) -> Coefficient:
    """The fraction a person meant where a float is one (0.5, 3.0); else the float (1e-5)."""
    if value != value or value in (float("inf"), float("-inf")):
        return value
    numerator, denominator = value.as_integer_ratio()
    if denominator <= 1 << 20 and abs(numerator) <= 1 << 52:
        return exact(Fraction(numerator, denominator))
    return value


def times(a: Monomial, b: Monomial) -> Monomial:
    """Rule "powers": x^p * x^q = x^(p+q). Hides a NaN of x / x and of sqrt(x)^2: see HIDING."""
    if not a or not b:
        return a or b
    exponents = dict(a)
    for symbol, e in b:
        e += exponents.get(symbol, 0)
        if e:
            exponents[symbol] = e
        else:
            del exponents[symbol]
    return tuple(sorted(exponents.items()))


def inverse(m: Monomial) -> Monomial:
    """1 / m."""
    return tuple([(symbol, -e) for symbol, e in m])


def without(m: Monomial, symbol: int) -> Monomial:
    """M less one of its symbols."""
    return tuple([f for f in m if f[0] != symbol])


def scaled(p: Terms, k: Coefficient) -> Terms:
    """K * p."""
    if k == 1:
        return p
    return {m: exact(k * c) for m, c in p.items()} if k else {}


def key_of(p: Terms) -> frozenset[Any]:
    """Equal for equal terms in any order."""
    return frozenset(p.items())


def axes_of(shape: tuple[int, ...]) -> int:
    """Bit mask of the axes along which an array of this shape varies."""
    mask = 0
    for axis, n in enumerate(shape):
        if n != 1:
            mask |= 1 << axis
    return mask


class Algebra:
    """Arithmetic on terms, with the table of symbols.

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
        """{product of the factors that vary along all axes of `top`: its coefficient}."""
        rows: dict[Monomial, Terms] = {}
        for m, k in p.items():
            core = tuple([f for f in m if self.mask[f[0]] == top])
            small = tuple([f for f in m if self.mask[f[0]] != top])
            rows.setdefault(core, {})[small] = k
        return rows

    # --- sums kept whole -------------------------------------------------------------------------

    def primitive(self, p: Terms) -> tuple[Coefficient, Monomial, Terms]:
        """(k, common, rest): p = k * common * rest, rest without a common factor, its lead 1."""
        monomials = iter(p)
        shared = dict(next(monomials))
        for m in monomials:
            exponents = dict(m)
            for symbol in list(shared):
                e = exponents.get(symbol, 0)
                if e * shared[symbol] <= 0:
                    del shared[symbol]
                elif abs(e) < abs(shared[symbol]):
                    shared[symbol] = e
            if not shared:
                break
        common = tuple(sorted(shared.items()))
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

    def _careful_times(self, a: Monomial, b: Monomial) -> Monomial:
        """`times` without "cancelled powers"."""
        exponents = dict(a)
        if any(exponents.get(symbol, 0) * e < 0 for symbol, e in b):
            raise Hidden
        return times(a, b)

    def without_zeros(self, p: Terms) -> Terms:
        """Rule "cancelled terms": a*x - a*x = 0. Hides that x is infinite or NaN."""
        if "cancelled terms" in self.off and any(m and not k for m, k in p.items()):
            raise Hidden
        return {m: k for m, k in p.items() if k}

    def add(self, p: Terms, q: Terms, k: Coefficient = 1) -> Terms:
        """The sum p + k * q. Rule "like terms": a*x + b*x = (a+b)*x, where a+b may be 0.

        Otherwise nearer to the exact value: one product less.
        """
        if not q:
            return p
        if not p:
            return scaled(q, k)
        out, met = dict(p), False
        for m, c in q.items():
            old = out.get(m)
            c = k * c if old is None else exact(old + k * c)
            met = met or old is not None
            out[m] = c
        if met:
            out = self.without_zeros(out)
        if met and self.record is not None:
            self.record("like terms", (p, scaled(q, k)), out)
        return self.collect(out)

    def mul(self, p: Terms, q: Terms) -> Terms:
        """The product. Rule "multiply out": k*(a+b) = k*a + k*b, for small k; a+b no centre.

        Undone when terms become nodes; k*a may overflow where k*(a+b) does not. Rule "product with
        zero": 0*x = 0, which hides that x is infinite or NaN.
        """
        if not p or not q:
            if "product with zero" in self.off and any(p or q):
                raise Hidden
            return {}
        if len(p) > 1 and len(q) > 1:
            if all(map(self.is_small, q)):
                p, q = q, p
            if (
                not all(map(self.is_small, p))
                or self._stays_whole(p)
                or len(p) * len(q) > MOST_PRODUCTS
                or "multiply out" in self.off
            ):
                p, q = self.whole(p), self.whole(q)
        if len(q) == 1 < len(p):
            p, q = q, p
        if len(p) > 1:
            out: Terms = {}
            for m, k in p.items():
                for n, c in self.mul({m: k}, q).items():
                    out[n] = exact(out.get(n, 0) + c)
            return self.collect(self.without_zeros(out))
        ((m, k),) = p.items()
        if m and len(q) > 1 and not self._multiplies_out(m, q):
            q = self.whole(q)
        out = {self.times(m, n): product(k, c) for n, c in q.items()}
        return self.collect(out) if m and len(q) > 1 else out

    def _multiplies_out(self, m: Monomial, q: Terms) -> bool:
        if "multiply out" in self.off:
            return False
        return not self._stays_whole(q) if self.is_small(m) else self._cancels(m, q)

    def _cancels(self, m: Monomial, q: Terms) -> bool:
        """A power would cancel: e * (y/e - 1/s) must become y - e/s, centre or not."""
        exponents = dict(m)
        return any(exponents.get(symbol, 0) * e < 0 for n in q for symbol, e in n)

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

    def collect(self, p: Terms) -> Terms:
        """Rule "collect": k*a + k*b = k*(a+b), where a+b is kept already and terms get fewer.

        Also k*(a+b) - k*a = k*b, which "cancelled terms" must allow. Not if the value would vary
        along another axis. One product less, and a sum that is made anyway.
        """
        if len(p) < 2 or not self._kept or "collect" in self.off:
            return p
        top = self.extent(p)
        for m, c in p.items():
            for symbol, e in m:
                if e == 1:
                    new = self._collected(p, top, without(m, symbol), c, symbol)
                    if new is not None:
                        if self.record is not None:
                            self.record("collect", (p,), new)
                        return self.collect(new)
        return p

    def _collected(
        self, p: Terms, top: int, rest: Monomial, c: Coefficient, symbol: int
    ) -> Terms | None:
        swaps: list[tuple[int, Coefficient]] = []
        for whole in self._leads.get(symbol, ()):
            form = self.form[whole]
            assert form is not None
            swaps.append((whole, ratio(c, form[((symbol, 1),)])))
        cancels = "cancelled terms" not in self.off
        if self.form[symbol] and cancels:
            swaps.append((symbol, -c))
        for whole, k in swaps:
            form = self.form[whole]
            assert form is not None
            parts = [(times(rest, n), product(k, v)) for n, v in form.items()]
            gone = sum([p.get(n) == v for n, v in parts])
            one = times(rest, ((whole, 1),))
            own = 1 if one not in p else -1 if p[one] == -k else 0
            if not cancels and (gone < len(parts) or own < 0):
                continue
            if len(parts) - 2 * gone + own < 0 and not self.varies(one) & ~top:
                new = dict(p)
                for n, v in [*((n, -v) for n, v in parts), (one, k)]:
                    new[n] = exact(new.get(n, 0) + v)
                return {n: v for n, v in new.items() if v}
        return None

    def fold(self, p: Terms) -> Terms:
        """A value of few terms, coefficients of few factors: longer ones become named values.

        This keeps rewriting linear in the depth of a graph.
        """
        if len(p) <= MOST_TERMS and all(len(m) <= MOST_FACTORS for m in p):
            return p
        out: Terms = {}
        for core, factor in self.by_core(p, self.top).items():
            if len(factor) > 1 or len(next(iter(factor))) > MOST_FACTORS // 2:
                waits = max([self.wait(m) for m in factor])
                factor = {((self.symbol(self.lower(factor), None, waits), 1),): 1}
            for m, k in factor.items():
                m = times(core, m)
                out[m] = exact(out.get(m, 0) + k)
        return self.without_zeros(out)


def _simple(e: Exponent) -> Exponent:
    return int(e) if e == int(e) else e
