"""Elementwise values that several kernels would compute: again in each, or stored by the first.

[Note: cost of a value] In bytes of memory traffic for an element. A core moves about three bytes in
the time of a vectorized addition for it, so an `exp` costs as much as reading two float32; storing
a value costs its bytes twice, since a line is fetched before it is written. So the derivative of a
GELU is stored when a kernel along rows and one along columns want it, a ReLU's mask never.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.backend.recompute import additions, worth_keeping
from minigrad.compiler.fuse import Group
from minigrad.compiler.materialize import Placement
from minigrad.graph import Node

ADDITION = 0.3  # bytes


def worth_storing(placement: Placement, groups: Sequence[Group]) -> set[int]:
    """Ids of the elementwise nodes to store, which the groups, in order, compute several times."""
    graph = {n.id: n for n in placement.nodes}

    def nbytes(k: int) -> float:
        return graph[k].size * graph[k].dtype.itemsize

    def arguments(k: int) -> list[int]:
        node = graph[k]
        return [] if placement.locate(node) is not None else [n.id for n in node.inputs]

    def cost(k: int) -> float:
        node = graph[k]
        if placement.locate(node) is not None:
            base = placement.base(node)
            return min(node.size, base.size) * node.dtype.itemsize
        if node.op.kind != "map":
            return 0.0
        return node.size * ADDITION * additions(node.op.name)

    def is_elementwise(kept: list[int]) -> bool:
        node = graph[kept[-1]]
        return node.op.kind == "map" and placement.locate(node) is None

    kernels = [[n.id for root in group.roots for n in _evaluated(root)] for group in groups]
    kept = worth_keeping(kernels, arguments, cost, nbytes, lambda k: 2 * nbytes(k), is_elementwise)
    return set(kept)


def _evaluated(root: Node) -> tuple[Node, ...]:
    return root.inputs[:1] if root.op.kind == "identity" else root.inputs
