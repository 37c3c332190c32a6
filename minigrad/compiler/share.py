"""Elementwise values that several kernels would compute: again in each, or stored by the first.

[Note: cost of a value] In bytes of memory traffic for an element. What a device moves in the time
of an addition for it is its own fact: on a CPU an `exp` costs as much as reading two float32, on a
GPU less than half of one. Storing a value costs its bytes twice, since on a CPU a line is fetched
before it is written. So the derivative of a GELU is stored on a CPU when a kernel along rows and
one along columns want it, a ReLU's mask never.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from minigrad.backend.recompute import worth_keeping
from minigrad.compiler.fuse import Group
from minigrad.compiler.materialize import Placement


def worth_sharing(placement: Placement, groups: Sequence[Group], addition: float) -> set[int]:
    """Ids of the elementwise nodes to store, which the groups, in order, compute several times.

    `addition` is the cost of an addition in bytes.

    Only values as large as the spaces of those groups: a smaller one is a scalar of their inner
    loops, and stored it could tear apart what is one kernel now.
    """
    graph = {n.id: n for n in placement.nodes}
    kernels = [[n.id for root in group.roots for n in root.inputs] for group in groups]
    largest: dict[int, int] = {}  # node -> points of the largest space it is computed in

    def nbytes(k: int) -> float:
        return graph[k].size * graph[k].dtype.itemsize

    def arguments(k: int) -> list[int]:
        node = graph[k]
        if placement.locate(node) is not None:
            return []
        return [n.id for n in (node.inputs[:1] if node.op.kind == "identity" else node.inputs)]

    def cost(k: int) -> float:
        node = graph[k]
        operand = placement.locate(node)
        if operand is not None:  # what it reads, each element once
            steps = zip(operand.shape, operand.strides, strict=True)
            return prod(n for n, s in steps if s) * node.dtype.itemsize
        if node.op.kind != "map":
            return 0.0
        return node.size * addition * node.op.cost

    def is_full_size(kept: list[int]) -> bool:
        node = graph[kept[-1]]
        is_computed = node.op.kind == "map" and placement.locate(node) is None
        return is_computed and node.size >= largest[node.id]

    for group, roots in zip(groups, kernels, strict=True):
        points = prod(group.space) if group.space is not None else 0
        stack, seen = list(roots), set[int]()
        while stack:
            k = stack.pop()
            if k not in seen:
                seen.add(k)
                largest[k] = max(points, largest.get(k, 0))
                stack += arguments(k)
    kept = worth_keeping(kernels, arguments, cost, nbytes, lambda k: 2 * nbytes(k), is_full_size)
    return set(kept)
