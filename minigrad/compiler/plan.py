"""Plans: a graph's launches with their memory, made once for each structure and run many times."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from minigrad import graph
from minigrad.backend.launch import Program
from minigrad.compiler import arena
from minigrad.compiler.fuse import fuse
from minigrad.compiler.lower import Lowering
from minigrad.compiler.materialize import Placement
from minigrad.compiler.share import worth_storing
from minigrad.config import STRICT
from minigrad.context import context
from minigrad.device import backend_of
from minigrad.graph import Node, const_op, const_value, topological
from minigrad.rewrite import HIDING, simplify

MOST_PLANS = 256

plan_count = 0  # plans made (not found) in this process; tests read it
_plans: OrderedDict[Any, Plan] = OrderedDict()
_lock = threading.RLock()


class Plan:
    """The executable form of a graph's structure.

    `inputs` and `constants` are positions in the topological list of nodes the plan was made for; a
    graph of the same structure has its own nodes at the same positions. What is run may be a
    simplified graph (`minigrad.rewrite`), of which nothing but the inputs is shared. `outputs`
    pairs each wanted position with the place of its buffer in what `run` gives (perhaps an
    input's).
    """

    def __init__(self, nodes: Sequence[Node], wanted: Sequence[Node]):
        backend = backend_of(wanted[0].device, computing=True)
        library = backend.library()
        roots, worked_on = wanted, nodes
        if rewriting():
            roots = simplify(wanted, off=HIDING if rewriting() == STRICT else ())
            worked_on = topological(roots, stop=computed)
        placement = Placement(worked_on, roots)
        threads = backend.processors
        groups = fuse(placement, threads)
        shared = worth_storing(placement, groups, backend.addition_bytes)
        if shared:
            placement = Placement(worked_on, roots, shared)
            groups = fuse(placement, threads)
        program = Program(first_scratch=len(placement.slots))
        lowering = Lowering(placement, program, library)
        for group in groups:
            lowering.lower(group)
        # What each kernel ranges over. The groups' nodes are not kept: they hold values.
        self.spaces = [group.space for group in groups]
        position = {n.id: i for i, n in enumerate(nodes)}
        self.program = program
        self.inputs = [position[n.id] for n in placement.inputs]
        # Slots of inputs and outputs -> positions of the nodes that they hold.
        self.slots = dict(enumerate(self.inputs))
        for node, root in zip(wanted, roots, strict=True):
            self.slots.setdefault(placement.slots[placement.base(root).id], position[node.id])
        self._const_values = [n.attrs["value"] for n in lowering.constants]
        self.constants = [position.get(n.id, -1) for n in lowering.constants]
        input_slots = len(placement.inputs)
        self.outputs: list[tuple[int, int]] = []
        fresh: dict[int, Node] = {}  # slots that become the nodes' own memory
        for node, root in zip(wanted, roots, strict=True):
            operand = placement.locate(root)
            assert operand is not None
            place = operand.slot
            if place >= input_slots:
                fresh[place] = root
                place = input_slots + list(fresh).index(place)
            self.outputs.append((position[node.id], place))
        # Bytes of each buffer that a run fills, and what an error says of it.
        self.fresh = [n.size * n.dtype.itemsize for n in fresh.values()]
        self._purposes = [f"the result of {placement.base(n).op.name}" for n in fresh.values()]
        sizes = {
            placement.slots[n.id]: n.size * n.dtype.itemsize
            for n in placement.placed
            if placement.slots[n.id] not in fresh
        }
        sizes.update({program.first_scratch + i: n for i, n in enumerate(program.scratch)})
        offsets, nbytes = arena.place(sizes, arena.lifetimes(program))
        self.arena_bytes = nbytes
        bound = [*range(input_slots), *fresh]
        constant_types = [n.dtype for n in lowering.constants]
        self.executable = backend.executable(program, offsets, nbytes, bound, constant_types)
        self._backend = backend

    def constant_values(self, nodes: Sequence[Node]) -> list[float]:
        """This graph's values of the plan's constants."""
        return [
            nodes[p].attrs["value"] if p >= 0 else v
            for p, v in zip(self.constants, self._const_values, strict=True)
        ]

    def allocate(self, k: int) -> Any:
        """New memory for buffer number `k` of those that a run fills."""
        return self._backend.allocate(self.fresh[k], self._purposes[k])

    def run(
        self, inputs: list[Any], constants: list[float], fresh: list[Any] | None = None
    ) -> list[Any]:
        """Run on these input buffers; gives them and those that were filled, in order.

        The latter are `fresh`, of at least the sizes in `self.fresh`, or newly allocated.
        """
        if fresh is None:
            fresh = [self.allocate(k) for k in range(len(self.fresh))]
        buffers = inputs + fresh
        with _lock:  # the tables and the arena are the plan's own
            self.executable.run(buffers, constants)
        return buffers


def structure(nodes: Sequence[Node], wanted: Sequence[Node]) -> Any:
    """A key equal for graphs that one plan can serve: all but the data and identities.

    Constants are arguments of a plan, unless the algebra may have worked with them; it also looks
    at which nodes were built for a derivative.
    """
    level = rewriting()
    number: dict[int, int] = {}
    parts: list[Any] = []
    for i, n in enumerate(nodes):
        number[n.id] = i
        if n.storage is not None:
            parts.append((n.dtype.name, n.shape))
        elif n.op is const_op:
            # (repr: 0.0 is not -0.0, and NaN is itself)
            parts.append((n.dtype.name, repr(n.attrs["value"])) if level else n.dtype.name)
        else:
            inputs = tuple([number[m.id] for m in n.inputs])
            attrs = () if n.op.name == "variable" else tuple(n.attrs.values())
            parts.append((n.op.name, n.dtype.name, inputs, attrs))
    derived = tuple([n.derivative_order > 0 for n in nodes]) if level else None
    places = tuple([number[n.id] for n in wanted])
    return str(nodes[0].device), tuple(parts), places, derived, level


def rewriting() -> int:
    """The level of `context.rewrite`; nothing is simplified where each op is computed at once."""
    return 0 if context.op_by_op is not None else context.rewrite


def plan_for(nodes: Sequence[Node], wanted: Sequence[Node]) -> Plan:
    """The plan of a graph, made at most once for its structure."""
    global plan_count
    key = structure(nodes, wanted)
    plan = _plans.get(key)
    if plan is None:
        plan = Plan(nodes, wanted)
        plan_count += 1
        _plans[key] = plan
        while len(_plans) > MOST_PLANS:
            _plans.popitem(last=False)
    else:
        _plans.move_to_end(key)
    return plan


def computed(node: Node) -> bool:
    """Whether a node's value is stored: walks stop there."""
    return node.storage is not None


def planned(wanted: Sequence[Node]) -> tuple[Plan, list[Node]]:
    """The plan that computes nodes and all that is worth keeping on the way, and its graph.

    At least one of them has no value yet.
    """
    wanted = list(dict.fromkeys(n for n in wanted if n.storage is None))
    nodes = topological(wanted, stop=computed)
    return plan_for(nodes, _worth_keeping(nodes, wanted)), nodes


def run_graph(wanted: Sequence[Node]) -> None:
    """Compute nodes and all that is worth keeping on the way; sets their storage."""
    with _lock:
        if all(map(computed, wanted)):
            return
        plan, nodes = planned(wanted)
        buffers = plan.run([nodes[p].storage for p in plan.inputs], plan.constant_values(nodes))
        for position, place in plan.outputs:
            nodes[position].storage = buffers[place]
        for position, _ in plan.outputs:
            node = nodes[position]
            on_path = node.needs_grad and any(n.needs_grad for n in node.inputs)
            if const_value(node) is not None:
                graph.renew_constant(node)
            elif node.inputs and not on_path:
                node.forget()


def _worth_keeping(nodes: Sequence[Node], wanted: Sequence[Node]) -> list[Node]:
    """What is asked for, what a live Tensor shows, and on a gradient path the costly results.

    The last is for `loss.item()` before `loss.backward()`, which must not run the forward twice.
    """
    asked = {n.id for n in wanted}
    on_path: set[int] = set()
    for node in reversed(nodes):  # consumers before inputs
        if node.id in asked and node.needs_grad:
            on_path.add(node.id)
        if node.id in on_path and node.op.name != "stop_gradient":
            on_path.update(n.id for n in node.inputs if n.needs_grad)
    return [
        n
        for n in nodes
        if n.storage is None
        and (
            n.id in asked
            or (n.handles and const_value(n) is None)
            or (n.id in on_path and n.op.kind in ("reduce", "kernel") and n.dtype.is_floating)
        )
    ]
