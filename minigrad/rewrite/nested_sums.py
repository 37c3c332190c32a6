"""Nested sums, graph -> graph: one reduction taken from another that is wanted too."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph import Node, topological
from minigrad.ops import sum_
from minigrad.rewrite.catalogue import named
from minigrad.rewrite.node_builder import NodeBuilder

Axes = frozenset[int]
Key = tuple[int, Axes]  # of a reduction: the id of what it reads, and over what


@named(
    "nested sums",
    "sum over A and B = sum over A of (sum over B), where sum over B is wanted too",
    kind="graph",
)
def nested(roots: Sequence[Node], builder: NodeBuilder) -> list[Node]:
    """Where the axes of two sums only overlap, both are taken from the sum over what they share.

    Changes the order of addition, to one nearer pairwise.
    """
    order = topological(roots, stop=lambda n: n.storage is not None)
    first = _taken_first([n for n in order if n.op is sum_ and n.storage is None])
    if not first:
        return list(roots)
    new: dict[int, Node] = {}

    def total(x: Node, axes: Axes) -> Node:
        part = first.get((x.id, axes))
        return builder.sum(total(x, part), axes - part) if part else builder.sum(new[x.id], axes)

    for n in order:
        builder.here = n
        if n.op is sum_ and _key(n) in first:
            new[n.id] = total(n.inputs[0], _key(n)[1])
        elif n.storage is not None or all(new[i.id] is i for i in n.inputs):
            new[n.id] = n
        else:
            new[n.id] = builder.make(n.op, [new[i.id] for i in n.inputs], n.attrs)
    return [new[r.id] for r in roots]


def _key(n: Node) -> Key:
    return n.inputs[0].id, frozenset(n.attrs["axes"])


def _taken_first(sums: Sequence[Node]) -> dict[Key, Axes]:
    """The axes over which some reductions have another one taken first."""
    wanted: dict[int, list[Axes]] = {}
    for n in sums:
        if n.dtype.is_floating:
            x, axes = _key(n)
            wanted.setdefault(x, []).append(axes)
    found = {(x, axes): _inner(axes, sets) for x, sets in wanted.items() for axes in sets}
    return {key: inner for key, inner in found.items() if inner}


def _inner(axes: Axes, sets: Sequence[Axes]) -> Axes:
    """The axes to sum over first: those of the largest sum that is part, or what all share."""
    parts = [s for s in sets if s < axes]
    if parts:
        return max(parts, key=lambda s: (len(s), sorted(s)))
    smallest = [s for s in sets if not any(t < s for t in sets)]
    shared = frozenset.intersection(*smallest)
    return shared if shared < axes else frozenset()
