"""Computing a graph: what of it lasts, and a plan that is made or, for a known structure, found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from minigrad import graph
from minigrad.compiler.pipeline import compile_graph, rewriting
from minigrad.compiler.plan import Plan, running
from minigrad.graph import Node, computed, const_op, const_value, topological

MOST_PLANS = 256
_plans: OrderedDict[Any, Plan] = OrderedDict()  # by structure, the one used last at the end


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


def plan_for(nodes: Sequence[Node], wanted: Sequence[Node]) -> Plan:
    """The plan of a graph, made at most once for its structure."""
    key = structure(nodes, wanted)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = compile_graph(nodes, wanted)
        while len(_plans) > MOST_PLANS:
            _plans.popitem(last=False)
    else:
        _plans.move_to_end(key)
    return plan


def planned(wanted: Sequence[Node]) -> tuple[Plan, list[Node]]:
    """The plan that computes nodes and what lasts beside them, and its graph.

    At least one of them has no value yet.
    """
    wanted = list(dict.fromkeys(n for n in wanted if n.storage is None))
    nodes = topological(wanted, stop=computed)
    return plan_for(nodes, _lasting(nodes, wanted)), nodes


def run_graph(wanted: Sequence[Node]) -> None:
    """Compute nodes and what lasts beside them; sets their storage."""
    with running:
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


def _lasting(nodes: Sequence[Node], wanted: Sequence[Node]) -> list[Node]:
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
