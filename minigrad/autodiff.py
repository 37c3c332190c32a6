"""Reverse-mode differentiation: one walk that asks each primitive's rule for more nodes.

Nothing is computed here. Gradients are summed and unreachable inputs skipped in this file and
nowhere else; broadcasting is undone by the rule of `expand`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from minigrad import graph
from minigrad.errors import GradientError
from minigrad.graph import Node, topological, zeros_like
from minigrad.ops.elementwise import add


def gradients(
    outputs: Sequence[Node],
    inputs: Sequence[Node],
    cotangents: Sequence[Node],
    unreached: str = "error",
) -> list[Node | None]:
    """The vector-Jacobian product: for each input, the sum of <cotangent, d output / d input>.

    `unreached` says what an input that no output depends on gets: "error", "zero" or "none".
    """
    targets = {n.id for n in inputs}
    on_path, undifferentiable = _paths(outputs, targets)
    adjoints: dict[int, Node] = {}
    nodes: dict[int, Node] = {}
    queue: list[int] = []

    def accumulate(node: Node, g: Node) -> None:
        if node.id in adjoints:
            adjoints[node.id] = add(adjoints[node.id], g)
        else:
            adjoints[node.id] = g
            nodes[node.id] = node
            heapq.heappush(queue, -node.id)

    for output, g in zip(outputs, cotangents, strict=True):
        if output.id in on_path:
            accumulate(output, g)
    while queue:  # highest id first: every consumer of a node has a higher id than it
        node = nodes[-heapq.heappop(queue)]
        if node.op.vjp is None or not node.inputs:
            continue
        if not any(n.id in on_path for n in node.inputs):
            continue
        with graph.site(node.site):
            parts = node.op.vjp(adjoints[node.id], node, *node.inputs, **node.attrs)
        for source, part in zip(node.inputs, parts, strict=True):
            if part is not None and source.id in on_path:
                accumulate(source, part)

    results: list[Node | None] = []
    for node in inputs:
        found = adjoints.get(node.id)
        if found is None and unreached != "none" and (node.id in on_path or unreached == "zero"):
            found = zeros_like(node)
        if found is None and unreached == "error":
            raise GradientError(_why(node, undifferentiable))
        results.append(found)
    return results


def _paths(outputs: Sequence[Node], targets: set[int]) -> tuple[set[int], set[str]]:
    """Ids of the nodes between targets and outputs, and the ops without a gradient met on the way."""
    on_path: set[int] = set()
    cut: set[str] = set()
    touched: set[int] = set()  # depends on a target, perhaps through an op without a gradient
    for node in topological(outputs):
        if node.id in targets:
            on_path.add(node.id)
            touched.add(node.id)
            if not node.inputs:
                continue
        if any(n.id in on_path for n in node.inputs) and node.dtype.is_floating:
            if node.op.vjp is None:
                cut.add(node.op.name)
            else:
                on_path.add(node.id)
        if any(n.id in touched for n in node.inputs):
            touched.add(node.id)
            if node.id not in on_path:
                cut.add(node.op.name)
    return on_path, cut


def _why(node: Node, cut: set[str]) -> str:
    what = f"gradients: expected an output that depends on the input {node.dtype.name}{list(node.shape)}"
    if cut:
        return f"{what} through differentiable ops, got paths only through {', '.join(sorted(cut))}."
    return f"{what}, got none. It may have been detached, computed under no_grad, or not used."
