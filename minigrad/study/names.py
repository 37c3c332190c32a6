"""Terms printed with a reader's names: `gamma*rho*(g - dbeta/m - xhat*dgamma/m)`.

A name may stand for a product (xhat = c*rho) or a whole sum (c = x - mu); both are found again in
later values. Preference is the reader's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from minigrad.graph import Node, const_value
from minigrad.rewrite import Simplifier, Sum
from minigrad.rewrite.terms import ONE, Coefficient, Exponent, Monomial, Terms, key_of

_VIEWS = ("expand", "reshape", "permute", "stop_gradient", "variable", "checkpoint")
_INFIX = {"add": " + ", "sub": " - ", "mul": "*", "div": "/"}


class _Product(NamedTuple):
    """A name that stands for a monomial times a number."""

    factors: dict[int, Exponent]
    number: Coefficient
    name: str


class Names:
    """A reader's names for nodes and for numbers of elements.

    Args:
        of: node -> name, most preferred first.
        sizes: number -> name, such as 288 -> "m".
        show_axes: prints sum[0,2](x) where a graph sums over different axes.
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

    def preferring(self, names: Sequence[str]) -> list[_Product]:
        """Use only these names for products, in this order; gives what to put back."""
        before, known = self.products, {p.name: p for p in self.products}
        self.products = [known[n] for n in names if n in known]
        return before

    # --- values ----------------------------------------------------------------------------------

    def number(self, k: Coefficient) -> str:
        """A number, as a multiple or a fraction of a named one where that is simpler."""
        if isinstance(k, float):
            return f"{k:g}"
        for count, name in self.sizes.items():
            for power in (1, 2, 3):
                r = Fraction(k) * count**power
                if r.denominator <= 8 and abs(r.numerator) <= 64 and Fraction(k).denominator > 8:
                    below = name if power == 1 else f"{name}^{power}"
                    if r.denominator != 1:
                        below = f"({r.denominator}*{below})"
                    return f"{r.numerator}/{below}"
            if isinstance(k, int) and k and k % count == 0:
                return {1: name, -1: f"-{name}"}.get(k // count, f"{k // count}*{name}")
        return str(k)

    def symbol(self, i: int) -> str:
        """A symbol: its name, the sum it stands for, or the op that made it."""
        for p in self.products:
            if p.factors == {i: 1} and p.number == 1 and p.name != self.hidden:
                return p.name
        algebra = self.algebra
        form = algebra.form[i]
        if form:
            name = self.sums.get(key_of(form))
            return name if name is not None and name != self.hidden else f"({self.terms(form)})"
        if i in algebra.reduced:
            return self.total(algebra.reduced[i])
        return self.source(algebra.node[i], whole=False)

    def total(self, s: Sum) -> str:
        """A reduction."""
        axes = ""
        if self.show_axes:
            listed = [str(a) for a, n in enumerate(s.shape) if s.axes >> a & 1 and n != 1]
            axes = f"[{','.join(listed)}]"
        return f"sum{axes}({self.terms(s.terms)})"

    def monomial(self, m: Monomial, k: Coefficient) -> str:
        """K * m, with products found again."""
        left, found = dict(m), []
        for p in self.products:
            if p.name == self.hidden or (len(p.factors) == 1 and p.number == 1 and _plain(p)):
                continue
            times = min(int(left.get(i, 0) / e) for i, e in p.factors.items())
            if times >= 1:
                found.append((p.name, times))
                for i, e in p.factors.items():
                    left[i] -= e * times
                    if not left[i]:
                        del left[i]
                if _exact(k, p.number):
                    k = Fraction(k) / Fraction(p.number) ** times
                else:
                    k = float(k) / float(p.number) ** times
        factors = [*found, *((self.symbol(i), e) for i, e in left.items())]
        factors.sort(
            key=lambda f: self.order.index(f[0]) if f[0] in self.order else len(self.order)
        )
        body = "*".join(_power(name, e) for name, e in factors)
        if isinstance(k, Fraction) and k.denominator == 1:
            k = k.numerator
        if not body:
            return self.number(k)
        if abs(k) == 1:
            return body if k > 0 else f"-{body}"
        above, _, below = self.number(k).partition("/")
        above = {"1": "", "-1": "-"}.get(above, f"{above}*")
        return f"{above}{body}" + (f"/{below}" if below else "")

    def terms(self, p: Terms) -> str:
        """A sum of products."""
        name = self.sums.get(key_of(p))
        if name is not None and name != self.hidden:
            return name
        return _joined([self.monomial(m, k) for m, k in p.items()])

    def parts(self, parts: Any) -> str:
        """What a rule returns: terms, or a combination of sums."""
        if isinstance(parts, dict):
            return self.terms(parts)
        printed = []
        for k, inner in parts:
            if inner is None:
                printed.append(self.terms(k))
            elif k == ONE:
                printed.append(self.total(inner))
            elif k == {(): -1}:
                printed.append(f"-{self.total(inner)}")
            else:
                factor = f"({self.terms(k)})" if len(k) > 1 else self.terms(k)
                printed.append(f"{factor}*{self.total(inner)}")
        return _joined(printed)

    # --- nodes as written ------------------------------------------------------------------------

    def source(self, n: Node, whole: bool = True) -> str:
        """A node as it was written, down to named nodes (itself too, unless `whole`)."""
        if not whole and n in self.of:
            return self.of[n]
        value = const_value(n)
        if value is not None:
            exact = int(value) if value == int(value) else value
            return self.number(exact)
        name = n.op.name
        if name in _VIEWS and n.inputs:
            return self.source(n.inputs[0], False)
        arguments = [self.source(i, False) for i in n.inputs]
        if name == "neg":
            return f"-{_closed(arguments[0])}"
        if name in _INFIX:
            return _infix(name, *arguments)
        if name == "sum" and self.show_axes:
            name = f"sum[{','.join(str(a) for a in n.attrs['axes'])}]"
        return f"{name}({', '.join(arguments)})" if arguments else name


def _plain(p: _Product) -> bool:
    return next(iter(p.factors.values())) == 1


def _exact(*numbers: Coefficient) -> bool:
    return not any(isinstance(k, float) for k in numbers)


def _power(name: str, e: Exponent) -> str:
    if e == 1:
        return name
    if e == int(e) and e > 0:
        return f"{name}^{int(e)}"
    return f"{name}^({Fraction(e).limit_denominator(64)})"


def _joined(printed: Sequence[str]) -> str:
    out = ""
    for t in printed:
        if out:
            t = f" - {t[1:]}" if t[0] == "-" else f" + {t}"
        out += t
    return out or "0"


def _closed(text: str) -> str:
    return f"({text})" if " " in text or text[0] == "-" else text


def _infix(name: str, a: str, b: str) -> str:
    if name == "add":
        return f"{a} - {b[1:]}" if b[0] == "-" and " " not in b else f"{a} + {b}"
    if name == "sub":
        return f"{a} - {_closed(b)}"
    if name == "mul":
        return f"{f'({a})' if ' ' in a else a}*{_closed(b)}"
    return f"{_closed(a)}/{_closed(b) if '*' not in b and '/' not in b else f'({b})'}"
