"""Formulas as trees: what a derivation says, before it is written down.

Operators put formulas together as a person would: `a + -b` becomes a - b, `-a * b` becomes
-(a*b), `a * (b / c)` becomes a*b/c. Nothing else is rearranged, and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from minigrad.study.writers import LATEX, MATHML, TEXT, write


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula, which `str` writes as text.

    Attributes:
        kind: "name", "number", "neg", "+", "-", "*", "/", "^", "sum" or "call".
        text: the name; the digits; the axes that a sum names, as "0,2"; what is called.
        parts: the operands.
    """

    kind: str
    text: str = ""
    parts: tuple[Formula, ...] = ()

    def __str__(self) -> str:
        return write(self, TEXT)

    def latex(self) -> str:
        """The formula in LaTeX, for mathematical mode."""
        return write(self, LATEX)

    def mathml(self) -> str:
        """The formula as a MathML element."""
        return f"<math>{write(self, MATHML)}</math>"

    def count(self, kind: str) -> int:
        """How many formulas of a kind it is made of, itself included."""
        return (self.kind == kind) + sum(p.count(kind) for p in self.parts)

    def summands(self) -> Iterator[Formula]:
        """What it adds up, from left to right; what is subtracted is negative."""
        if self.kind in ("+", "-"):
            left, right = self.parts
            yield from left.summands()
            yield right if self.kind == "+" else -right
        else:
            yield self

    def __neg__(self) -> Formula:
        return Formula("neg", "", (self,))

    def __add__(self, other: Formula) -> Formula:
        if other.kind == "neg":
            return self - other.parts[0]
        return Formula("+", "", (self, other))

    def __sub__(self, other: Formula) -> Formula:
        return Formula("-", "", (self, other))

    def __mul__(self, other: Formula) -> Formula:
        if self.kind == "neg":
            return -(self.parts[0] * other)
        if other.kind in ("*", "/"):
            return Formula(other.kind, "", (self * other.parts[0], other.parts[1]))
        return Formula("*", "", (self, other))

    def __truediv__(self, other: Formula) -> Formula:
        if self.kind == "neg":
            return -(self.parts[0] / other)
        return Formula("/", "", (self, other))

    def __pow__(self, other: Formula) -> Formula:
        return Formula("^", "", (self, other))


def name(text: str) -> Formula:
    """A name."""
    return Formula("name", text)


def number(k: float | Fraction) -> Formula:
    """A number: a fraction as one, a float in at most six digits."""
    if k < 0:
        return -number(-k)
    if isinstance(k, Fraction) and k.denominator != 1:
        return number(k.numerator) / number(k.denominator)
    return Formula("number", f"{k:g}" if isinstance(k, float) else str(k))


def total(summand: Formula, axes: str = "") -> Formula:
    """The sum over the axes named, "0,2", or over the only ones that the graph sums over."""
    return Formula("sum", axes, (summand,))


def call(function: str, *arguments: Formula) -> Formula:
    """A function of arguments."""
    return Formula("call", function, arguments)
