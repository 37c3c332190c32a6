"""Terms and nodes as formulas in a reader's names: `gamma*rho*(g - dbeta/m - xhat*dgamma/m)`.

A name may stand for a product (xhat = c*rho) or a whole sum (c = x - mu); both are found again in
later values. Preference is the reader's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import reduce
from operator import add, mul, sub, truediv
from typing import Any, NamedTuple

from minigrad.graph import Node, const_value
from minigrad.rewrite import Simplifier, Sum
from minigrad.rewrite.terms import ONE, Coefficient, Exponent, Monomial, Terms, key_of, ratio
from minigrad.study import formula
from minigrad.study.formula import Formula

_VIEWS = ("expand", "reshape", "permute", "stop_gradient", "variable", "checkpoint")
_INFIX: dict[str, Callable[..., Formula]] = {"sub": sub, "mul": mul, "div": truediv}


class _Product(NamedTuple):
    """A name that stands for a monomial times a number."""

    factors: dict[int, Exponent]
    number: Coefficient
    name: str

    @property
    def is_symbol(self) -> bool:
        """Whether it stands for one symbol as it is."""
        return self.number == 1 and list(self.factors.values()) == [1]


class Names:
    """A reader's names for nodes and for numbers of elements.

    Args:
        of: node -> name, most preferred first.
        sizes: number -> name, such as 288 -> "m".
        show_axes: writes sum[0,2](x), where a graph sums over different axes.
    """

    def __init__(self, of: dict[Node, str], sizes: dict[int, str], show_axes: bool = False):
        self.of, self.sizes, self.show_axes = of, sizes, show_axes
        self.order = list(of.values())
        self.products: list[_Product] = []
        self.sums: dict[Any, str] = {}
        self.hidden: str | None = None  # a name that is being explained
        self.algebra: Simplifier

    def learn(self, node: Node, terms: Terms) -> None:
        """Recognize the value of a named node from now on."""
        name = self.of.get(node)
        if name is None:
            return
        if len(terms) == 1:
            ((m, k),) = terms.items()
            if m and not any(p.factors == dict(m) for p in self.products):
                self.products.append(_Product(dict(m), k, name))
                self.products.sort(key=lambda p: self.order.index(p.name))
        elif terms:
            self.sums[key_of(terms)] = name

    @contextmanager
    def explaining(self, name: str | None, using: Sequence[str] | None = None) -> Iterator[None]:
        """Do without a name, and use only the names in `using` for products, in that order."""
        before = self.hidden, self.products
        self.hidden = name
        if using is not None:
            known = {p.name: p for p in self.products}
            self.products = [known[n] for n in using if n in known]
        try:
            yield
        finally:
            self.hidden, self.products = before

    def place(self, f: Formula) -> int:
        """Where a name stands in the reader's order; anything else comes last."""
        known = f.kind == "name" and f.text in self.order
        return self.order.index(f.text) if known else len(self.order)

    def is_product(self, name: str, of: int | None = None) -> bool:
        """Whether a name stands for several factors, one of them varying along the axes `of`."""
        mask = self.algebra.mask
        return any(
            p.name == name
            and len(p.factors) > 1
            and (of is None or any(mask[i] == of for i in p.factors))
            for p in self.products
        )

    # --- values ----------------------------------------------------------------------------------

    def number(self, k: Coefficient) -> Formula:
        """A number, as a multiple or a fraction of a named one where that is simpler."""
        for count, name in self.sizes.items() if not isinstance(k, float) else ():
            size = formula.name(name)
            if isinstance(k, int) and k and k % count == 0:
                multiple = _times(formula.number(abs(k) // count), size)
                return multiple if k > 0 else -multiple
            for power in (1, 2, 3):
                r = Fraction(k) * count**power
                if r.denominator <= 8 and abs(r.numerator) <= 64 and Fraction(k).denominator > 8:
                    below = _power(size, power)
                    if r.denominator != 1:
                        below = formula.number(r.denominator) * below
                    return formula.number(r.numerator) / below
        return formula.number(k)

    def symbol(self, i: int) -> Formula:
        """A symbol: its name, the sum it stands for, or the op that made it."""
        for p in self.products:
            if i in p.factors and p.is_symbol and p.name != self.hidden:
                return formula.name(p.name)
        form = self.algebra.form[i]
        if form:
            return self.terms(form)
        if i in self.algebra.reduced:
            return self.total(self.algebra.reduced[i])
        return self.source(self.algebra.node[i], whole=False)

    def total(self, s: Sum) -> Formula:
        """A reduction."""
        axes = [a for a, n in enumerate(s.shape) if s.axes >> a & 1 and n != 1]
        return formula.total(self.terms(s.terms), self._written_axes(axes))

    def _written_axes(self, axes: Sequence[int]) -> str:
        return ",".join(map(str, axes)) if self.show_axes else ""

    def monomial(self, m: Monomial, k: Coefficient = 1) -> Formula:
        """k * m, with products found again."""
        factors, k = self._factors(m, k)
        factors.sort(key=lambda f: self.place(f[0]))
        if not factors:
            return self.number(k)
        body = reduce(mul, [_power(f, e) for f, e in factors])
        if abs(k) == 1:
            return body if k > 0 else -body
        scale = self.number(abs(k))
        above, *below = scale.parts if scale.kind == "/" else (scale,)
        body = reduce(truediv, below, _times(above, body))
        return body if k > 0 else -body

    def _factors(
        self, m: Monomial, k: Coefficient
    ) -> tuple[list[tuple[Formula, Exponent]], Coefficient]:
        """What a monomial is made of, the reader's products first, and the number that is left."""
        left, found = dict(m), []
        for p in self.products:
            if p.name == self.hidden or p.is_symbol:
                continue
            times = min(int(left.get(i, 0) / e) for i, e in p.factors.items())
            if times >= 1:
                found.append((formula.name(p.name), times))
                k = ratio(k, p.number**times)
                left = {i: e - p.factors.get(i, 0) * times for i, e in left.items()}
        return found + [(self.symbol(i), e) for i, e in left.items() if e], k

    def terms(self, p: Terms) -> Formula:
        """A sum of products."""
        name = self.sums.get(key_of(p))
        if name is not None and name != self.hidden:
            return formula.name(name)
        return _added([self.monomial(m, k) for m, k in p.items()])

    def factored(self, p: Terms) -> Formula:
        """A sum of products with what they share outside, as in a textbook."""
        if len(p) < 2:
            return self.terms(p)
        k, common, rest = self.algebra.primitive(p)
        inner = sorted(rest.items(), key=lambda t: self.monomial(*t).count("*"))
        product = _times(self.monomial(common, abs(k)), self.terms(dict(inner)))
        return product if k > 0 else -product

    def parts(self, parts: Any) -> Formula:
        """What a rule gives: terms, or a combination of sums."""
        if isinstance(parts, dict):
            return self.terms(parts)
        return _added([self._part(k, inner) for k, inner in parts])

    def _part(self, k: Terms, inner: Sum | None) -> Formula:
        if inner is None:
            return self.terms(k)
        if k in (ONE, {(): -1}):
            return self.total(inner) if k == ONE else -self.total(inner)
        return self.terms(k) * self.total(inner)

    # --- nodes as written ------------------------------------------------------------------------

    def source(self, n: Node, whole: bool = True) -> Formula:
        """A node as it was written, down to named nodes (itself too, unless `whole`)."""
        if not whole and n in self.of:
            return formula.name(self.of[n])
        value = const_value(n)
        if value is not None:
            whole = isinstance(value, float) and value.is_integer()
            return self.number(int(value) if whole else value)
        name = n.op.name
        if name in _VIEWS and n.inputs:
            return self.source(n.inputs[0], False)
        arguments = [self.source(i, False) for i in n.inputs]
        if not arguments:
            return formula.name(name)
        if name == "neg":
            return -arguments[0]
        if name == "add":
            return _added([arguments[0], *arguments[1].summands()])
        if name == "sum":
            return formula.total(arguments[0], self._written_axes(n.attrs["axes"]))
        operator = _INFIX.get(name)
        return operator(*arguments) if operator else formula.call(name, *arguments)


def _power(base: Formula, e: Exponent) -> Formula:
    return base if e == 1 else base ** formula.number(Fraction(e).limit_denominator(64))


def _times(head: Formula, body: Formula) -> Formula:
    return body if head == formula.number(1) else head * body


def _added(summands: Sequence[Formula]) -> Formula:
    return reduce(add, summands) if summands else formula.number(0)
