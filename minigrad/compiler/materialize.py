"""Which nodes of a graph get memory, and where every other node is found.

Reductions and kernels (contractions, windows, gathers) are stored. Elementwise nodes and views are
not: they are evaluated inside whatever reads them, again if need be, since recomputing a few
operations in a cache-resident pass is cheaper than a trip to memory. Exceptions are listed in
`Placement._store_if_worthwhile`; what several kernels would compute is weighed in `share.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from minigrad.backend.launch import Operand
from minigrad.compiler.layout import dense, identity_index, is_dense, source_index, view_operand
from minigrad.graph import Node

# A kernel that reads more arrays than this thrashes the registers and the prefetcher.
MOST_LOADS = 10
# Bounds the code of one kernel, and the recomputation along a long elementwise chain.
MOST_OPERATIONS = 80
# These are copied piece by piece into place, so their inputs need no memory of their own.
ASSEMBLED = frozenset({"pad", "concat"})


class Placement:
    """Slots for stored nodes and operands for all nodes that are in memory.

    `nodes` is the whole graph in topological order; nodes with storage come first as inputs.
    `shared` are ids of elementwise nodes to store, too.
    """

    def __init__(
        self, nodes: Sequence[Node], outputs: Sequence[Node], shared: Collection[int] = ()
    ):
        self.nodes, self._shared = nodes, shared
        self.slots: dict[int, int] = {}  # node id -> slot
        self.inputs: list[Node] = []
        self.placed: list[Node] = []  # stored by this plan
        self._operands: dict[int, Operand | None] = {}
        self._sources: dict[int, frozenset[int]] = {}
        self._work: dict[int, frozenset[int]] = {}
        for node in nodes:
            if node.storage is not None:
                self.slots[node.id] = len(self.slots)
                self.inputs.append(node)
        for node in nodes:
            if node.storage is None:
                self._visit(node)
        for node in outputs:
            self._ensure_dense(node)

    # --- queries ---------------------------------------------------------------------------------

    def locate(self, node: Node) -> Operand | None:
        """The strided operand of a node that is in memory; None for one that must be evaluated."""
        if node.id in self._operands:
            return self._operands[node.id]
        operand: Operand | None = None
        if node.id in self.slots:
            operand = dense(self.slots[node.id], node.dtype, node.shape)
        elif node.op.kind in ("identity", "view"):
            base = self.locate(node.inputs[0])
            if base is not None:
                operand = base if node.op.kind == "identity" else view_operand(node, base)
        self._operands[node.id] = operand
        return operand

    def base(self, node: Node) -> Node:
        """The stored node whose memory a located node shows."""
        while node.id not in self.slots:
            node = node.inputs[0]
        return node

    def sources(self, node: Node) -> frozenset[int]:
        """Ids of the stored nodes that evaluating `node` reads."""
        found = self._sources.get(node.id)
        if found is None:
            if self.locate(node) is not None:
                found = frozenset((self.base(node).id,))
            else:
                inputs = node.inputs[:1] if node.op.kind == "identity" else node.inputs
                found = frozenset().union(*(self.sources(n) for n in inputs))
            self._sources[node.id] = found
        return found

    def definition_sources(self, node: Node) -> frozenset[int]:
        """Ids of the stored nodes that computing a stored node reads."""
        return frozenset().union(*(self.sources(n) for n in node.inputs))

    # --- decisions -------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        kind = node.op.kind
        if kind == "kernel":
            if node.op.name not in ASSEMBLED:
                for n in node.inputs:
                    self._ensure_located(n)
            self._store(node)
        elif kind == "reduce":
            self._store(node)
        elif kind in ("view", "identity"):
            if kind == "view":
                self._visit_view(node)
            self._work[node.id] = self._work.get(node.inputs[0].id, frozenset())
        elif kind == "map":
            self._store_if_worthwhile(node)

    def _visit_view(self, node: Node) -> None:
        """A view must be expressible as strides, or as an affine map of indices."""
        if self.locate(node) is not None:
            return
        source = node.inputs[0]
        if self.locate(source) is not None:  # in memory, but no strides show it: copy it dense
            self._store(source)
        elif source_index(node, identity_index(node.shape), node.ndim) is None:
            self._ensure_dense(source)
        self._operands.pop(node.id, None)

    def _store_if_worthwhile(self, node: Node) -> None:
        reads, work = self._cone(node)
        shared = node.id in self._shared
        if shared or len(reads) > MOST_LOADS or len(work) > MOST_OPERATIONS:
            self._store(node)

    def _cone(self, node: Node) -> tuple[frozenset[int], frozenset[int]]:
        """What evaluating `node` reads, and the elementwise nodes it computes."""
        work = frozenset((node.id,)).union(*(self._work.get(n.id, ()) for n in node.inputs))
        self._work[node.id] = work
        return self.definition_sources(node), work

    def _store(self, node: Node) -> None:
        if node.id not in self.slots:
            self.slots[node.id] = len(self.slots)
            self.placed.append(node)
            self._operands.pop(node.id, None)
            self._sources.pop(node.id, None)
            self._work[node.id] = frozenset()
            self._forget_views()

    def _forget_views(self) -> None:
        """A node was stored: what was not in memory may be now."""
        self._operands = {k: v for k, v in self._operands.items() if v is not None}
        self._sources.clear()

    def _ensure_located(self, node: Node) -> None:
        """Give memory to the value that a chain of views shows."""
        if self.locate(node) is not None:
            return
        if node.op.kind in ("identity", "view"):
            source = node.inputs[0]
            self._ensure_located(source)
            if self.locate(node) is None:
                self._ensure_dense(source)
        else:
            self._store(node)

    def _ensure_dense(self, node: Node) -> None:
        """Give a node memory in row-major order that starts its slot."""
        operand = self.locate(node)
        passes_on = node.op.kind == "identity" or node.op.name == "reshape"
        if operand is None and passes_on:
            self._ensure_dense(node.inputs[0])
        elif operand is None or not is_dense(operand) or self._is_part(node, operand):
            self._store(node)

    def _is_part(self, node: Node, operand: Operand) -> bool:
        """A dense prefix of a larger slot is not an array of its own."""
        return self.base(node).size != node.size
