"""Views, graph -> graph: an array that is also read in a finer shape is worked on in the finer one.

x.reshape(n, g, k, h, w) and x are one array; a sum over (n, h, w) of the one and a sum over
(k, h, w) of the other can share work only if both are written over the same axes. Afterwards such
reshapes stand only at the border of an elementwise region. Reshapes that only insert or drop axes
of extent 1 are left to the terms (`AxisChange`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod

from minigrad.graph import Node, Shape
from minigrad.ops import expand, reshape, sum_
from minigrad.ops.shapes import common_refinement
from minigrad.rewrite.catalogue import named
from minigrad.rewrite.node_builder import NodeBuilder

Split = tuple[Shape, ...]  # for each axis of a shape, the extents of the finer axes in its place


def split_axes(parts: Sequence[int], shape: Shape) -> Split:
    """What the axes of a shape are split into: [3, 4, 5] of (12, 1, 5) -> ((3, 4), (1,), (5,))."""
    remaining, out = list(parts), []
    for n in shape:
        group: list[int] = []
        while prod(group) < n:
            group.append(remaining.pop(0))
        out.append(tuple(group) or (1,))
    return tuple(out)


def _flat(split: Split) -> Shape:
    return tuple(chain.from_iterable(split))


def _plain(shape: Shape) -> Split:
    return tuple((n,) for n in shape)


def _long(shape: Shape) -> list[int]:
    return [n for n in shape if n != 1]


def _finer_shapes(nodes: Sequence[Node]) -> dict[Shape, Split]:
    """Shape -> what it is split into, for each shape that some reshape shows to be finer."""
    changes = [
        (n.inputs[0].shape, n.shape)
        for n in nodes
        if n.op is reshape and n.storage is None and _long(n.shape) != _long(n.inputs[0].shape)
    ]
    view: dict[Shape, Split] = {}
    before = None
    while before != view:
        before = dict(view)
        for pair in changes:
            a, b = (_flat(view.get(s, _plain(s))) for s in pair)
            parts = common_refinement(a, b)
            for shape in pair if parts is not None else ():
                split = split_axes(parts or (), shape)
                if any(len(g) > 1 for g in split):
                    view[shape] = split
    return view


def _common(a: Split, b: Split) -> Split | None:
    """A split of which both are coarser; an axis of extent 1 fits anything."""
    out: list[Shape] = []
    for s, t in zip(a, b, strict=True):
        if s == t or prod(t) == 1:
            out.append(s)
        elif prod(s) == 1:
            out.append(t)
        else:
            parts = common_refinement(s, t)
            if parts is None:
                return None
            out.append(tuple(parts))
    return tuple(out)


class _Refinement:
    """Builds nodes anew over finer axes. A visit gives None where it must be in its own shape."""

    def __init__(self, view: dict[Shape, Split], builder: NodeBuilder):
        self.view, self.builder = view, builder
        # Node id -> the node in its place, and what its own axes are split into there.
        self.new: dict[int, tuple[Node, Split]] = {}

    def unrefined(self, n: Node) -> Node:
        """A node in its own shape."""
        return self.builder.reshape(self.new[n.id][0], n.shape)

    def lifted(self, node: Node, split: Split, goal: Split) -> Node:
        """The same elements over the finer axes of `goal`, or 1s where there is one element."""
        parts = ((1,) * len(q) if prod(p) == 1 else q for p, q in zip(split, goal, strict=True))
        return self.builder.reshape(node, _flat(tuple(parts)))

    def visit(self, n: Node) -> tuple[Node, Split]:
        if n.storage is None:
            if n.op.kind in ("map", "identity") and n.inputs:
                found = self._elementwise(n)
            else:
                rules = {expand: self._expand, sum_: self._sum, reshape: self._reshape}
                found = rules[n.op](n) if n.op in rules else None
            if found is not None:
                return found
        opaque = n
        if n.inputs and n.storage is None:
            opaque = self.builder.make(n.op, [self.unrefined(i) for i in n.inputs], n.attrs)
        split = self.view.get(n.shape, _plain(n.shape))
        return self.builder.reshape(opaque, _flat(split)), split

    def _elementwise(self, n: Node) -> tuple[Node, Split] | None:
        splits = [self.new[i.id][1] for i in n.inputs]
        if any(i.shape != n.shape for i in n.inputs):  # sources of a checkpoint
            return None
        goal: Split | None = splits[0]
        for s in splits[1:]:
            goal = goal and _common(goal, s)
        if goal is None:
            return None
        inputs = []
        for i in n.inputs:
            node, s = self.new[i.id]
            if s != goal:
                node = self.lifted(node, s, goal)
            inputs.append(node)
        return self.builder.make(n.op, inputs, n.attrs), goal

    def _expand(self, n: Node) -> tuple[Node, Split] | None:
        node, s = self.new[n.inputs[0].id]
        goal = _common(s, self.view.get(n.shape, _plain(n.shape)))
        if goal is None:
            return None
        return self.builder.expand(self.lifted(node, s, goal), _flat(goal)), goal

    def _sum(self, n: Node) -> tuple[Node, Split]:
        node, s = self.new[n.inputs[0].id]
        axes: list[int] = []
        first = 0
        for axis, group in enumerate(s):
            if axis in n.attrs["axes"]:
                axes.extend(range(first, first + len(group)))
            first += len(group)
        split = tuple((1,) * len(g) if axis in n.attrs["axes"] else g for axis, g in enumerate(s))
        return self.builder.sum(node, axes), split

    def _reshape(self, n: Node) -> tuple[Node, Split] | None:
        node, s = self.new[n.inputs[0].id]
        parts = common_refinement(_flat(s), n.shape)
        if parts is None:
            return None
        split = split_axes(parts, n.shape)
        return self.builder.reshape(node, _flat(split)), split


@named(
    "views",
    "x.reshape(...) is x: sums are written over the finest axes that the graph uses",
    kind="graph",
)
def refine(
    nodes: Sequence[Node], roots: Sequence[Node], builder: NodeBuilder
) -> tuple[list[Node], dict[int, Node]]:
    """The roots over the finest axes that the graph uses, and the changed nodes by old id.

    Args:
        nodes: the graph in topological order.
    """
    view = _finer_shapes(nodes)
    if not view:
        return list(roots), {}
    refinement = _Refinement(view, builder)
    for n in nodes:
        builder.here = n
        refinement.new[n.id] = refinement.visit(n)
    changed = {n.id: refinement.new[n.id][0] for n in nodes}
    return [refinement.unrefined(r) for r in roots], changed
