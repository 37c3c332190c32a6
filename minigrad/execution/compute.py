"""Computing: when somebody looks at a value, and what is computed along with it."""

# pyright: reportUnnecessaryIsInstance=false
# users' arguments are checked at run time

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minigrad.device import as_device, backend_of
from minigrad.graph import Node
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.compiler.plan import Plan

__all__ = ["evaluate", "synchronize"]

# Tensors that were assigned and not computed yet (running statistics): the next computation takes
# them along, in the same pass over the data. See layers' [Note: buffer updates].
pending_updates: weakref.WeakValueDictionary[int, TensorBase] = weakref.WeakValueDictionary()

# Set while `compile` records a step: called with the nodes whose values somebody wants to see, and
# raises if they may not be seen now.
on_observe: Callable[[Sequence[Node]], None] | None = None

# Set with it: called with each object that takes part in the step and whose attributes are baked
# in (modules, optimizers), before they are read. The guard asks for `baked_in()`.
on_use: Callable[[Any], None] | None = None


def capturing() -> bool:
    """Whether a step is being recorded, so that no value may be looked at."""
    return on_observe is not None


def compute(nodes: Sequence[Node]) -> None:
    """Make sure that every node has its value: afterwards `node.storage` is set."""
    from minigrad.compiler.plan import run_graph

    if on_observe is not None:
        on_observe(nodes)
    groups = _waiting(nodes)
    if groups and on_observe is None:
        pending_updates.clear()
    for group in groups:
        run_graph(group)


def plans_for(nodes: Sequence[Node]) -> list[tuple[Plan, list[Node]]]:
    """What `compute` would run, compiled but not run: plans and the graphs they are for."""
    from minigrad.compiler.plan import planned

    return [planned(group) for group in _waiting(nodes)]


def _waiting(nodes: Sequence[Node]) -> list[list[Node]]:
    """By device, the nodes without a value and the updates that are computed with them."""
    pending = [n for n in nodes if n.storage is None]
    if pending and on_observe is None:
        updated = [t.node for t in pending_updates.values()]
        pending += [n for n in updated if n.storage is None]
    by_device: dict[Any, list[Node]] = {}
    for n in pending:
        by_device.setdefault(n.device, []).append(n)
    return list(by_device.values())


def evaluate(*tensors: TensorBase) -> None:
    """Compute tensors now, and running statistics that wait to be computed.

    Inside a step that `compile` records this does nothing: the step computes all it assigns.

    Raises:
        TypeError: an argument is not a Tensor.
    """
    for t in tensors:
        if not isinstance(t, TensorBase):
            raise TypeError(f"evaluate: expected Tensors, got {type(t).__name__}.")
    if capturing():
        return
    nodes = [t.node for t in tensors]
    if pending_updates:
        nodes += [t.node for t in pending_updates.values()]
        pending_updates.clear()
    compute(nodes)


def export_bytes(tensor: TensorBase) -> memoryview:
    """The computed value as contiguous row-major bytes (format "B"), shared with the tensor."""
    node = tensor.node
    compute([node])
    nbytes = node.size * node.dtype.itemsize
    return backend_of(node.device).to_bytes(node.storage, nbytes)


def synchronize(device: Any = None) -> None:
    """Wait until everything launched on a device has finished."""
    backend_of(as_device(device, "synchronize")).synchronize()
