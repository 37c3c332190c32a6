"""From a graph to its plan: the compiler's steps, in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from minigrad.backend.interface import Backend
from minigrad.backend.launch import Program
from minigrad.compiler import arena
from minigrad.compiler.fuse import Group, fuse
from minigrad.compiler.lower import Lowering
from minigrad.compiler.materialize import Placement
from minigrad.compiler.plan import Fresh, Plan
from minigrad.compiler.share import worth_sharing
from minigrad.config import STRICT
from minigrad.context import context
from minigrad.device import backend_of
from minigrad.graph import Node, computed, topological
from minigrad.rewrite import HIDING, simplify


def rewriting() -> int:
    """The level of `context.rewrite`; nothing is simplified where each op is computed at once."""
    return 0 if context.op_by_op is not None else context.rewrite


def compile_graph(nodes: Sequence[Node], wanted: Sequence[Node]) -> Plan:
    """The plan that computes `wanted`; `nodes` are all that they depend on, inputs first."""
    backend = backend_of(wanted[0].device, computing=True)
    worked_on, roots = _simplified(nodes, wanted)
    placement, groups = _placed_and_fused(worked_on, roots, backend)
    program, constants = _lowered(placement, groups, backend)

    # The nodes of `roots` lie where their bases do: slots of inputs, or memory that a run fills.
    bases = [placement.base(root) for root in roots]
    held = [placement.slots[base.id] for base in bases]
    inputs = range(len(placement.inputs))
    fresh = {slot: base for slot, base in zip(held, bases, strict=True) if slot not in inputs}
    bound = [*inputs, *fresh]
    offsets, arena_bytes = arena.place(
        _temporaries(placement, program, fresh), arena.lifetimes(program)
    )
    types = [n.dtype for n in constants]
    position = {n.id: i for i, n in enumerate(nodes)}
    read = [position[n.id] for n in placement.inputs]
    written = [position[n.id] for n in wanted]
    place = {slot: k for k, slot in enumerate(bound)}
    return Plan(
        backend=backend,
        program=program,
        executable=backend.executable(program, offsets, arena_bytes, bound, types),
        inputs=read,
        outputs=[(p, place[slot]) for p, slot in zip(written, held, strict=True)],
        constants=[(position.get(n.id), n.attrs["value"]) for n in constants],
        fresh=[Fresh(_nbytes(base), f"the result of {base.op.name}") for base in fresh.values()],
        holds={**dict(zip(held, written, strict=True)), **dict(enumerate(read))},
    )


def _simplified(
    nodes: Sequence[Node], wanted: Sequence[Node]
) -> tuple[Sequence[Node], Sequence[Node]]:
    """A graph that costs less and nodes of it with the values of `wanted`; it shares the inputs."""
    level = rewriting()
    if not level:
        return nodes, wanted
    roots = simplify(wanted, off=HIDING if level == STRICT else ())
    return topological(roots, stop=computed), roots


def _placed_and_fused(
    nodes: Sequence[Node], roots: Sequence[Node], backend: Backend[Any]
) -> tuple[Placement, list[Group]]:
    """Which nodes get memory, and which of them one kernel computes.

    Only the kernels show what several of them would compute. If some of that is worth sharing, it
    gets memory, too, and all is fused again.
    """
    placement = Placement(nodes, roots)
    groups = fuse(placement, backend.processors)
    shared = worth_sharing(placement, groups, backend.addition_bytes)
    if shared:
        placement = Placement(nodes, roots, shared)
        groups = fuse(placement, backend.processors)
    return placement, groups


def _lowered(
    placement: Placement, groups: Sequence[Group], backend: Backend[Any]
) -> tuple[Program, list[Node]]:
    """Loop nests and library calls as launches, and the constants that they are run with."""
    program = Program(first_scratch=len(placement.slots))
    lowering = Lowering(placement, program, backend.library())
    for group in groups:
        lowering.lower(group)
    return program, lowering.constants


def _temporaries(placement: Placement, program: Program, fresh: Collection[int]) -> dict[int, int]:
    """Bytes of each slot that no caller ever sees: it lies in the arena."""
    stored = ((placement.slots[n.id], _nbytes(n)) for n in placement.placed)
    sizes = {slot: nbytes for slot, nbytes in stored if slot not in fresh}
    return sizes | dict(enumerate(program.scratch, program.first_scratch))


def _nbytes(node: Node) -> int:
    return node.size * node.dtype.itemsize
