"""Nested sums, graph -> graph: one reduction taken from another that is wanted too."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph import Node, topological
from minigrad.ops import sum_
from minigrad.rewrite.node_builder import NodeBuilder

Axes = frozenset[int]


def nested(roots: Sequence[Node], table: NodeBuilder) -> list[Node]:
    """Rule "nested sums": sum over A and B = sum over A of (sum over B), where that is wanted too.

    Where the axes of two sums of one value only overlap, both are taken from the sum over what they
    share. Changes the order of addition, to one nearer pairwise.
    """
    order = topological(roots, stop=lambda n: n.storage is not None)
    wanted: dict[int, list[Axes]] = {}
    for n in order:
        if n.op is sum_ and n.storage is None and n.dtype.is_floating:
            wanted.setdefault(n.inputs[0].id, []).append(frozenset(n.attrs["axes"]))
    inner: dict[tuple[int, Axes], Axes] = {}
    for x, sets in wanted.items():
        if len(sets) > 1:
            for axes in sets:
                part = _inner(axes, sets)
                if part:
                    inner[x, axes] = part
    if not inner:
        return list(roots)
    new: dict[int, Node] = {}

    def total(x: Node, axes: Axes) -> Node:
        part = inner.get((x.id, axes))
        if part:
            return table.sum(total(x, part), axes - part)
        return table.sum(new[x.id], axes)

    for n in order:
        table.here = n
        if n.op is sum_ and (n.inputs[0].id, frozenset(n.attrs["axes"])) in inner:
            new[n.id] = total(n.inputs[0], frozenset(n.attrs["axes"]))
        elif n.storage is not None or all(new[i.id] is i for i in n.inputs):
            new[n.id] = n
        else:
            new[n.id] = table.make(n.op, [new[i.id] for i in n.inputs], n.attrs)
    return [new[r.id] for r in roots]


def _inner(axes: Axes, sets: Sequence[Axes]) -> Axes:
    """The axes to sum over first: those of the largest sum that is part, or what all share."""
    parts = [s for s in sets if s < axes]
    if parts:
        return max(parts, key=lambda s: (len(s), sorted(s)))
    smallest = [s for s in sets if not any(t < s for t in sets)]
    shared = frozenset.intersection(*smallest)
    return shared if shared < axes else frozenset()
