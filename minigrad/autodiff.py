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
    trace: dict[Node, Node] | None = None,
) -> list[Node | None]:
    """The vector-Jacobian product: for each input, the sum of <cotangent, d output / d input>.

    `unreached` says what an input that no output depends on gets: "error", "zero" or "none".
    `trace` receives the total cotangent of every node on the way.

    This is one function on purpose, though it has many branches: the walk is the chain rule, and
    each branch is a reason why a node gets no cotangent.
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

    with graph.derivative(outputs):
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

    if trace is not None:
        trace.update((nodes[i], g) for i, g in adjoints.items())
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
    """Ids of the nodes on paths from targets to outputs, and the ops that cut such a path."""
    forward: set[int] = set()  # depends on a target, through differentiable ops only
    cut: set[str] = set()
    order = topological(outputs)
    for node in order:
        if node.id in targets:
            forward.add(node.id)
        elif any(n.id in forward for n in node.inputs):
            if node.op.vjp is not None and node.dtype.is_floating:
                forward.add(node.id)
            else:
                cut.add(node.op.name)
    on_path = {n.id for n in outputs if n.id in forward}
    for node in reversed(order):
        if node.id in on_path and node.op.vjp is not None:
            on_path.update(n.id for n in node.inputs if n.id in forward)
    return on_path, cut


def _why(node: Node, cut: set[str]) -> str:
    described = f"{node.dtype.name}{list(node.shape)}"
    what = f"gradients: expected an output that depends on the input {described}"
    if cut:
        return (
            f"{what} through differentiable ops, got paths only through {', '.join(sorted(cut))}."
        )
    return f"{what}, got none. It may have been detached, computed under no_grad, or not used."
