"""Values as sums of products of powers over numbered symbols.

    terms     {monomial: coefficient}; {} is zero
    monomial  ((symbol, exponent), ...) sorted by symbol; () is 1
    coefficient, exponent  int or Fraction; float where a number is no simple fraction

What a symbol stands for is the business of `algebra.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import isfinite
from typing import Any

from minigrad.rewrite.catalogue import named

Exponent = int | float
Monomial = tuple[tuple[int, Exponent], ...]
Coefficient = int | float | Fraction
Terms = dict[Monomial, Coefficient]

ONE: Terms = {(): 1}


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


def meant(value: float) -> Coefficient:
    """The fraction a person meant where a float is one (0.5, 3.0); else the float (1e-5)."""
    if not isfinite(value):
        return value
    numerator, denominator = value.as_integer_ratio()
    if denominator <= 1 << 20 and abs(numerator) <= 1 << 52:
        return exact(Fraction(numerator, denominator))
    return value


@named("powers", "x^p * x^q = x^(p+q)")
def times(a: Monomial, b: Monomial) -> Monomial:
    """Hides a NaN of x / x and of sqrt(x)^2: see "cancelled powers" and "power of a root"."""
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
    """m less one of its symbols."""
    return tuple([f for f in m if f[0] != symbol])


def scaled(p: Terms, k: Coefficient) -> Terms:
    """k * p."""
    if k == 1:
        return p
    return {m: exact(k * c) for m, c in p.items()} if k else {}


def summed(terms: Iterable[tuple[Monomial, Coefficient]], onto: Terms | None = None) -> Terms:
    """Monomials with their coefficients as terms, added to others; a coefficient may become 0."""
    out = dict(onto or ())
    for m, k in terms:
        out[m] = exact(out.get(m, 0) + k)
    return out


def key_of(p: Terms) -> frozenset[Any]:
    """Equal for equal terms in any order."""
    return frozenset(p.items())


def axes_of(shape: tuple[int, ...]) -> int:
    """Bit mask of the axes along which an array of this shape varies."""
    return sum([1 << axis for axis, n in enumerate(shape) if n != 1])
