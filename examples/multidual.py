"""Numbers with forty digits that carry mixed derivatives: the reference of `examples.high_order`.

A `Multidual` is a + sum over sets S of c_S * t_S, where the t_i are infinitesimals of square zero
and t_S is the product of those in S. Evaluating f at x + t_1 v_1 + ... + t_k v_k gives, as the
coefficient of t_1 ... t_k, the k-th derivative of f at x in the directions v_1, ..., v_k. No step
size is involved, so the result is as exact as mpmath's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath

DIGITS = 40


class Multidual:
    """A number with the coefficients of products of infinitesimals, numbered by bit masks."""

    __slots__ = ("parts",)

    def __init__(self, parts: dict[int, Any]):
        self.parts = parts

    def __add__(self, other: Any) -> Multidual:
        parts = dict(self.parts)
        for mask, c in _parts(other).items():
            parts[mask] = parts[mask] + c if mask in parts else c
        return Multidual(parts)

    def __mul__(self, other: Any) -> Multidual:
        parts: dict[int, Any] = {}
        for a, c in self.parts.items():
            for b, d in _parts(other).items():
                if not a & b:  # the square of an infinitesimal is zero
                    parts[a | b] = parts[a | b] + c * d if a | b in parts else c * d
        return Multidual(parts)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Multidual:
        return self * -1

    def __sub__(self, other: Any) -> Multidual:
        return self + (-other)

    def __rsub__(self, other: Any) -> Multidual:
        return -self + other

    def __truediv__(self, other: Any) -> Multidual:
        return self * (other**-1 if isinstance(other, Multidual) else 1 / mpmath.mpf(other))

    def __rtruediv__(self, other: Any) -> Multidual:
        return self**-1 * other

    def __pow__(self, exponent: Any) -> Multidual:
        """The binomial series around the real part, not 0; it ends, as its steps are nilpotent."""
        p = mpmath.mpf(exponent)
        real = self.parts[0]
        step = Multidual({mask: c / real for mask, c in self.parts.items() if mask})
        result, term, k = Multidual({0: mpmath.mpf(1)}), step, 1
        binomial = p
        while term.parts:
            result = result + term * binomial
            term, k = term * step, k + 1
            binomial = binomial * (p - k + 1) / k
        return result * real**p


def _parts(value: Any) -> dict[int, Any]:
    return value.parts if isinstance(value, Multidual) else {0: mpmath.mpf(value)}


def real(value: Any) -> Any:
    """The number without its infinitesimals: a constant of differentiation."""
    return _parts(value)[0]


def derivative(
    f: Callable[[list[Any]], list[Any]],
    x: Sequence[float],
    directions: Sequence[Sequence[float]],
) -> list[Any]:
    """The mixed derivative of each of f's values at x, once in each of the directions."""
    with mpmath.workdps(DIGITS):
        point = [
            Multidual({0: xi, **{1 << k: mpmath.mpf(v[i]) for k, v in enumerate(directions)}})
            for i, xi in enumerate(map(mpmath.mpf, x))
        ]
        everything = (1 << len(directions)) - 1
        return [_parts(y).get(everything, mpmath.mpf(0)) for y in f(point)]
