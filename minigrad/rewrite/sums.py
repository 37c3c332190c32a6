"""Reductions: each is brought to simpler ones by the first rule that applies, or stays one.

[Note: termination] Rules call each other through `Reductions.total`. That this ends:

1. Every symbol has a level: a leaf or an opaque node 0; a sum kept whole one more than the highest
   symbol of its form; a reduction that of its summand. A Sum is measured by the multiset of the
   levels of its symbols, then its number of axes, of terms, of factors.
2. Most rules pass on smaller Sums. "open" and "open centre" put lower symbols in place of one;
   "split" passes on fewer axes; "linearity", "count" and "invariant factor" fewer terms or factors.
3. "one sum" adds axes, but only where neither "split" nor itself can apply to what it gives.
4. One step makes a Sum larger: "invariant factor" keeps several terms as one sum. Only "open" could
   undo that, and it refuses a Sum that is being worked on (`busy`).
5. A trial (`if_affordable`) starts no further trials.
6. Should a new rule break this: a Sum within MOST_NESTED others stays as it is.

Worked: the d_mu of a BatchNorm, sum(-rho*d_xhat + rho^3*c*d_rho/m) where c is x - mu. "linearity"
gives two Sums of one term each. "invariant factor" passes on sum(g) and sum(c), of fewer factors.
"open" replaces c, of level 1, by x and mu, of level 0, and "linearity" passes on sum(x) and sum(mu)
apart. The first is known to be m*mu and the second is m*mu by "count": nothing is left of sum(c).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any, NamedTuple

from minigrad.graph import Node
from minigrad.ops import sum_
from minigrad.rewrite.algebra import Algebra
from minigrad.rewrite.catalogue import named
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.terms import Coefficient, Hidden, Monomial, Terms, axes_of, key_of, ratio
from minigrad.rewrite.to_nodes import NodeWriter

# Sums are worked on inside others no deeper than this; random graphs need 14.
MOST_NESTED = 64


class Sum(NamedTuple):
    """The sum of terms over the axes of a bit mask, in a region of the given shape."""

    terms: Terms
    axes: int
    shape: tuple[int, ...]

    @property
    def key(self) -> Any:
        """Equal for equal sums."""
        extents = tuple([n for a, n in enumerate(self.shape) if self.axes >> a & 1])
        return key_of(self.terms), self.axes, extents

    @property
    def count(self) -> int:
        """How many elements are added up."""
        return prod([n for a, n in enumerate(self.shape) if self.axes >> a & 1])

    def of(self, terms: Terms) -> Sum:
        """Other terms over the same axes."""
        return Sum(terms, self.axes, self.shape)

    def over(self, axes: int) -> Sum:
        """The same terms over other axes."""
        return Sum(self.terms, axes, self.shape)


Parts = list[tuple[Terms, Sum | None]]  # the sum of terms * Sum; terms alone beside None
Rule = Callable[["Reductions", Sum], Parts | None]


class Reductions(Algebra):
    """The algebra with the sums of a graph.

    Args:
        builder: makes the nodes.
        early: whether a node is computed before the backward that is being simplified.
        known: ids of reductions that are made anyway, as an earlier run with this builder found.
        off: names of rules that do not apply.
        record: told of every rule applied.
    """

    all_rules: Mapping[str, Rule] = {}  # in the order in which they are tried

    def __init__(
        self,
        builder: NodeBuilder,
        early: Callable[[Node], bool],
        known: Collection[int] = (),
        off: Collection[str] = (),
        record: Any = None,
    ):
        self.writer = NodeWriter(builder)
        super().__init__(self.writer.lower, off, record)
        self.writer.algebra = self
        self.builder, self.early, self.known = builder, early, known
        self.rules = [(name, rule) for name, rule in self.all_rules.items() if name not in self.off]
        self.here: Node  # the node in hand
        self.terms: dict[int, Terms] = {}  # node id -> its value
        self.totals: dict[Any, Terms] = {}  # Sum.key -> its value
        self.reduced: dict[int, Sum] = {}  # symbol -> the Sum that it is
        self.indicators: dict[int, tuple[Node, int]] = {}  # symbol -> (labels, axis) of a one-hot
        self.busy: set[Any] = set()  # keys of the Sums that are being worked on
        self.trial = 0  # how many trials deep
        self.new_reductions: dict[int, int] = {}  # node id -> elements that it reads
        self._deferred: list[tuple[Rule, Sum]] = []  # what was not affordable
        self._summands: dict[Monomial, tuple[Node, Coefficient]] = {}

    @named("same value", "equal expressions are one node")
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
        x, k = self._summand(m) if m else (self.builder.number(1.0, self.here, len(s.shape)), 1)
        axes = [a for a in range(len(s.shape)) if s.axes >> a & 1]
        x = self.builder.expand(
            x, tuple([s.shape[a] if a in axes else n for a, n in enumerate(x.shape)])
        )
        node = self.builder.sum(x, axes)
        symbol = self.symbol(node, None, 0 if self.early(self.here) else self.wait(m) + 1)
        self.reduced[symbol] = s.of({m: k})
        self.new_reductions[node.id] = x.size
        return {((symbol, 1),): ratio(c, k)}

    def _summand(self, m: Monomial) -> tuple[Node, Coefficient]:
        """The node to sum for a monomial, and the number of times the monomial that it is.

        That is what the graph itself sums where it is a plain multiple of a product: it may be in
        memory anyway.
        """
        found = self._summands.get(m)
        if found is None:
            symbol, e = m[0]
            plain = len(m) == 1 and e == 1
            found = self._summands[m] = (self.node[symbol], 1) if plain else self._product(m)
        return found

    def _product(self, m: Monomial) -> tuple[Node, Coefficient]:
        n = self.here.inputs[0] if self.here.op is sum_ else self.here
        p = self.terms.get(n.id, {})
        if len(p) > 1:
            p = self.whole(p)
        node = self.writer.lower({m: 1})
        if set(p) == {m}:
            written = self.unexpanded(n)
            if axes_of(written.shape) == self.varies(m):
                return written, p[m]
        return node, 1

    def unexpanded(self, n: Node) -> Node:
        """The node that computes what `n` does, with an extent of 1 where `n` does not vary."""
        return self.writer.lower_like(self.terms[n.id], n)

    # --- trials ----------------------------------------------------------------------------------

    def if_affordable(self, s: Sum, parts: Parts, most: int | None = None) -> Parts | None:
        """The parts, if the reductions they add read less than twice what the replaced one reads.

        Tried out and undone. Counting what is read, not reductions, makes small sums cost nothing.

        Args:
            most: terms that the result may have.
        """
        rule = self._rule
        found = self._tried(parts)
        self._rule = rule
        if found is None or (most is not None and len(found[0]) > most):
            return None
        axes = self.extent(s.terms)
        replaced = prod([n for a, n in enumerate(s.shape) if axes >> a & 1])
        if found[1] < 2 * replaced:
            return parts
        if self.trial == 0:
            self._deferred.append((rule, s))
        return None

    def _tried(self, parts: Parts) -> tuple[Terms, int] | None:
        """What the parts come to, and the elements that reductions would read for it."""
        totals, made, deferred = len(self.totals), len(self.new_reductions), len(self._deferred)
        record, self.record = self.record, None
        self.trial += 1
        try:
            out = self._combined(parts)
            new = list(self.new_reductions.items())[made:]
            return out, sum([reads for node, reads in new if node not in self.known])
        except Hidden:
            return None
        finally:
            self.trial -= 1
            self.record = record
            del self._deferred[deferred:]
            while len(self.totals) > totals:
                self.totals.popitem()
            while len(self.new_reductions) > made:
                self.new_reductions.popitem()

    def has_second_thoughts(self) -> bool:
        """Whether a sum that was kept could be taken apart, now that all reductions are known."""
        deferred, self._deferred = self._deferred, []
        before, self.known = self.known, self.new_reductions.keys()
        found = any(rule(self, s) is not None for rule, s in deferred)
        self.known = before
        return found
