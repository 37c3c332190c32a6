"""Algebraic simplification, graph -> graph: equal values from fewer and earlier reductions.

Each value is held as a sum of products of powers (`terms.py`, `algebra.py`), each reduction brought
to a combination of simpler ones (`sums.py`) by named rules (`rules.py`), in one walk over the graph
(`walk.py`), and turned into nodes again (`to_nodes.py`). `catalogue.py` lists rules of every kind.
Values are equal in real arithmetic, wherever the unsimplified ones are finite. `barrier` stops the
algebra; casts, integers and every op that is not arithmetic are symbols to it. Only leaves of this
graph are read: nothing is looked up in what the process has computed otherwise, so the result
depends on the structure of the graph and its constants alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import prod
from typing import Any, NamedTuple

from minigrad.graph import Node, topological
from minigrad.ops import expand, reshape, sum_
from minigrad.rewrite.catalogue import CATALOGUE, statements
from minigrad.rewrite.nested_sums import nested
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.rules import RULES
from minigrad.rewrite.sums import Sum
from minigrad.rewrite.views import refine
from minigrad.rewrite.walk import Simplifier

__all__ = [
    "CATALOGUE",
    "HIDING",
    "RULES",
    "STATEMENTS",
    "Cost",
    "Rewriting",
    "Simplifier",
    "Sum",
    "cost",
    "simplify",
]

STATEMENTS = statements()
HIDING = statements(hiding=True)

# A simplified graph whose reductions read more than this much of what they did is not worth it.
MOST_READS = 1.3


def simplify(
    roots: Sequence[Node],
    given: Collection[int] | None = None,
    off: Collection[str] = (),
) -> list[Node]:
    """Nodes with the values of `roots`, from fewer and earlier reductions.

    Args:
        given: ids of the nodes whose reductions happen anyway and early, the forward. By default
            those that no gradient built (`Node.derivative_order`).
        off: names of rules that do not apply (`STATEMENTS` lists them). Without those in `HIDING`
            every NaN and infinity of the unsimplified values is still there.
    """
    rewriting = Rewriting(roots, given, off)
    out = rewriting.run()
    rewriting.release()
    return out if _reads(out) <= MOST_READS * _reads(roots) else list(roots)


class Rewriting:
    """One graph with what its simplification makes.

    `fine` are the roots over the finest axes (rule "views"), `refined` the nodes that changed for
    that, by the id they had; `nodes` is the graph to walk, `walker` what walked it last.
    """

    def __init__(
        self,
        roots: Sequence[Node],
        given: Collection[int] | None = None,
        off: Collection[str] = (),
    ):
        nodes = topological(roots, stop=_is_stored)
        if given is None:
            given = {n.id for n in nodes if n.derivative_order == 0}
        self.off = frozenset(off)
        self.builder = NodeBuilder(nodes)
        self._first = frozenset(given) if len(given) < len(nodes) else frozenset()
        self.fine, self.refined = list(roots), {}
        if "views" not in off:
            self.fine, self.refined = refine(nodes, roots, self.builder)
        self.nodes = _in_order(self.fine, self.builder)
        self._walkers: list[Simplifier] = []
        self.walker = self._walker(())

    def _walker(self, known: Collection[int], record: Any = None) -> Simplifier:
        first, origin = self._first, self.builder.origin

        def early(n: Node) -> bool:
            return not first or origin.get(n.id, n.id) in first

        walker = Simplifier(self.builder, early, known, self.off, record)
        self._walkers.append(walker)
        return walker

    def release(self) -> None:
        """Let go of the graph: nodes, and so memory, must not wait for the cycle collector."""
        for walker in self._walkers:
            walker.release()

    def run(self) -> list[Node]:
        """The simplified roots."""
        out = self._run_walker()
        if self.walker.has_second_thoughts():
            self.walker = self._walker(frozenset(self.walker.new_reductions))
            out = self._run_walker()
        return out

    def recorded(self, record: Callable[[Simplifier], Any]) -> list[Node]:
        """The simplified roots; the steps of the last pass go to what `record` makes for it."""
        self.run()
        self.walker = self._walker(self.walker.known)
        self.walker.record = record(self.walker)
        out = self._run_walker()
        self.walker.record = None
        return out

    def _run_walker(self) -> list[Node]:
        out = self.walker.run(self.nodes, self.fine)
        return nested(out, self.builder) if "nested sums" not in self.off else out


def _in_order(roots: Sequence[Node], builder: NodeBuilder) -> list[Node]:
    """The graph in the order in which it was first built. See [Note: one pass].

    Leaves, constants and views come where they are first used: a view of a parameter may be left
    over from an earlier build, and results are not to depend on history.
    """
    nodes = topological(roots, stop=_is_stored)
    if builder.origin:
        place: dict[int, int] = {}
        for n in nodes:  # a node that was made for an early one may read one that was built late
            own = builder.origin.get(n.id, n.id)
            place[n.id] = max([own, *[place[i.id] for i in n.inputs if i.id in place]])
        nodes.sort(key=lambda n: (place[n.id], n.id))
    out: dict[int, Node] = {}
    for n in [*[n for n in nodes if not _is_passive(n)], *roots]:
        stack = [n]
        while stack:
            waiting = [] if _is_stored(stack[-1]) else stack[-1].inputs
            missing = [i for i in waiting if i.id not in out]
            if missing:
                stack.extend(reversed(missing))
            else:
                done = stack.pop()
                out[done.id] = done
    return list(out.values())


def _is_passive(n: Node) -> bool:
    return _is_stored(n) or not n.inputs or n.op.kind in ("view", "identity")


def _is_stored(n: Node) -> bool:
    return n.storage is not None


def _reads(roots: Sequence[Node]) -> int:
    """Elements that the reductions read."""
    nodes = topological(roots, stop=_is_stored)
    return sum([n.inputs[0].size for n in nodes if n.op is sum_ and n.storage is None])


class Cost(NamedTuple):
    """What a graph costs on large arrays."""

    reductions: int  # full-size ones
    sweeps: int  # the longest chain of those, and one more if a full-size array is written after it
    operations: int  # full-size elementwise


def cost(roots: Sequence[Node], free: Sequence[Node] = ()) -> Cost:
    """The cost of computing `roots` when `free` and all that they depend on are computed.

    Full-size: half as many elements as the largest array that a reduction here reads, or more.
    """
    nodes = topological(roots)
    done = {n.id for n in topological(free)}
    reducing = [n for n in nodes if n.op.kind == "reduce"]
    largest = max([prod(n.inputs[0].shape) for n in reducing] or [n.size for n in nodes])
    depth: dict[int, int] = {}
    reductions = operations = sweeps = 0
    for n in nodes:
        before = max([depth[i.id] for i in n.inputs], default=0)
        if n.id in done:
            before = 0
        elif n.op.kind == "reduce":
            if 2 * n.inputs[0].size >= largest:
                reductions += 1
                before += 1
        elif 2 * n.size >= largest and n.op.kind in ("map", "kernel"):
            operations += 1
        depth[n.id] = before
    for r in roots:
        shown = r
        while shown.op in (expand, reshape) and shown.inputs:
            shown = shown.inputs[0]
        if r.id not in done:
            writes = 2 * shown.size >= largest and bool(shown.inputs)
            sweeps = max(sweeps, depth[r.id] + writes)
    return Cost(reductions, sweeps, operations)
