"""A plan: the executable form of a graph's structure, made once and run many times."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minigrad.backend.interface import Backend, Executable
from minigrad.backend.launch import Program
from minigrad.graph import Node, Number

# Held while a plan runs: its tables and the arena serve one run at a time.
running = threading.RLock()


class Fresh(NamedTuple):
    """A buffer that a run fills and its caller keeps."""

    nbytes: int
    purpose: str  # what an error says that the memory is for


@dataclass(frozen=True, eq=False)
class Plan:
    """Launches with their memory, for every graph of one structure.

    A position is one in the topological list of nodes that the plan was made for; a graph of the
    same structure has its own nodes at the same positions. What is run may be a simplified graph
    (`minigrad.rewrite`), of which nothing but the inputs is shared.
    """

    backend: Backend[Any]
    program: Program
    executable: Executable[Any]
    inputs: list[int]  # positions
    outputs: list[tuple[int, int]]  # positions, and which of the buffers that `run` gives has each
    constants: list[tuple[int | None, Number]]  # positions, None for the plan's own; and values
    fresh: list[Fresh]
    holds: dict[int, int]  # slot of an input or output -> the position of a node that it holds

    def constant_values(self, nodes: Sequence[Node]) -> list[float]:
        """This graph's values of the plan's constants."""
        return [v if p is None else nodes[p].attrs["value"] for p, v in self.constants]

    def allocate(self, k: int) -> Any:
        """New memory for buffer number `k` of those that a run fills."""
        return self.backend.allocate(*self.fresh[k])

    def run(
        self, inputs: list[Any], constants: list[float], fresh: list[Any] | None = None
    ) -> list[Any]:
        """Run on these input buffers; gives them and those that were filled, in order.

        The latter are `fresh`, of at least the sizes in `self.fresh`, or newly allocated.
        """
        if fresh is None:
            fresh = [self.allocate(k) for k in range(len(self.fresh))]
        buffers = inputs + fresh
        with running:
            self.executable.run(buffers, constants)
        return buffers
