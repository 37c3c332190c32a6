"""When values are computed: on demand, at once under `eager`, or as part of a captured step."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.graph import Node


def compute(nodes: Sequence[Node]) -> None:
    """Make sure that every node has its value: afterwards `node.storage` is set."""
    from minigrad.compiler.plan import run_graph

    pending = [n for n in nodes if n.storage is None]
    if pending:
        run_graph(pending)
