"""The walk that turns nodes into terms by the rules, and back.

[Note: one pass] Nodes are visited in the order they were built: the forward, then the chain rule as
it was applied. That is the order a reader wants, and with it one pass reaches the minimum of
reductions whatever the order of the outputs.

[Note: termination] Give a leaf or an opaque symbol level 0, a kept sum one more than the highest
symbol of its form, a reduction the levels of its summand; order Sums by the multiset of levels,
then the number of axes, then of terms and factors. "open" and "open centre" replace a symbol by
lower ones; "linearity", "count" and "invariant factor" pass on sub-collections; "split" passes on
fewer axes; "one sum" adds axes, but only where neither "split" nor itself can apply again. One step
goes up, several terms to one kept sum: only "open" could undo it, and refuses a Sum that is being
worked on. A trial may not start further trials. Whatever the rules: each passes on finitely many
Sums, and a Sum within MOST_NESTED others stays as it is, so the walk ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import isfinite, prod
from typing import Any, NamedTuple

from minigrad.graph import Node, Primitive, const_op, const_value
from minigrad.ops import (
    add,
    bitwise_and,
    cast,
    div,
    expand,
    less,
    less_equal,
    mul,
    neg,
    permute,
    pow_,
    reshape,
    rsqrt,
    sqrt,
    sub,
    sum_,
    where,
)
from minigrad.ops.control import checkpoint_op, stop_gradient_op, variable_op
from minigrad.ops.shapes import matched_axes
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.rules import RULES, Parts, Rule, Sum, labels_and_axis
from minigrad.rewrite.terms import (
    ONE,
    Algebra,
    Coefficient,
    Exponent,
    Hidden,
    Monomial,
    Terms,
    axes_of,
    meant,
    ratio,
    scaled,
)
from minigrad.rewrite.to_nodes import NodeWriter

# Sums are worked on inside others no deeper than this; random graphs need 14.
MOST_NESTED = 64
# Kept sums within kept sums are followed this far through a change of axes.
DEEPEST_FORM = 8


class _Opaque(Exception):
    """How a visit says that the node is not to be looked into."""


class Simplifier(Algebra):
    """Rewrites one graph.

    Args:
        early: whether a node is computed before the backward that is being simplified.
        known: ids of reductions that are made anyway, as an earlier run on this table found.
        off: names of rules that do not apply.
        record: told of every node entered and left, and of every rule applied.
    """

    def __init__(
        self,
        table: NodeBuilder,
        early: Callable[[Node], bool],
        known: Collection[int] = (),
        off: Collection[str] = (),
        record: Any = None,
    ):
        self.lowering = NodeWriter(table)
        super().__init__(self.lowering.lower, off, record)
        self.lowering.algebra = self
        self.table, self.early, self.known = table, early, known
        self.rules = [(name, rule) for name, rule in RULES.items() if name not in self.off]
        self.terms: dict[int, Terms] = {}  # node id -> its value
        self.totals: dict[Any, Terms] = {}  # Sum.key -> its value
        self.reduced: dict[int, Sum] = {}  # symbol -> the Sum that it is
        self.indicators: dict[int, tuple[Node, int]] = {}  # symbol -> (labels, axis) of a one-hot
        self.busy: set[Any] = set()  # keys of the Sums that are being worked on
        self.trial = 0  # how many trials deep
        self.made: dict[int, int] = {}  # reduction node id -> elements it reads
        self._dear: list[tuple[Rule, Sum]] = []  # what was not affordable
        self._written: dict[int, Node] = {}
        self._summands: dict[Monomial, tuple[Node, Coefficient]] = {}
        self._moved: dict[tuple[Any, ...], int | None] = {}
        self._visits: dict[Primitive, Callable[[Node, list[Terms]], Terms]] = {
            add: lambda n, p: self.fold(self.add(p[0], p[1])),
            sub: lambda n, p: self.fold(self.add(p[0], p[1], -1)),
            neg: lambda n, p: scaled(p[0], -1),
            mul: lambda n, p: self.fold(self.mul(p[0], p[1])),
            div: lambda n, p: self.fold(self.mul(p[0], self._raised(p[1], -1))),
            sqrt: lambda n, p: self._raised(p[0], 0.5),
            rsqrt: lambda n, p: self._raised(p[0], -0.5),
            pow_: self._visit_pow,
            sum_: self._visit_sum,
            expand: lambda n, p: p[0],
            stop_gradient_op: lambda n, p: p[0],
            checkpoint_op: lambda n, p: p[0],
            variable_op: self._visit_variable,
            reshape: self._reframed,
            permute: self._reframed,
            where: self._visit_where,
            cast: self._visit_cast,
        }

    def release(self) -> None:
        """Undo the references among its parts, which only the cycle collector would free."""
        vars(self.lowering).clear()
        vars(self).clear()

    # --- nodes to terms --------------------------------------------------------------------------

    def run(self, nodes: Sequence[Node], roots: Sequence[Node]) -> list[Node]:
        """Simplified roots. `nodes` is the graph in the order to walk it."""
        tops: dict[int, int] = {}
        for n in nodes:
            tops[n.ndim] = tops.get(n.ndim, 0) | axes_of(n.shape)
        # A constant that somebody wants as an array is data that happens to be constant, such as
        # running statistics: the next step should not need other kernels than the first.
        self._arrays = {r.id for r in roots if r.ndim and const_value(r) is not None}
        for n in nodes:
            self.here = self.table.here = n
            self.top = tops[n.ndim]
            if self.record is not None:
                self.record.enter(n)
            self.terms[n.id] = self._visit(n)
            self._keep_as_written(n)
            if self.record is not None:
                self.record.leave(n, self.terms[n.id])
        out = []
        for r in roots:
            self.table.here = r
            out.append(self.value(r))
        return out

    def _visit(self, n: Node) -> Terms:
        if n.storage is not None or not n.inputs:
            if n.op is const_op and n.storage is None and n.dtype.is_floating:
                k = n.attrs["value"]
                if isfinite(k):
                    return {(): meant(k)} if k else {}
            self._written[n.id] = n
            return {((self.symbol(n), 1),): 1}
        visit = self._visits.get(n.op)
        if n.id in self._arrays:
            visit = None
        if visit is not None and n.dtype.is_floating and 0 not in n.shape:
            try:
                return visit(n, [self.terms[i.id] for i in n.inputs])
            except (_Opaque, Hidden, OverflowError):
                pass
        symbol = self._opaque(n)
        self._written[n.id] = self.node[symbol]
        return {((symbol, 1),): 1}

    def _opaque(self, n: Node) -> int:
        waits = max([self.wait(m) for i in n.inputs for m in self.terms[i.id]], default=0)
        node = self.table.make(n.op, [self.value(i) for i in n.inputs], n.attrs)
        return self.symbol(node, None, waits)

    def _raised(self, p: Terms, r: Exponent) -> Terms:
        if not p:
            if r < 0:
                raise _Opaque  # infinite
            return {} if r else ONE
        if "power of a root" in self.off and not isinstance(r, int):
            raise _Opaque
        if len(p) == 1 and () in p and not isinstance(r, int):
            if p[()] < 0:
                raise _Opaque
            return {(): meant(float(p[()]) ** r)}
        return self.power(p, r)

    def _visit_pow(self, n: Node, inputs: list[Terms]) -> Terms:
        base, exponent = inputs
        if exponent and (len(exponent) > 1 or () not in exponent):
            raise _Opaque
        r = exponent.get((), 0)
        return self._raised(base, r if isinstance(r, int) else float(r))

    def _visit_sum(self, n: Node, inputs: list[Terms]) -> Terms:
        shape = n.inputs[0].shape
        if 0 in shape:
            raise _Opaque
        return self.total(Sum(inputs[0], sum([1 << a for a in n.attrs["axes"]]), shape))

    def _visit_variable(self, n: Node, inputs: list[Terms]) -> Terms:
        """A leaf; but a copy that a checkpoint made, of what needs a gradient, must stay a copy."""
        x = n.inputs[0]
        if x.needs_grad:
            raise _Opaque
        while x.op is stop_gradient_op and x.storage is None:
            x = x.inputs[0]
        if x.storage is None:
            raise _Opaque
        return inputs[0]

    def _visit_where(self, n: Node, inputs: list[Terms]) -> Terms:
        """One-hot times k for where(label == class, k, 0). An infinite k gives NaN elsewhere."""
        found = labels_and_axis(n.inputs[0]) if not inputs[2] else None
        if found is None or self.extent(inputs[1]) >> found[1] & 1:
            raise _Opaque
        symbol = self._indicator(n.inputs[0], found, n)
        return self.mul(inputs[1], {((symbol, 1),): 1})

    def _visit_cast(self, n: Node, inputs: list[Terms]) -> Terms:
        found = labels_and_axis(n.inputs[0])
        if found is None:
            raise _Opaque
        return {((self._indicator(n.inputs[0], found, n), 1),): 1}

    def _indicator(self, condition: Node, found: tuple[Node, int], like: Node) -> int:
        node = self.table.make(cast, (self.value(condition),), {"dtype": like.dtype})
        symbol = self.symbol(node)
        self.indicators.setdefault(symbol, found)
        return symbol

    def in_range(self, one_hot: tuple[Node, int], s: Sum) -> tuple[Terms, Sum] | None:
        """[0 <= labels < classes] and what is left to sum, if `s` adds up a one-hot's classes."""
        labels, axis = one_hot
        if not s.axes >> axis & 1:
            return None
        table, n = self.table, labels
        numbers = [table.expand(table.number(k, n), n.shape) for k in (0, s.shape[axis])]
        low = table.make(less_equal, (numbers[0], n), {})
        high = table.make(less, (n, numbers[1]), {})
        both = table.make(bitwise_and, (low, high), {})
        symbol = self.symbol(table.make(cast, (both,), {"dtype": self.here.dtype}))
        shape = tuple([1 if a == axis else e for a, e in enumerate(s.shape)])
        return ONE, Sum({((symbol, 1),): 1}, s.axes & ~(1 << axis), shape)

    def _keep_as_written(self, n: Node) -> None:
        """A value with no reduction in its formula has nothing to gain: it stays as written.

        Kept un-broadcast, as terms are. Opaque nodes are written by `_visit`.
        """
        written = self._written
        if n.op is const_op:
            written[n.id] = n
        if n.id in written or n.op is sum_ or not all(i.id in written for i in n.inputs):
            return
        if n.op.kind == "map" or n.op is reshape or n.op is permute:
            full = [self.table.expand(written[i.id], i.shape) for i in n.inputs]
            written[n.id] = self.table.make(n.op, full, n.attrs)
        else:
            written[n.id] = written[n.inputs[0].id]

    # --- changes of axes -------------------------------------------------------------------------

    def _reframed(self, n: Node, inputs: list[Terms]) -> Terms:
        """Terms over the axes of a reshape or a permutation, symbol by symbol.

        Not where a symbol varies along some of the axes that are merged into one.
        """
        x = n.inputs[0]
        if n.op is permute:
            change = _Change(permute, n.attrs["axes"], ())
        else:
            change = _Change(reshape, (x.shape, n.shape), matched_axes(x.shape, n.shape))
        out = self._moved_terms(inputs[0], change, 0)
        if out is None:
            raise _Opaque
        return out

    def _moved_terms(self, p: Terms, change: _Change, depth: int) -> Terms | None:
        out: Terms = {}
        for m, k in p.items():
            factors = []
            for symbol, e in m:
                moved = self._moved_symbol(symbol, change, depth)
                if moved is None:
                    return None
                factors.append((moved, e))
            out[tuple(sorted(factors))] = k
        return out

    def _moved_symbol(self, symbol: int, change: _Change, depth: int) -> int | None:
        key = symbol, change.op, change.key
        if key not in self._moved:
            form, moved = self.form[symbol], None
            if form and depth < DEEPEST_FORM:
                terms = self._moved_terms(form, change, depth + 1)
                moved = None if terms is None else self.keep(terms)
            if moved is None:
                node = self._moved_node(self.node[symbol], change)
                moved = None if node is None else self.symbol(node, None, self.waits[symbol])
            self._moved[key] = moved
        return self._moved[key]

    def _moved_node(self, x: Node, change: _Change) -> Node | None:
        if change.op is permute:
            return self.table.permute(x, change.key)
        after = change.key[1]
        target = [1] * len(after)
        for left, right in change.blocks:
            varying = [x.shape[i] != 1 for i in left]
            if all(varying):
                for j in right:
                    target[j] = after[j]
            elif any(varying):
                return None
        return self.table.reshape(x, tuple(target))

    # --- reductions ------------------------------------------------------------------------------

    def total(self, s: Sum) -> Terms:
        """The value of a reduction, by the first rule that applies, or as a reduction."""
        key = s.key
        out = self.totals.get(key)
        if out is not None:
            if self.record is not None:
                self.record("same value", s, out)
            return out
        if key in self.busy or len(self.busy) == MOST_NESTED:  # the first: only with rules off
            return self._reduction(s)
        self.busy.add(key)
        try:
            out = self.totals[key] = self.fold(self._by_rule(s))
        finally:
            self.busy.discard(key)
        return out

    def _by_rule(self, s: Sum) -> Terms:
        for name, rule in self.rules:
            self._rule = rule
            try:
                parts = rule(self, s)
                if parts is not None:
                    if self.record is not None:
                        self.record(name, s, parts)
                    return self._combined(parts)
            except Hidden:  # only with rules switched off
                continue
        return self._reduction(s)

    def _combined(self, parts: Parts) -> Terms:
        out: Terms = {}
        for k, inner in parts:
            out = self.add(out, k if inner is None else self.mul(k, self.total(inner)))
        return out

    def _reduction(self, s: Sum) -> Terms:
        """No rule applies: a node that adds up."""
        # Several terms, and factors that do not vary, are met only with rules switched off.
        p = self.whole(s.terms) if len(s.terms) > 1 else s.terms
        ((m, c),) = p.items()
        x, k = self._summand(m) if m else (self.table.number(1.0, self.here, len(s.shape)), 1)
        axes = [a for a in range(len(s.shape)) if s.axes >> a & 1]
        shape = tuple([s.shape[a] if a in axes else n for a, n in enumerate(x.shape)])
        x = self.table.expand(x, shape)
        node = self.table.sum(x, axes)
        symbol = self.symbol(node, None, 0 if self.early(self.here) else self.wait(m) + 1)
        self.reduced[symbol] = s.of({m: k})
        self.made[node.id] = x.size
        return {((symbol, 1),): ratio(c, k)}

    def _summand(self, m: Monomial) -> tuple[Node, Coefficient]:
        """The node to sum for a monomial, and the number of times the monomial that it is.

        That is what the graph itself sums where it is a plain multiple of a product: it may be in
        memory anyway.
        """
        found = self._summands.get(m)
        if found is None and len(m) == 1 and m[0][1] == 1:
            found = self._summands[m] = self.node[m[0][0]], 1
        if found is None:
            n = self.here.inputs[0] if self.here.op is sum_ else self.here
            p = self.terms.get(n.id, {})
            if len(p) > 1:
                p = self.whole(p)
            found = self.lowering.lower({m: 1}), 1
            if set(p) == {m}:
                node = self._value_unexpanded(n)
                if axes_of(node.shape) == self.varies(m):
                    found = node, p[m]
            self._summands[m] = found
        return found

    def if_affordable(self, s: Sum, parts: Parts, most: int | None = None) -> Parts | None:
        """The parts, if the reductions they add read less than twice what the replaced one reads.

        Tried out and undone. Counting what is read, not reductions, makes small sums cost nothing.

        Args:
            most: terms that the result may have.
        """
        totals, made, record, self.record = len(self.totals), len(self.made), self.record, None
        rule, dear = self._rule, len(self._dear)
        self.trial += 1
        try:
            out = self._combined(parts)
            new = list(self.made)[made:]
            reads = sum([self.made[i] for i in new if i not in self.known])
        except Hidden:
            return None
        finally:
            self.trial -= 1
            self.record, self._rule = record, rule
            del self._dear[dear:]
            while len(self.totals) > totals:
                self.totals.popitem()
            while len(self.made) > made:
                self.made.popitem()
        if most is not None and len(out) > most:
            return None
        axes = self.extent(s.terms)
        replaced = prod([n for a, n in enumerate(s.shape) if axes >> a & 1])
        if reads < 2 * replaced:
            return parts
        if self.trial == 0:
            self._dear.append((rule, s))
        return None

    def has_second_thoughts(self) -> bool:
        """Whether a sum that was kept could be taken apart, now that all reductions are known."""
        dear, self._dear = self._dear, []
        before, self.known = self.known, self.made.keys()
        found = any(rule(self, s) is not None for rule, s in dear)
        self.known = before
        return found

    # --- terms to nodes --------------------------------------------------------------------------

    def value(self, n: Node) -> Node:
        """The node that computes what `n` does."""
        return self.table.expand(self._value_unexpanded(n), n.shape)

    def _value_unexpanded(self, n: Node) -> Node:
        written = self._written.get(n.id) or self._view(n)
        return written or self.lowering.lower_like(self.terms[n.id], n)

    def _view(self, n: Node) -> Node | None:
        """The value of a view as a view: a copy with other axes would be computed anew."""
        if n.op is not reshape and n.op is not permute:
            return None
        x = self._value_unexpanded(n.inputs[0])
        if x.shape != n.inputs[0].shape:
            return None
        if n.op is permute:
            return self.table.permute(x, n.attrs["axes"])
        return self.table.reshape(x, n.shape)


class _Change(NamedTuple):
    """A reshape or a permutation."""

    op: Primitive
    key: Any  # shapes before and after, or the order of the axes
    blocks: list[tuple[list[int], list[int]]] | tuple[()]
