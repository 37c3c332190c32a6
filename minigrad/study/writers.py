"""Formulas written down: one walk over the tree, and a table for each notation.

The table says how the written parts of a formula are put together, and which of them need brackets.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from minigrad.study.formula import Formula

Kinds = tuple[str, ...]

_GREEK = frozenset(
    ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "nu",
     "rho", "sigma", "tau", "phi", "chi", "psi", "omega")
)  # fmt: skip

_SIGNED: Kinds = ("+", "-", "neg")
_COMPOUND: Kinds = (*_SIGNED, "*", "/", "^")


class Notation(NamedTuple):
    """How formulas are written.

    Attributes:
        name, number, word: writes a name, digits, and the name of a function or axes of a sum.
        forms: kind -> how the parts {0} and {1} are put together, or all of them, {all}, with the
            formula's own {text}. "* number", "sum over" and "call f" are for a number as the right
            factor, a sum that names its axes, and the function f.
        comma: stands between the parts in {all}.
        brackets: stand around a part in place of %s.
        enclosed: kind -> for each part, the kinds that it has in brackets.
    """

    name: Callable[[str], str]
    number: Callable[[str], str]
    word: Callable[[str], str]
    forms: dict[str, str]
    comma: str
    brackets: str
    enclosed: dict[str, tuple[Kinds, ...]]


def write(f: Formula, notation: Notation) -> str:
    """The formula in a notation."""
    if not f.parts:
        return notation.number(f.text) if f.kind == "number" else notation.name(f.text)
    parts = [write(p, notation) for p in f.parts]
    for i, kinds in enumerate(notation.enclosed.get(f.kind, ())):
        if f.parts[i].kind in kinds:
            parts[i] = notation.brackets % parts[i]
    form = notation.forms.get(_special(f)) or notation.forms[f.kind]
    return form.format(*parts, all=notation.comma.join(parts), text=notation.word(f.text))


def _special(f: Formula) -> str:
    if f.kind == "*":
        return f"* {f.parts[1].kind}"
    return f"call {f.text}" if f.kind == "call" else "sum over" if f.text else ""


def _decorated(name: str) -> tuple[str, str, str]:
    """What stands before a name, its letter or word, and over it: d_xhat -> ("bar", "x", "hat")."""
    prefix = ""
    if name.startswith("d_"):
        prefix, name = "bar", name[2:]
    elif re.match(r"d+[a-z]", name) and (name.lstrip("d") in _GREEK or len(name.lstrip("d")) == 1):
        stem = name.lstrip("d")
        prefix, name = "d" * (len(name) - len(stem)), stem
    hat = "hat" if name.endswith("hat") and len(name) > 3 else ""
    return prefix, name.removesuffix(hat), hat


def _latex_word(text: str) -> str:
    return text.replace("_", r"\_")


def _latex_name(name: str) -> str:
    prefix, stem, hat = _decorated(name)
    word = stem if len(stem) == 1 else f"\\mathrm{{{_latex_word(stem)}}}"
    if stem in _GREEK:
        word = f"\\{stem}"
    if hat:
        word = f"\\hat{{{word}}}"
    if prefix == "bar":
        return f"\\bar{{{word}}}"
    return "\\mathrm{d}" * len(prefix) + word


def _latex_number(digits: str) -> str:
    mantissa, e, exponent = digits.partition("e")
    return f"{mantissa} \\cdot 10^{{{int(exponent)}}}" if e else mantissa


def _mathml_name(name: str) -> str:
    prefix, stem, hat = _decorated(name)
    word = f"<mi>{f'&{stem};' if stem in _GREEK else html.escape(stem)}</mi>"
    if hat:
        word = f"<mover>{word}<mo>^</mo></mover>"
    if prefix == "bar":
        return f"<mover>{word}<mo>&macr;</mo></mover>"
    return f"<mrow><mi>{prefix}</mi>{word}</mrow>" if prefix else word


TEXT = Notation(
    name=str,
    number=str,
    word=str,
    forms={
        "neg": "-{0}",
        "+": "{0} + {1}",
        "-": "{0} - {1}",
        "*": "{0}*{1}",
        "/": "{0}/{1}",
        "^": "{0}^{1}",
        "sum": "sum({0})",
        "sum over": "sum[{text}]({0})",
        "call": "{text}({all})",
    },
    comma=", ",
    brackets="(%s)",
    enclosed={
        "neg": (_SIGNED,),
        "+": ((), _SIGNED),
        "-": ((), _SIGNED),
        "*": (_SIGNED, (*_SIGNED, "*", "/")),
        "/": (_SIGNED, (*_SIGNED, "*", "/")),
        "^": (_COMPOUND, _COMPOUND),
    },
)
_TYPESET: dict[str, tuple[Kinds, ...]] = {
    **TEXT.enclosed,
    "*": ((*_SIGNED, "sum"), _SIGNED),  # a sum would take the factors after it for its own
    "/": (),
    "^": ((*_COMPOUND, "sum"), ()),
    "sum": (_SIGNED,),
}
LATEX = Notation(
    name=_latex_name,
    number=_latex_number,
    word=_latex_word,
    forms={
        **TEXT.forms,
        "*": "{0} {1}",
        "* number": "{0} \\cdot {1}",
        "/": "\\frac{{{0}}}{{{1}}}",
        "^": "{{{0}}}^{{{1}}}",
        "sum": "\\sum {0}",
        "sum over": "\\sum_{{{text}}} {0}",
        "call": "\\operatorname{{{text}}}\\left({all}\\right)",
        "call sqrt": "\\sqrt{{{0}}}",
    },
    comma=TEXT.comma,
    brackets="\\left(%s\\right)",
    enclosed=_TYPESET,
)
MATHML = Notation(
    name=_mathml_name,
    number="<mn>{}</mn>".format,
    word=html.escape,
    forms={
        "neg": "<mrow><mo>-</mo>{0}</mrow>",
        "+": "<mrow>{0}<mo>+</mo>{1}</mrow>",
        "-": "<mrow>{0}<mo>-</mo>{1}</mrow>",
        "*": "<mrow>{0}<mo>&it;</mo>{1}</mrow>",
        "* number": "<mrow>{0}<mo>&sdot;</mo>{1}</mrow>",
        "/": "<mfrac>{0}{1}</mfrac>",
        "^": "<msup>{0}{1}</msup>",
        "sum": "<mrow><mo>&sum;</mo>{0}</mrow>",
        "sum over": "<mrow><munder><mo>&sum;</mo><mtext>{text}</mtext></munder>{0}</mrow>",
        "call": "<mrow><mi>{text}</mi><mo>(</mo>{all}<mo>)</mo></mrow>",
        "call sqrt": "<msqrt>{0}</msqrt>",
    },
    comma="<mo>,</mo>",
    brackets="<mrow><mo>(</mo>%s<mo>)</mo></mrow>",
    enclosed=_TYPESET,
)
