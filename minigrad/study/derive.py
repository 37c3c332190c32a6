"""The derivation of a gradient: the chain rule, each rule that applies, the closed form."""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad import autodiff
from minigrad.graph import Node, build, leaf, topological
from minigrad.ops import sum_
from minigrad.rewrite import STATEMENTS, Cost, Rewriting, Simplifier, Sum, cost
from minigrad.rewrite.terms import Monomial, Terms
from minigrad.study.names import Names
from minigrad.study.notation import to_latex, to_mathml
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_SIZES = "mnkpq"


class Step(NamedTuple):
    """One application of a rule while `value` was being simplified; both sides as text."""

    rule: str
    before: str
    after: str
    value: str


class Value(NamedTuple):
    """A named value: as it was written, as it was simplified, and the steps between."""

    written: str
    simplified: str
    steps: list[Step]
    part: str  # "forward", "reader" (a name for a value to be met), or "backward"


class Derivation:
    """What `derive` found.

    Attributes:
        steps: every step, in order: (rule, before, after, value).
        values: name -> `Value`, in order.
        closed: name of a gradient -> its closed form.
        as_computed: name -> (A*g + B*c + C, ["A = ...", ...]) for gradients with such a form.
        reductions: full-size reductions of the backward, before and after.
        sweeps: dependent sweeps over the data, before and after.
    """

    def __init__(self, names: Names, before: Cost, results: Sequence[str]):
        self.names, self._results = names, results
        self.values: dict[str, Value] = {}
        self.closed: dict[str, str] = {}
        self.as_computed: dict[str, tuple[str, list[str]]] = {}
        self._before = self._after = before

    @property
    def steps(self) -> list[Step]:
        """Every step, in order."""
        return [s for v in self.values.values() for s in v.steps]

    @property
    def reductions(self) -> tuple[int, int]:
        """Full-size reductions of the backward, before and after."""
        return self._before.reductions, self._after.reductions

    @property
    def sweeps(self) -> tuple[int, int]:
        """Dependent sweeps over the data in the backward, before and after."""
        return self._before.sweeps, self._after.sweeps

    @property
    def rules(self) -> dict[str, str]:
        """The rules that were used, with their statements."""
        used = {s.rule for s in self.steps}
        return {name: STATEMENTS[name] for name in STATEMENTS if name in used}

    def _sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(title, [(name, formula)]) for all but the rewriting itself."""
        part = {p: [] for p in ("forward", "reader", "backward")}
        for name, v in self.values.items():
            part[v.part].append((name, v.written))
        counts = "{} full-size reductions, {} dependent sweeps"
        return [
            ("forward", part["forward"]),
            ("named by the reader", part["reader"]),
            (f"chain rule: {counts.format(*self._before)}", part["backward"]),
            (f"closed form: {counts.format(*self._after)}", list(self.closed.items())),
        ]

    def _rewritten(self) -> list[tuple[str, Value]]:
        """The values with something to show."""
        return [
            (name, v)
            for name, v in self.values.items()
            if v.steps or (v.part == "backward" and v.simplified != v.written)
        ]

    def _computed(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(title, [(name, formula)]) for each gradient that has a form as computed."""
        return [
            ("as computed", [(name, form), *((f[0], f[4:]) for f in coefficients)])
            for name, (form, coefficients) in self.as_computed.items()
        ]

    def text(self) -> str:
        """The derivation as text."""
        *before, closed = self._sections()
        lines: list[str] = []
        for title, formulas in before:
            if formulas:
                lines += [title, *(f"  {name} = {f}" for name, f in formulas), ""]
        lines.append("rewriting")
        number = 0
        for name, v in self._rewritten():
            lines.append(f"  {name} = {v.written}")
            for s in v.steps:
                number += 1
                lines.append(f"    {number:2}  {s.rule:16}  {s.before}  ->  {s.after}")
            lines.append(f"      = {v.simplified}")
        title, formulas = closed
        lines += ["", title, *(f"  {name} = {f}" for name, f in formulas)]
        for name, (formula, coefficients) in self.as_computed.items():
            lines += ["", f"as computed: {name} = {formula}", "  " + " ;  ".join(coefficients)]
        lines += ["", "rules used", *(f"  {name:16}  {f}" for name, f in self.rules.items())]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """The derivation as LaTeX (amsmath): an `align*` for each part."""
        *before, closed = self._sections()
        out: list[str] = []

        def align(title: str, rows: Sequence[str]) -> None:
            out.extend([f"\\paragraph{{{title}}}", "\\begin{align*}"])
            out.extend([" \\\\\n".join(rows), "\\end{align*}"])

        for title, formulas in before:
            if formulas:
                align(title, [f"  {to_latex(n)} &= {to_latex(f)}" for n, f in formulas])
        rows = []
        for name, v in self._rewritten():
            rows.append(f"  {to_latex(name)} &= {to_latex(v.written)}")
            for s in v.steps:
                rule = f"\\text{{{s.rule}}}"
                rows.append(f"  {to_latex(s.before)} &\\to {to_latex(s.after)} && {rule}")
            rows.append(f"  &= {to_latex(v.simplified)}")
        align("rewriting", rows)
        for title, formulas in (closed, *self._computed()):
            align(title, [f"  {to_latex(n)} &= {to_latex(f)}" for n, f in formulas])
        return "\n".join(out) + "\n"

    def html(self, path: str | Path) -> None:
        """Write the derivation as one HTML page, with formulas in MathML."""
        *before, closed = self._sections()

        def formula(left: str, sign: str, right: str, rule: str = "") -> str:
            cells = (to_mathml(left), sign, to_mathml(right), html.escape(rule))
            return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"

        body: list[str] = []
        for title, formulas in before:
            if formulas:
                body += [f"<h2>{title}</h2>", "<table>"]
                body += [*(formula(n, "=", f) for n, f in formulas), "</table>"]
        body += ["<h2>rewriting</h2>", "<table>"]
        for name, v in self._rewritten():
            body.append(formula(name, "=", v.written))
            body += [formula(s.before, "&rarr;", s.after, s.rule) for s in v.steps]
            body.append(formula(name, "=", v.simplified))
        body.append("</table>")
        for title, formulas in (closed, *self._computed()):
            body += [f"<h2>{title}</h2>", "<table>"]
            body += [*(formula(n, "=", f) for n, f in formulas), "</table>"]
        body.append("<h2>rules used</h2>")
        rules = (f"<dt>{n}</dt><dd>{html.escape(f)}</dd>" for n, f in self.rules.items())
        body += ["<dl>", *rules, "</dl>"]
        page = (
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>derivation</title>'
            "<style>body{font-family:serif;margin:2em}td{padding:.15em .6em}</style>"
        )
        Path(path).write_text(page + "\n".join(body) + "</html>\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"Derivation({len(self.steps)} steps, reductions {self.reductions})"


class _Recorder:
    """Hears the simplifier and fills a derivation."""

    def __init__(self, derivation: Derivation, parts: dict[int, str]):
        self.derivation, self.parts = derivation, parts
        self.steps: list[tuple[str, str, str]] = []

    def enter(self, n: Node) -> None:
        """A node is about to be simplified; its steps are shown with the next named value."""

    def __call__(self, rule: str, before: Any, after: Any) -> None:
        names = self.derivation.names
        if isinstance(before, Sum):
            left = names.total(before)
        elif len(before) == 2:
            left = f"{names.terms(before[0])} + ({names.terms(before[1])})"
        else:
            left = names.terms(before[0])
        step = rule, left, names.parts(after)
        if step[1] != step[2] and step not in self.steps:
            self.steps.append(step)

    def leave(self, n: Node, terms: Terms) -> None:
        """A node has been simplified."""
        names = self.derivation.names
        name = names.of.get(n)
        if name is not None and not _is_leaf(n):
            written = names.source(n)
            names.hidden = name
            steps = [Step(*s, name) for s in self.steps]
            part = self.parts.get(n.id, "backward")
            self.derivation.values[name] = Value(written, names.terms(terms), steps, part)
            names.hidden = None
            self.steps = []
        names.learn(n, terms)


def _is_leaf(n: Node) -> bool:
    """A leaf, perhaps seen with other axes: there is nothing to say of it."""
    while n.inputs and n.op.kind in ("view", "identity"):
        n = n.inputs[0]
    return not n.inputs


def derive(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    cotangents: Tensor | Sequence[Tensor] | None = None,
    names: Mapping[str, Tensor] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Derivation:
    """How the gradient of `outputs` with respect to `inputs` simplifies, step by step.

    Nothing is computed: values may be of any size.

    Args:
        outputs: tensors computed from the inputs, floating point.
        inputs: what to differentiate with respect to.
        cotangents: of each output; by default the tensor named g, or one made and called so.
        names: what to call tensors, most preferred first: `xhat` before `c` prints `xhat` for
            `c*rho`. Computed tensors that are not part of the outputs are names for values that the
            gradient may meet. By default the caller's local variables.
        sizes: what to call numbers of elements; by default "m" for the one that is summed over.

    Raises:
        ValueError: an output was computed and has forgotten what it was computed from.
    """
    ys, xs = _list(outputs), _list(inputs)
    if names is None:
        local: Mapping[str, Any] = sys._getframe(1).f_locals  # pyright: ignore[reportPrivateUsage]
        visible = [
            k for k, v in local.items() if isinstance(v, TensorBase) and not k.startswith("_")
        ]
        names = {k: local[k] for k in visible}
    gs = _list(cotangents) if cotangents is not None else []
    if not gs and len(ys) == 1 and "g" in names and names["g"].shape == ys[0].shape:
        gs = [names["g"]]
    if gs and len(gs) != len(ys):
        raise ValueError(
            f"derive: expected one cotangent for each of {len(ys)} outputs, got {len(gs)}."
        )
    fresh = _copied([t.node for t in (*ys, *xs, *gs, *names.values())])
    targets, sources = [fresh[t.node] for t in ys], [fresh[t.node] for t in xs]
    for y, node in zip(targets, ys, strict=True):
        if not y.inputs:
            raise ValueError(
                f"derive: expected an output with the graph it comes from, got {node.node!r}. "
                "It was computed, and none of its inputs requires a gradient."
            )
    weights = [fresh[t.node] for t in gs]
    called = {fresh[t.node]: name for name, t in names.items()}
    if not weights:
        weights = [leaf(None, y.shape, y.dtype, y.device) for y in targets]
        for k, g in enumerate(weights):
            called[g] = "g" if len(weights) == 1 else f"g{k + 1}"
    forward = {n.id for n in topological(targets)}
    adjoints: dict[Node, Node] = {}
    found = autodiff.gradients(targets, sources, weights, trace=adjoints)
    gradients = [g for g in found if g is not None]
    helpers = [
        n for n in called if n.inputs and n.id not in forward and not any(n is w for w in weights)
    ]
    results: list[str] = []
    for k, (x, g) in enumerate(zip(sources, gradients, strict=True)):
        name = f"d{called.get(x, f'x{k + 1}')}"
        called.setdefault(g, name)
        results.append(called[g])
    for n, g in sorted(adjoints.items(), key=lambda pair: pair[1].id):
        if n in called and g.inputs and n not in targets:
            called.setdefault(g, f"d_{called[n]}")
    if len(targets) == 1:
        called.setdefault(targets[0], "y")
    rewriting = Rewriting([*targets, *helpers, *gradients])
    return _recorded(rewriting, targets, helpers, gradients, called, results, sizes)


def _recorded(
    rewriting: Rewriting,
    targets: list[Node],
    helpers: list[Node],
    gradients: list[Node],
    called: dict[Node, str],
    results: list[str],
    sizes: Mapping[str, int] | None,
) -> Derivation:
    moved = rewriting.refined
    of = {moved.get(n.id, n): name for n, name in called.items()}
    axes = {n.attrs["axes"] for n in rewriting.nodes if n.op is sum_}
    names = Names(of, _sizes(rewriting.nodes, sizes), show_axes=len(axes) > 1)
    first = len(targets) + len(helpers)
    fine = rewriting.fine
    derivation = Derivation(names, cost(fine[first:], fine[: len(targets)]), results)
    parts = {n.id: "reader" for n in fine[len(targets) : first]}
    parts.update((n.id, "forward") for n in topological(fine[: len(targets)]))

    def recorder(algebra: Simplifier) -> _Recorder:
        names.algebra = algebra
        return _Recorder(derivation, parts)

    out = rewriting.recorded(recorder)
    derivation._after = cost(out[first:], out[: len(targets)])
    hidden = {name for name, v in derivation.values.items() if v.part == "reader"}
    internal = {n for n in names.order if n.startswith("d_")}
    for name, node in zip(results, fine[first:], strict=True):
        using = [n for n in names.order if n not in hidden | internal | {name}]
        using.sort(key=lambda n: not _is_product(names, n))
        terms = rewriting.walker.terms[node.id]
        derivation.closed[name] = _closed_form(names, rewriting.walker, name, terms, using)
        formula, lines = _computed_form(names, rewriting.walker, name, terms, using)
        if len(lines) > 1:
            derivation.as_computed[name] = formula, lines
    return derivation


def _is_product(names: Names, name: str) -> bool:
    """Whether a name stands for more than a symbol: those are looked for first."""
    return any(p.name == name and len(p.factors) > 1 for p in names.products)


def _list(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, TensorBase) else list(tensors)  # type: ignore[list-item]


def _copied(roots: Sequence[Node]) -> dict[Node, Node]:
    """The graph anew, without anything that was computed: the derivation looks behind it."""
    new: dict[Node, Node] = {}
    for n in topological(roots):
        if not n.inputs and n.storage is not None:
            new[n] = leaf(None, n.shape, n.dtype, n.device, n.needs_grad)
        elif not n.inputs:
            new[n] = n
        else:
            new[n] = build(n.op, tuple(new[i] for i in n.inputs), n.attrs)
            new[n].needs_grad = n.needs_grad
    return new


def _sizes(nodes: Sequence[Node], sizes: Mapping[str, int] | None) -> dict[int, str]:
    if sizes is not None:
        return {n: name for name, n in sizes.items()}
    counts = []
    for n in nodes:
        if n.op is sum_ and n.derivative_order == 0:
            count = n.inputs[0].size // max(1, n.size)
            if count > 8 and count not in counts:
                counts.append(count)
    return dict(zip(counts, _SIZES, strict=False))


def _closed_form(
    names: Names, algebra: Simplifier, name: str, terms: Terms, using: Sequence[str]
) -> str:
    """The common factor outside, as in a textbook."""
    before, names.hidden = names.preferring(using), name
    if len(terms) < 2:
        text = names.terms(terms)
    else:
        k, common, rest = algebra.primitive(terms)
        head = names.monomial(common, k) if common else names.number(k)
        inner = dict(sorted(rest.items(), key=lambda t: names.monomial(*t).count("*")))
        body = names.terms(inner)
        text = body if head == "1" else f"{head}*({body})"
    names.products, names.hidden = before, None
    return text


def _computed_form(
    names: Names, algebra: Simplifier, name: str, terms: Terms, using: Sequence[str]
) -> tuple[str, list[str]]:
    """One multiply-add for each full-size factor; the coefficients are computed in the small."""
    before = names.preferring([n for n in using if not _is_full_product(names, algebra, n)])
    top = algebra.extent(terms)
    rows: dict[Monomial, Terms] = {}
    for m, k in terms.items():
        core = tuple([f for f in m if algebra.mask[f[0]] == top])
        small = tuple([f for f in m if algebra.mask[f[0]] != top])
        rows.setdefault(core, {})[small] = k
    formula, lines = [], []
    if len(rows) <= 6 and all(algebra.varies(m) != top for row in rows.values() for m in row):
        ordered = sorted(
            rows.items(), key=lambda row: (not row[0], _place(names, names.monomial(row[0], 1)))
        )
        for letter, (core, small) in zip("ABCDEF", ordered, strict=False):
            lines.append(f"{letter} = {names.terms(small)}")
            formula.append(f"{letter}*{names.monomial(core, 1)}" if core else letter)
    names.products = before
    return " + ".join(formula), lines


def _is_full_product(names: Names, algebra: Simplifier, name: str) -> bool:
    """Whether a name stands for a full-size array times something: not what a kernel reads."""
    return any(
        p.name == name
        and len(p.factors) > 1
        and any(algebra.mask[i] == algebra.top for i in p.factors)
        for p in names.products
    )


def _place(names: Names, name: str) -> int:
    """G before c: what the gradient is linear in first."""
    if name in ("g", "g1"):
        return -1
    return names.order.index(name) if name in names.order else len(names.order)
