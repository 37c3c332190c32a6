"""The walk that turns nodes into terms by the rules, and back.

[Note: one pass] Nodes are visited in the order they were built: the forward, then the chain rule as
it was applied. That is the order a reader wants, and with it one pass reaches the minimum of
reductions whatever the order of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any

from minigrad import ops
from minigrad.graph import Node, Primitive, const_op, const_value
from minigrad.ops.control import checkpoint_op, stop_gradient_op, variable_op
from minigrad.rewrite.axes import AxisChange, reshaping
from minigrad.rewrite.catalogue import named
from minigrad.rewrite.one_hot import indicator, labels_and_axis
from minigrad.rewrite.rules import RULES
from minigrad.rewrite.sums import Reductions, Sum
from minigrad.rewrite.terms import ONE, Exponent, Hidden, Terms, axes_of, meant, scaled


class _Opaque(Exception):
    """How a visit says that the node is not to be looked into."""


class Simplifier(Reductions):
    """Rewrites one graph: visits its nodes and gives each its terms.

    `record` is told of every node entered and left, too.
    """

    all_rules = RULES

    def release(self) -> None:
        """Undo the references among its parts, which only the cycle collector would free."""
        vars(self.writer).clear()
        vars(self).clear()

    # --- nodes to terms --------------------------------------------------------------------------

    def run(self, nodes: Sequence[Node], roots: Sequence[Node]) -> list[Node]:
        """Simplified roots. `nodes` is the graph in the order to walk it."""
        tops: dict[int, int] = {}
        for n in nodes:
            tops[n.ndim] = tops.get(n.ndim, 0) | axes_of(n.shape)
        self._written: dict[int, Node] = {}  # node id -> the node as it stays written
        self._changes: dict[tuple[Any, ...], AxisChange] = {}
        # A root that is a constant array is opaque: it is data, such as running statistics at their
        # start, and with another value in the next step it must not need other kernels.
        self._arrays = {r.id for r in roots if r.ndim and const_value(r) is not None}
        for n in nodes:
            self.here = self.builder.here = n
            self.top = tops[n.ndim]
            if self.record is not None:
                self.record.enter(n)
            self.terms[n.id] = self._visit(n)
            self._keep_as_written(n)
            if self.record is not None:
                self.record.leave(n, self.terms[n.id])
        out = []
        for r in roots:
            self.builder.here = r
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
        visit = _VISITS.get(n.op)
        if n.id in self._arrays:
            visit = None
        if visit is not None and n.dtype.is_floating and 0 not in n.shape:
            try:
                return visit(self, n, [self.terms[i.id] for i in n.inputs])
            except (_Opaque, Hidden, OverflowError):
                pass
        symbol = self._opaque(n)
        self._written[n.id] = self.node[symbol]
        return {((symbol, 1),): 1}

    def _opaque(self, n: Node) -> int:
        waits = max([self.wait(m) for i in n.inputs for m in self.terms[i.id]], default=0)
        node = self.builder.make(n.op, [self.value(i) for i in n.inputs], n.attrs)
        return self.symbol(node, None, waits)

    @named("power of a root", "sqrt(x)^2 = x", hides=True)
    def raised(self, p: Terms, r: Exponent) -> Terms:
        """Without it, no root is taken apart. Hides that x is negative, or a NaN."""
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

    def visit_pow(self, n: Node, inputs: list[Terms]) -> Terms:
        """A power, if the exponent is a plain number."""
        base, exponent = inputs
        if exponent and (len(exponent) > 1 or () not in exponent):
            raise _Opaque
        r = exponent.get((), 0)
        return self.raised(base, r if isinstance(r, int) else float(r))

    def visit_sum(self, n: Node, inputs: list[Terms]) -> Terms:
        """A reduction, unless it is over no elements."""
        shape = n.inputs[0].shape
        if 0 in shape:
            raise _Opaque
        return self.total(Sum(inputs[0], sum([1 << a for a in n.attrs["axes"]]), shape))

    def visit_variable(self, n: Node, inputs: list[Terms]) -> Terms:
        """A leaf; but a copy that a checkpoint made, of what needs a gradient, must stay a copy."""
        x = n.inputs[0]
        if x.needs_grad:
            raise _Opaque
        while x.op is stop_gradient_op and x.storage is None:
            x = x.inputs[0]
        if x.storage is None:
            raise _Opaque
        return inputs[0]

    def visit_axes(self, n: Node, inputs: list[Terms]) -> Terms:
        """Opaque where a symbol varies along some of the axes that are merged into one."""
        before = n.inputs[0].shape
        after = n.attrs["axes"] if n.op is ops.permute else n.shape
        change = self._changes.get((n.op, before, after))
        if change is None:
            move: Callable[[Node], Node | None] = partial(self.builder.permute, axes=after)
            if n.op is ops.reshape:
                move = reshaping(self.builder, before, after)
            change = self._changes[n.op, before, after] = AxisChange(self, move)
        out = change.terms(inputs[0])
        if out is None:
            raise _Opaque
        return out

    def visit_where(self, n: Node, inputs: list[Terms]) -> Terms:
        """One-hot times k for where(label == class, k, 0). An infinite k gives NaN elsewhere."""
        found = labels_and_axis(n.inputs[0]) if not inputs[2] else None
        if found is None or self.extent(inputs[1]) >> found[1] & 1:
            raise _Opaque
        symbol = indicator(self, self.value(n.inputs[0]), found, n)
        return self.mul(inputs[1], {((symbol, 1),): 1})

    def visit_cast(self, n: Node, inputs: list[Terms]) -> Terms:
        """One-hot labels."""
        found = labels_and_axis(n.inputs[0])
        if found is None:
            raise _Opaque
        return {((indicator(self, self.value(n.inputs[0]), found, n), 1),): 1}

    def _keep_as_written(self, n: Node) -> None:
        """A value with no reduction in its formula has nothing to gain: it stays as written.

        Kept un-broadcast, as terms are. Opaque nodes are written by `_visit`.
        """
        written = self._written
        if n.op is const_op:
            written[n.id] = n
        if n.id in written or n.op is ops.sum_ or not all(i.id in written for i in n.inputs):
            return
        if n.op.kind == "map" or n.op is ops.reshape or n.op is ops.permute:
            full = [self.builder.expand(written[i.id], i.shape) for i in n.inputs]
            written[n.id] = self.builder.make(n.op, full, n.attrs)
        else:
            written[n.id] = written[n.inputs[0].id]

    # --- terms to nodes --------------------------------------------------------------------------

    def value(self, n: Node) -> Node:
        """The node that computes what `n` does."""
        return self.builder.expand(self.unexpanded(n), n.shape)

    def unexpanded(self, n: Node) -> Node:
        """As written, or else by its terms."""
        written = self._written.get(n.id) or self._view(n)
        return written or self.writer.lower_like(self.terms[n.id], n)

    def _view(self, n: Node) -> Node | None:
        """The value of a view as a view: a copy with other axes would be computed anew."""
        if n.op is not ops.reshape and n.op is not ops.permute:
            return None
        x = self.unexpanded(n.inputs[0])
        if x.shape != n.inputs[0].shape:
            return None
        if n.op is ops.permute:
            return self.builder.permute(x, n.attrs["axes"])
        return self.builder.reshape(x, n.shape)


_VISITS: dict[Primitive, Callable[[Simplifier, Node, list[Terms]], Terms]] = {
    ops.add: lambda a, n, p: a.fold(a.add(p[0], p[1])),
    ops.sub: lambda a, n, p: a.fold(a.add(p[0], p[1], -1)),
    ops.neg: lambda a, n, p: scaled(p[0], -1),
    ops.mul: lambda a, n, p: a.fold(a.mul(p[0], p[1])),
    ops.div: lambda a, n, p: a.fold(a.mul(p[0], a.raised(p[1], -1))),
    ops.sqrt: lambda a, n, p: a.raised(p[0], 0.5),
    ops.rsqrt: lambda a, n, p: a.raised(p[0], -0.5),
    ops.pow_: Simplifier.visit_pow,
    ops.sum_: Simplifier.visit_sum,
    ops.expand: lambda a, n, p: p[0],
    ops.reshape: Simplifier.visit_axes,
    ops.permute: Simplifier.visit_axes,
    ops.where: Simplifier.visit_where,
    ops.cast: Simplifier.visit_cast,
    stop_gradient_op: lambda a, n, p: p[0],
    checkpoint_op: lambda a, n, p: p[0],
    variable_op: Simplifier.visit_variable,
}
