"""Printed formulas as LaTeX and MathML: a small parser and two writers.

The grammar is what `names.py` prints: sums and differences of products and quotients of powers of
names, numbers, parentheses and calls, `sum[0,2](g*c)` among them.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

_TOKEN = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|[A-Za-z_]\w*(?:\[[\d,]*\])?|[-+*/^(),])")
_GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "eta",
        "theta",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "rho",
        "sigma",
        "tau",
        "phi",
        "chi",
        "psi",
        "omega",
    ]
)


class Tree(NamedTuple):
    """A formula: kind "name", "number", "call", "neg", "+", "-", "*", "/" or "^"."""

    kind: str
    text: str = ""
    parts: tuple[Tree, ...] = ()


def parse(text: str) -> Tree:
    """The tree of a printed formula.

    Raises:
        ValueError: the text is no formula.
    """
    tokens, end = [], 0
    while text[end:].strip():
        match = _TOKEN.match(text, end)
        if match is None:
            raise ValueError(f"parse: expected a formula, got {text!r}.")
        tokens.append(match[1])
        end = match.end()
    tree, rest = _sum(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"parse: expected a formula, got {text!r}.")
    return tree


def _sum(tokens: list[str], i: int) -> tuple[Tree, int]:
    left, i = _product(tokens, i)
    while i < len(tokens) and tokens[i] in "+-":
        right, j = _product(tokens, i + 1)
        left, i = Tree(tokens[i], "", (left, right)), j
    return left, i


def _product(tokens: list[str], i: int) -> tuple[Tree, int]:
    if i < len(tokens) and tokens[i] == "-":
        inner, i = _product(tokens, i + 1)
        return Tree("neg", "", (inner,)), i
    left, i = _power(tokens, i)
    while i < len(tokens) and tokens[i] in "*/":
        operator = tokens[i]
        right, i = _signed_power(tokens, i + 1)
        left = Tree(operator, "", (left, right))
    return left, i


def _signed_power(tokens: list[str], i: int) -> tuple[Tree, int]:
    if i < len(tokens) and tokens[i] == "-":
        inner, i = _power(tokens, i + 1)
        return Tree("neg", "", (inner,)), i
    return _power(tokens, i)


def _power(tokens: list[str], i: int) -> tuple[Tree, int]:
    base, i = _atom(tokens, i)
    if i < len(tokens) and tokens[i] == "^":
        exponent, i = _atom(tokens, i + 1)
        return Tree("^", "", (base, exponent)), i
    return base, i


def _atom(tokens: list[str], i: int) -> tuple[Tree, int]:
    if i >= len(tokens):
        raise ValueError("parse: expected a value, got the end of the formula.")
    token = tokens[i]
    if token == "(":
        inner, i = _sum(tokens, i + 1)
        return inner, _closing(tokens, i)
    if token[0].isdigit():
        return Tree("number", token), i + 1
    if not (token[0].isalpha() or token[0] == "_"):
        raise ValueError(f"parse: expected a value, got {token!r}.")
    if i + 1 < len(tokens) and tokens[i + 1] == "(":
        arguments = []
        i += 1
        while tokens[i] in "(,":
            argument, i = _sum(tokens, i + 1)
            arguments.append(argument)
        return Tree("call", token, tuple(arguments)), _closing(tokens, i)
    return Tree("name", token), i + 1


def _closing(tokens: list[str], i: int) -> int:
    if i >= len(tokens) or tokens[i] != ")":
        raise ValueError("parse: expected a closing parenthesis.")
    return i + 1


def _name_parts(name: str) -> tuple[str, str, str]:
    """(prefix, letter or word, decoration): d_xhat -> ("bar", "x", "hat")."""
    prefix = ""
    if name.startswith("d_"):
        prefix, name = "bar", name[2:]
    elif re.match(r"d+[a-z]", name) and (name.lstrip("d") in _GREEK or len(name.lstrip("d")) == 1):
        stem = name.lstrip("d")
        prefix, name = "d" * (len(name) - len(stem)), stem
    decoration = "hat" if name.endswith("hat") and len(name) > 3 else ""
    return prefix, name.removesuffix("hat") if decoration else name, decoration


def to_latex(text: str) -> str:
    """A printed formula in LaTeX."""
    return _latex(parse(text))


def _latex_name(name: str) -> str:
    prefix, stem, decoration = _name_parts(name)
    word = f"\\{stem}" if stem in _GREEK else stem
    if len(stem) > 1 and stem not in _GREEK:
        word = f"\\mathrm{{{stem.replace('_', chr(92) + '_')}}}"
    if decoration:
        word = f"\\hat{{{word}}}"
    if prefix == "bar":
        return f"\\bar{{{word}}}"
    return "".join("\\mathrm{d}" for _ in prefix) + word


# What needs parentheses as the right side of a sum; of a difference, or as a factor; as a factor
# with others after it, which a sum would take for its own; as the base of a power.
_ADDED = ("neg",)
_FACTOR = ("+", "-", "neg")
_HEAD = (*_FACTOR, "sum")
_BASE = (*_HEAD, "*", "/", "^")


def _enclosed(t: Tree, text: str, kinds: tuple[str, ...], parentheses: str) -> str:
    """The written formula, in parentheses ("(%s)") if it is of one of the kinds."""
    is_sum = t.kind == "call" and t.text.partition("[")[0] == "sum"
    return parentheses % text if ("sum" if is_sum else t.kind) in kinds else text


def _latex(t: Tree) -> str:
    parts = [_latex(p) for p in t.parts]

    def part(i: int, kinds: tuple[str, ...]) -> str:
        return _enclosed(t.parts[i], parts[i], kinds, r"\left(%s\right)")

    match t.kind:
        case "name":
            return _latex_name(t.text)
        case "number":
            mantissa, e, exponent = t.text.partition("e")
            return f"{mantissa} \\cdot 10^{{{int(exponent)}}}" if e else mantissa
        case "neg":
            return f"-{part(0, _FACTOR)}"
        case "+":
            return f"{parts[0]} + {part(1, _ADDED)}"
        case "-":
            return f"{parts[0]} - {part(1, _FACTOR)}"
        case "*":
            dot = " \\cdot " if t.parts[1].kind == "number" else " "
            return f"{part(0, _HEAD)}{dot}{part(1, _FACTOR)}"
        case "/":
            return f"\\frac{{{parts[0]}}}{{{parts[1]}}}"
        case "^":
            return f"{{{part(0, _BASE)}}}^{{{parts[1]}}}"
    name, _, axes = t.text.partition("[")
    arguments = ", ".join(parts)
    if name == "sum":
        under = f"_{{{axes.rstrip(']')}}}" if axes else ""
        return f"\\sum{under} {part(0, _FACTOR)}"
    if name == "sqrt":
        return f"\\sqrt{{{arguments}}}"
    return f"\\operatorname{{{name}}}\\left({arguments}\\right)"


def to_mathml(text: str) -> str:
    """A printed formula in MathML."""
    return f"<math>{_mathml(parse(text))}</math>"


def _mathml_name(name: str) -> str:
    prefix, stem, decoration = _name_parts(name)
    word = f"<mi>{f'&{stem};' if stem in _GREEK else html.escape(stem)}</mi>"
    if decoration:
        word = f"<mover>{word}<mo>^</mo></mover>"
    if prefix == "bar":
        return f"<mover>{word}<mo>&macr;</mo></mover>"
    return f"<mrow><mi>{prefix}</mi>{word}</mrow>" if prefix else word


def _mathml(t: Tree) -> str:
    parts = [_mathml(p) for p in t.parts]

    def part(i: int, kinds: tuple[str, ...]) -> str:
        parentheses = "<mrow><mo>(</mo>%s<mo>)</mo></mrow>"
        return _enclosed(t.parts[i], parts[i], kinds, parentheses)

    match t.kind:
        case "name":
            return _mathml_name(t.text)
        case "number":
            return f"<mn>{t.text}</mn>"
        case "neg":
            return f"<mrow><mo>-</mo>{part(0, _FACTOR)}</mrow>"
        case "+":
            return f"<mrow>{parts[0]}<mo>+</mo>{part(1, _ADDED)}</mrow>"
        case "-":
            return f"<mrow>{parts[0]}<mo>-</mo>{part(1, _FACTOR)}</mrow>"
        case "*":
            return f"<mrow>{part(0, _HEAD)}<mo>&it;</mo>{part(1, _FACTOR)}</mrow>"
        case "/":
            return f"<mfrac>{parts[0]}{parts[1]}</mfrac>"
        case "^":
            return f"<msup>{part(0, _BASE)}{parts[1]}</msup>"
    name, _, axes = t.text.partition("[")
    if name == "sum":
        under = f"<munder><mo>&sum;</mo><mtext>{axes.rstrip(']')}</mtext></munder>"
        return f"<mrow>{under if axes else '<mo>&sum;</mo>'}{part(0, _FACTOR)}</mrow>"
    if name == "sqrt":
        return f"<msqrt>{''.join(parts)}</msqrt>"
    inner = "<mo>,</mo>".join(parts)
    return f"<mrow><mi>{name}</mi><mo>(</mo>{inner}<mo>)</mo></mrow>"
