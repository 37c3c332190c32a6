"""What a derivation found, and its pages: text, LaTeX, HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minigrad.rewrite import STATEMENTS, Cost
from minigrad.study import formula
from minigrad.study.formula import Formula


class Step(NamedTuple):
    """One application of a rule, both sides of it, while the value of this name was simplified."""

    rule: str
    before: Formula
    after: Formula
    value: str


class Value(NamedTuple):
    """A named value: as it was written, as it was simplified, and the steps between."""

    written: Formula
    simplified: Formula
    steps: list[Step]
    part: str  # "forward", "reader" (a name for a value to be met), or "backward"


class _Row(NamedTuple):
    """A line of a page: left = right; or, if a rule says so, left -> right."""

    left: Formula | None  # None: what stands above
    right: Formula
    rule: str = ""


def _named(name: str, f: Formula) -> _Row:
    return _Row(formula.name(name), f)


class Derivation:
    """What `derive` found. Formulas are trees; `str` writes one as text.

    Attributes:
        values: name -> `Value`, in order.
        closed: name of a gradient -> its closed form.
        as_computed: name -> (A*g + B*c + C, {"A": ...}) for gradients with such a form.
        before, after: cost of the backward.
    """

    def __init__(self, before: Cost):
        self.before = self.after = before
        self.values: dict[str, Value] = {}
        self.closed: dict[str, Formula] = {}
        self.as_computed: dict[str, tuple[Formula, dict[str, Formula]]] = {}

    @property
    def steps(self) -> list[Step]:
        """Every step, in order: (rule, before, after, value)."""
        return [s for v in self.values.values() for s in v.steps]

    @property
    def reductions(self) -> tuple[int, int]:
        """Full-size reductions of the backward, before and after."""
        return self.before.reductions, self.after.reductions

    @property
    def sweeps(self) -> tuple[int, int]:
        """Dependent sweeps over the data in the backward, before and after."""
        return self.before.sweeps, self.after.sweeps

    @property
    def rules(self) -> dict[str, str]:
        """The rules that were used, with their statements."""
        used = {s.rule for s in self.steps}
        return {name: STATEMENTS[name] for name in STATEMENTS if name in used}

    def _sections(self) -> dict[str, list[_Row]]:
        """Title -> lines, without the forms as computed."""
        counts = "{}: {} full-size reductions, {} dependent sweeps"

        def written(part: str) -> list[_Row]:
            return [_named(name, v.written) for name, v in self.values.items() if v.part == part]

        sections = {
            "forward": written("forward"),
            "named by the reader": written("reader"),
            counts.format("chain rule", *self.before): written("backward"),
            "rewriting": [row for name, v in self.values.items() for row in _rewritten(name, v)],
            counts.format("closed form", *self.after): [
                _named(name, f) for name, f in self.closed.items()
            ],
        }
        return {title: rows for title, rows in sections.items() if rows}

    def _computed(self) -> list[list[_Row]]:
        """The lines of each form as computed: the gradient, then its coefficients."""
        return [
            [_named(name, form), *(_named(letter, f) for letter, f in coefficients.items())]
            for name, (form, coefficients) in self.as_computed.items()
        ]

    def text(self) -> str:
        """The derivation as text."""
        blocks, number = [], 0
        for title, rows in self._sections().items():
            lines = [title]
            for left, right, rule in rows:
                number += bool(rule)
                if rule:
                    lines.append(f"    {number:2}  {rule:16}  {left}  ->  {right}")
                else:
                    lines.append(f"  {left} = {right}" if left else f"      = {right}")
            blocks.append(lines)
        for (name, form, _), *coefficients in self._computed():
            line = " ;  ".join(f"{letter} = {f}" for letter, f, _ in coefficients)
            blocks.append([f"as computed: {name} = {form}", f"  {line}"])
        blocks.append(["rules used", *(f"  {name:16}  {f}" for name, f in self.rules.items())])
        return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"

    def latex(self) -> str:
        """The derivation as LaTeX (amsmath): an `align*` for each part."""

        def line(row: _Row) -> str:
            left = row.left.latex() if row.left else ""
            sign, rule = ("\\to", f" && \\text{{{row.rule}}}") if row.rule else ("=", "")
            return f"  {left} &{sign} {row.right.latex()}{rule}"

        return "".join(
            f"\\paragraph{{{title}}}\n\\begin{{align*}}\n"
            + " \\\\\n".join(map(line, rows))
            + "\n\\end{align*}\n"
            for title, rows in self._titled()
        )

    def html(self, path: str | Path) -> None:
        """Write the derivation as one HTML page, with formulas in MathML."""

        def line(row: _Row) -> str:
            left = row.left.mathml() if row.left else ""
            sign = "&rarr;" if row.rule else "="
            cells = (left, sign, row.right.mathml(), html.escape(row.rule))
            return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"

        body: list[str] = []
        for title, rows in self._titled():
            body += [f"<h2>{title}</h2>", "<table>", *map(line, rows), "</table>"]
        rules = (f"<dt>{n}</dt><dd>{html.escape(f)}</dd>" for n, f in self.rules.items())
        body += ["<h2>rules used</h2>", "<dl>", *rules, "</dl>"]
        page = (
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>derivation</title>'
            "<style>body{font-family:serif;margin:2em}td{padding:.15em .6em}</style>"
        )
        Path(path).write_text(page + "\n".join(body) + "</html>\n", encoding="utf-8")

    def _titled(self) -> list[tuple[str, list[_Row]]]:
        return [*self._sections().items(), *(("as computed", rows) for rows in self._computed())]

    def __repr__(self) -> str:
        return f"Derivation({len(self.steps)} steps, reductions {self.reductions})"


def _rewritten(name: str, v: Value) -> Sequence[_Row]:
    """How a value was simplified, if there is something to show."""
    if not v.steps and (v.part != "backward" or v.simplified == v.written):
        return ()
    steps = [_Row(s.before, s.after, s.rule) for s in v.steps]
    return _named(name, v.written), *steps, _Row(None, v.simplified)
