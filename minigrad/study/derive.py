"""The derivation of a gradient: the chain rule, each rule that applies, the closed form."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from minigrad import autodiff
from minigrad.graph import Node, build, leaf, topological
from minigrad.ops import sum_
from minigrad.rewrite import Rewriting, Simplifier, Sum, cost
from minigrad.rewrite.terms import Terms
from minigrad.study import formula
from minigrad.study.derivation import Derivation, Step, Value
from minigrad.study.formula import Formula
from minigrad.study.names import Names
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_SIZES = "mnkpq"
_LETTERS = "ABCDEF"


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
        tensors = [k for k, v in local.items() if isinstance(v, TensorBase)]
        names = {k: local[k] for k in tensors if not k.startswith("_")}
    gs = _list(cotangents) if cotangents is not None else []
    if not gs and len(ys) == 1 and "g" in names and names["g"].shape == ys[0].shape:
        gs = [names["g"]]
    if gs and len(gs) != len(ys):
        raise ValueError(
            f"derive: expected one cotangent for each of {len(ys)} outputs, got {len(gs)}."
        )
    return _recorded(_Problem(ys, xs, gs, names), sizes)


def _list(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, TensorBase) else list(tensors)  # type: ignore[list-item]


class _Problem:
    """The graph built anew with its gradients, and what its nodes are called.

    Attributes:
        targets, gradients: the outputs, and the gradient for each of the inputs.
        helpers: named nodes that no output depends on: values that the gradient may meet.
        called: node -> name.
        results: the names of the gradients.
    """

    def __init__(
        self,
        ys: Sequence[Tensor],
        xs: Sequence[Tensor],
        gs: Sequence[Tensor],
        names: Mapping[str, Tensor],
    ):
        fresh = _copied([t.node for t in (*ys, *xs, *gs, *names.values())])
        self.targets, sources = [fresh[t.node] for t in ys], [fresh[t.node] for t in xs]
        for y, target in zip(ys, self.targets, strict=True):
            if not target.inputs:
                raise ValueError(
                    f"derive: expected an output with the graph it comes from, got {y.node!r}. "
                    "It was computed, and none of its inputs requires a gradient."
                )
        self.called = {fresh[t.node]: name for name, t in names.items()}
        weights = [fresh[t.node] for t in gs] or self._made_cotangents()
        adjoints: dict[Node, Node] = {}
        found = autodiff.gradients(self.targets, sources, weights, trace=adjoints)
        self.gradients = [g for g in found if g is not None]
        known = {n.id for n in [*topological(self.targets), *weights]}
        self.helpers = [n for n in self.called if n.inputs and n.id not in known]
        self.results = self._named_gradients(sources, adjoints)

    def _made_cotangents(self) -> list[Node]:
        made = [leaf(None, y.shape, y.dtype, y.device) for y in self.targets]
        for k, g in enumerate(made, start=1):
            self.called[g] = "g" if len(made) == 1 else f"g{k}"
        return made

    def _named_gradients(self, sources: list[Node], adjoints: dict[Node, Node]) -> list[str]:
        """Calls the gradient of x dx, and the cotangent of a value v on the way to it d_v."""
        called, results = self.called, list[str]()
        for k, (x, g) in enumerate(zip(sources, self.gradients, strict=True), start=1):
            results.append(called.setdefault(g, f"d{called.get(x, f'x{k}')}"))
        for n, g in sorted(adjoints.items(), key=lambda pair: pair[1].id):
            if n in called and g.inputs and n not in self.targets:
                called.setdefault(g, f"d_{called[n]}")
        if len(self.targets) == 1:
            called.setdefault(self.targets[0], "y")
        return results


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


def _recorded(problem: _Problem, sizes: Mapping[str, int] | None) -> Derivation:
    """The derivation: the problem simplified with a recorder that hears every step."""
    targets, helpers, results = problem.targets, problem.helpers, problem.results
    rewriting = Rewriting([*targets, *helpers, *problem.gradients])
    moved, fine = rewriting.refined, rewriting.fine
    of = {moved.get(n.id, n): name for n, name in problem.called.items()}
    axes = {n.attrs["axes"] for n in rewriting.nodes if n.op is sum_}
    names = Names(of, _sizes(rewriting.nodes, sizes), show_axes=len(axes) > 1)
    first = len(targets) + len(helpers)
    derivation = Derivation(cost(fine[first:], fine[: len(targets)]))
    parts = {n.id: "reader" for n in fine[len(targets) : first]}
    parts.update((n.id, "forward") for n in topological(fine[: len(targets)]))

    def recorder(algebra: Simplifier) -> _Recorder:
        names.algebra = algebra
        return _Recorder(derivation, names, parts)

    out = rewriting.recorded(recorder)
    derivation.after = cost(out[first:], out[: len(targets)])
    known = [n for n, v in derivation.values.items() if v.part == "reader"]
    known += [n for n in names.order if n.startswith("d_")]
    for name, node in zip(results, fine[first:], strict=True):
        using = [n for n in names.order if n != name and n not in known]
        terms = rewriting.walker.terms[node.id]
        with names.explaining(name, sorted(using, key=lambda n: not names.is_product(n))):
            derivation.closed[name] = names.factored(terms)
        computed = _computed_form(names, terms, using)
        if computed is not None:
            derivation.as_computed[name] = computed
    return derivation


class _Recorder:
    """Hears the simplifier and fills a derivation."""

    def __init__(self, derivation: Derivation, names: Names, parts: dict[int, str]):
        self.derivation, self.names, self.parts = derivation, names, parts
        self.steps: list[tuple[str, Formula, Formula]] = []

    def enter(self, n: Node) -> None:
        """A node is about to be simplified; its steps are shown with the next named value."""

    def __call__(self, rule: str, before: Any, after: Any) -> None:
        if isinstance(before, Sum):
            left = self.names.total(before)
        elif len(before) == 2:
            left = Formula("+", "", tuple(map(self.names.terms, before)))
        else:
            left = self.names.terms(before[0])
        step = rule, left, self.names.parts(after)
        if step[1] != step[2] and step not in self.steps:
            self.steps.append(step)

    def leave(self, n: Node, terms: Terms) -> None:
        """A node has been simplified."""
        names = self.names
        name = names.of.get(n)
        if name is not None and not _is_leaf(n):
            with names.explaining(name):
                simplified = names.terms(terms)
            steps = [Step(*s, name) for s in self.steps]
            part = self.parts.get(n.id, "backward")
            self.derivation.values[name] = Value(names.source(n), simplified, steps, part)
            self.steps = []
        names.learn(n, terms)


def _is_leaf(n: Node) -> bool:
    """A leaf, perhaps seen with other axes: there is nothing to say of it."""
    while n.inputs and n.op.kind in ("view", "identity"):
        n = n.inputs[0]
    return not n.inputs


def _sizes(nodes: Sequence[Node], sizes: Mapping[str, int] | None) -> dict[int, str]:
    if sizes is not None:
        return {n: name for name, n in sizes.items()}
    summed = [n for n in nodes if n.op is sum_ and n.derivative_order == 0]
    counts = dict.fromkeys(n.inputs[0].size // max(1, n.size) for n in summed)
    return dict(zip([n for n in counts if n > 8], _SIZES, strict=False))


def _computed_form(
    names: Names, terms: Terms, using: Sequence[str]
) -> tuple[Formula, dict[str, Formula]] | None:
    """One multiply-add for each full-size factor; the coefficients are computed in the small."""
    algebra = names.algebra
    top = algebra.extent(terms)
    rows = algebra.by_core(terms, top)
    full = any(algebra.varies(m) == top for p in rows.values() for m in p)
    if full or not 1 < len(rows) <= len(_LETTERS):
        return None
    small = [n for n in using if not names.is_product(n, algebra.top)]
    with names.explaining(None, sorted(small, key=lambda n: not names.is_product(n))):
        cores = {core: names.monomial(core) for core in rows}
        ordered = sorted(rows, key=lambda core: (not core, _place(names, cores[core])))
        letters = dict(zip(_LETTERS, ordered, strict=False))
        coefficients = {letter: names.terms(rows[core]) for letter, core in letters.items()}
    products = [
        formula.name(letter) * cores[core] if core else formula.name(letter)
        for letter, core in letters.items()
    ]
    return reduce(add, products), coefficients


def _place(names: Names, f: Formula) -> int:
    """g before c: what the gradient is linear in first."""
    return -1 if f in (formula.name("g"), formula.name("g1")) else names.place(f)
