"""Computing: when somebody looks at a value, and what is computed along with it."""

# pyright: reportUnnecessaryIsInstance=false
# users' arguments are checked at run time

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad.context import context
from minigrad.device import Device, as_device, backend_of
from minigrad.graph import Node
from minigrad.interop.encoding import decode
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.compiler.plan import Plan

__all__ = ["evaluate", "synchronize"]

LONGEST_CHAIN = 16  # updates of one tensor that wait at most


def capturing() -> bool:
    """Whether a step is being recorded, so that no value may be looked at."""
    return context.observer.recording


def compute(nodes: Sequence[Node]) -> None:
    """Make sure that every node has its value: afterwards `node.storage` is set."""
    from minigrad.compiler.run import run_graph

    context.observer.looked_at(nodes)
    groups = _waiting(nodes)
    if groups and not capturing():
        context.updates.clear()
    for group in groups:
        run_graph(group)


def plans_for(nodes: Sequence[Node]) -> list[tuple[Plan, list[Node]]]:
    """What `compute` would run, compiled but not run: plans and the graphs they are for."""
    from minigrad.compiler.run import planned

    return [planned(group) for group in _waiting(nodes)]


def _waiting(nodes: Sequence[Node]) -> list[list[Node]]:
    """By device, the nodes without a value and the updates that are computed with them."""
    pending = [n for n in nodes if n.storage is None]
    if pending and not capturing():
        pending += [n for n in _updated() if n.storage is None]
    by_device: dict[Device, list[Node]] = {}
    for n in pending:
        by_device.setdefault(n.device, []).append(n)
    return list(by_device.values())


class _Update(NamedTuple):
    """A tensor whose value waits to be computed."""

    tensor: weakref.ref[TensorBase]
    node: int  # the id of the node that it was assigned last
    chain: int  # how many times it was assigned since it was computed


def compute_with_next(tensor: TensorBase) -> None:
    """Compute what was assigned to a tensor along with whatever is computed next.

    So a running statistic is computed in the same pass over the data as the loss or the update of
    the parameters. A computed node without a gradient forgets its inputs, so the statistic never
    becomes a chain over all past batches. Where nothing is ever looked at, every `LONGEST_CHAIN`-th
    assignment computes.
    """
    key, node = id(tensor), tensor.node.id
    known = context.updates.get(key)
    if known is not None and known.node == node:
        return
    chain = 1 if known is None else known.chain + 1
    updates = context.updates
    reference = weakref.ref(tensor, lambda _: updates.pop(key, None))
    updates[key] = _Update(reference, node, chain)
    if chain >= LONGEST_CHAIN:
        evaluate(tensor)


def _updated() -> list[Node]:
    """The nodes that wait for the next computation."""
    waiting = [update.tensor() for update in context.updates.values()]
    return [t.node for t in waiting if t is not None]


def evaluate(*tensors: TensorBase) -> None:
    """Compute tensors now, and running statistics that wait to be computed.

    Inside a step that `compile` records this does nothing: the step computes all it assigns.

    Raises:
        TypeError: an argument is not a Tensor.
    """
    for t in tensors:
        if not isinstance(t, TensorBase):
            raise TypeError(f"evaluate: expected Tensors, got {type(t).__name__}.")
    if not capturing():
        compute([*(t.node for t in tensors), *_updated()])


def export_bytes(tensor: TensorBase) -> memoryview:
    """The computed value as contiguous row-major bytes (format "B"), shared with the tensor."""
    return _bytes_of(tensor.node)


def readable_values(node: Node) -> memoryview[Any] | None:
    """The values in row-major order, if the host can see them now and waits for nothing.

    It can if they are stored where the host reads them, or are made by ops of one input of what is
    stored there: those are computed. Inside a step that is recorded no value can be seen.
    """
    source = node
    while source.storage is None and len(source.inputs) == 1:
        source = source.inputs[0]
    if source.storage is None or not backend_of(node.device).host_readable or capturing():
        return None
    return decode(_bytes_of(node), node.dtype)


def _bytes_of(node: Node) -> memoryview:
    compute([node])
    nbytes = node.size * node.dtype.itemsize
    return backend_of(node.device).to_bytes(node.storage, nbytes)


def synchronize(device: Any = None) -> None:
    """Wait until everything launched on a device has finished."""
    backend_of(as_device(device, "synchronize")).synchronize()
