"""Terms over other axes: a reshape or a permutation, applied symbol by symbol."""

from __future__ import annotations

from collections.abc import Callable

from minigrad.graph import Node, Shape
from minigrad.ops.shapes import matched_axes
from minigrad.rewrite.algebra import Algebra
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.terms import Terms

# Kept sums within kept sums are followed this far through a change of axes.
DEEPEST_FORM = 8


class AxisChange:
    """One change of axes.

    Args:
        move: gives a node over the other axes, or None where it cannot.
    """

    def __init__(self, algebra: Algebra, move: Callable[[Node], Node | None]):
        self.algebra, self.move = algebra, move
        self._moved: dict[int, int | None] = {}

    def terms(self, p: Terms, depth: int = 0) -> Terms | None:
        """The terms over the other axes; None where a symbol has none there."""
        out: Terms = {}
        for m, k in p.items():
            factors = []
            for symbol, e in m:
                moved = self._symbol(symbol, depth)
                if moved is None:
                    return None
                factors.append((moved, e))
            out[tuple(sorted(factors))] = k
        return out

    def _symbol(self, symbol: int, depth: int) -> int | None:
        if symbol not in self._moved:
            a, moved = self.algebra, None
            form = a.form[symbol]
            if form and depth < DEEPEST_FORM:
                terms = self.terms(form, depth + 1)
                moved = None if terms is None else a.keep(terms)
            if moved is None:
                node = self.move(a.node[symbol])
                moved = None if node is None else a.symbol(node, None, a.waits[symbol])
            self._moved[symbol] = moved
        return self._moved[symbol]


def reshaping(builder: NodeBuilder, before: Shape, after: Shape) -> Callable[[Node], Node | None]:
    """Reshapes nodes that vary along some axes of `before`, and along all that become one."""
    runs = matched_axes(before, after)

    def move(x: Node) -> Node | None:
        target = [1] * len(after)
        for left, right in runs:
            varying = [x.shape[i] != 1 for i in left]
            if all(varying):
                for j in right:
                    target[j] = after[j]
            elif any(varying):
                return None
        return builder.reshape(x, tuple(target))

    return move
