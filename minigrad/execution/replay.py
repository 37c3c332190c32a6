"""A recorded step: one plan, where its inputs come from and where its outputs go.

[Note: two buffers] A tensor that a step changes is not written in place: whoever holds its old
value still sees it. Each such output has two buffers, and a replay writes the one that it did not
write last. If somebody else still holds that one, a new one takes its place. So a training loop
allocates nothing, and the counting of references is what makes it safe. The same goes for nodes: a
leaf made here that only its tensor knows is renewed, which to all others is a new one.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad import graph
from minigrad.compiler.plan import Plan
from minigrad.compiler.run import plan_for
from minigrad.device import Device
from minigrad.dtype import DType
from minigrad.execution.compute import compute
from minigrad.graph import Node, Shape, computed, leaf, topological
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_Kind = tuple[Shape, DType, Device]
_SITE = ("<compiled step>", 0)


def _held_once() -> int:
    """What getrefcount says of something that one owner and a local variable know, nobody else.

    From 3.14 on Python leaves out references that others did count.
    """
    owner = [object()]
    known = owner[0]
    return sys.getrefcount(known)


_HELD_ONCE = _held_once()


class Recorded(NamedTuple):
    """What the recorder found; see `record`."""

    placeholders: dict[int, int]  # leaf node id -> number of the argument
    state: list[tuple[TensorBase, Node]]  # assigned tensors with their first nodes
    updates: list[tuple[int, Node]]  # assigned arguments with their last nodes
    tensors: list[TensorBase]  # others that it may have read
    outputs: list[Node]
    seen: list[Node]  # whose values were looked at
    gradients: list[weakref.ref[TensorBase]]  # tensors whose .grad grew


class RecordedStep:
    """Replays a recorded call.

    All buffers of a replay stand in one list, and a place is a position in it: the arguments, the
    values of the tensors that are read (those also assigned first), fixed values, then what the
    plan fills.
    """

    def __init__(self, recorded: Recorded):
        changed = [*(h.node for h, _ in recorded.state), *(n for _, n in recorded.updates)]
        wanted = list(dict.fromkeys([*recorded.outputs, *changed]))
        nodes = topological(wanted, stop=computed)
        self.plan = _plan(nodes, wanted)
        used = [nodes[p] for p in self.plan.inputs] if self.plan else []
        tensors, fixed = _sources(recorded, [*used, *wanted])

        place = dict(recorded.placeholders)
        first = len(place)  # of the tensors' places
        for k, n in enumerate([*(n for _, n in tensors), *fixed], first):
            place.setdefault(n.id, k)
        known = first + len(tensors) + len(fixed)  # the first that the plan fills
        self._inputs = [place[n.id] for n in used]
        self._constants: list[float] = []
        if self.plan is not None:
            self._constants = self.plan.constant_values(nodes)
            buffers = [*self._inputs, *range(known, known + len(self.plan.fresh))]
            place.update((nodes[p].id, buffers[buffer]) for p, buffer in self.plan.outputs)

        self._tensors = [(weakref.ref(h), _kind(old), old.needs_grad) for h, old in tensors]
        self._fixed = [n.storage for n in fixed]
        self._rebound = [(n, n.rebound) for n in dict.fromkeys([*fixed, *recorded.seen])]
        self._results = [(place[n.id], _kind(n)) for n in recorded.outputs]
        targets = [*range(first, first + len(recorded.state)), *(k for k, _ in recorded.updates)]
        self._prepare_changes(targets, [(place[n.id], _kind(n)) for n in changed], known)
        self._gradients = recorded.gradients
        clear_gradients(self._gradients)
        # From now on the tensors hold their values of before, which the first replay starts from.
        for h, old in recorded.state:
            h.rebind(old)

    def _prepare_changes(
        self, targets: list[int], sources: list[tuple[int, _Kind]], known: int
    ) -> None:
        """Note the tensors that a replay assigns, with the places of their values before and after.

        From the place `known` on the plan fills the buffers.
        """
        self._changes = [
            (target, source, kind)
            for target, (source, kind) in zip(targets, sources, strict=True)
            if target != source  # assigned what it was
        ]
        # See [Note: two buffers]: what the plan filled last and the time before.
        changing = {source for _, source, _ in self._changes}
        count = len(self.plan.fresh) if self.plan else 0
        self._changing = [known + k in changing for k in range(count)]
        self._last: list[Any] = [None] * count
        self._spare: list[Any] = [None] * count

    def replaced(self) -> str | None:
        """What the step was recorded for and is no more: a tensor's kind, or a fixed value."""
        for reference, kind, needs_grad in self._tensors:
            tensor = reference()
            if tensor is not None:
                n = tensor.node
                if n.needs_grad == needs_grad and _kind(n) == kind:
                    continue
            return f"{kind[1].name}{list(kind[0])}"
        for n, count in self._rebound:
            if n.rebound != count:
                return f"{n.dtype.name}{list(n.shape)}"
        return None

    def replay(self, leaves: list[Tensor]) -> list[Tensor]:
        """Run on new arguments and the current state; the results, in order."""
        handles: list[Any] = [*dict.fromkeys(leaves), *[r() for r, _, _ in self._tensors]]
        buffers = [h.node.storage for h in handles]
        if None in buffers:
            compute([h.node for h in handles])
            buffers = [h.node.storage for h in handles]
        buffers += self._fixed
        if self.plan is not None:
            fresh = self._targets(self.plan)
            self.plan.run([buffers[place] for place in self._inputs], self._constants, fresh)
            self._spare, self._last = self._last, fresh
            buffers += fresh
        with graph.site(_SITE):
            results = [wrap(leaf(buffers[source], *kind)) for source, kind in self._results]
            for target, source, kind in self._changes:
                h = handles[target]
                n = h.node
                if n.site is _SITE and sys.getrefcount(n) <= _HELD_ONCE and _kind(n) == kind:
                    graph.renew(n, buffers[source])
                else:
                    h.rebind(leaf(buffers[source], *kind, h.is_leaf))
        clear_gradients(self._gradients)
        return results

    def _targets(self, plan: Plan) -> list[Any]:
        """Buffers that nobody else holds. See [Note: two buffers]."""
        fresh: list[Any] = []
        for k, kept in enumerate(self._changing):  # no zip: it would hold the spare, too
            spare = self._spare[k]
            if not kept or spare is None or sys.getrefcount(spare) > _HELD_ONCE:
                spare = plan.allocate(k)
            fresh.append(spare)
        return fresh


def _plan(nodes: list[Node], wanted: list[Node]) -> Plan | None:
    """What computes those that have no value; None if all have."""
    missing = [n for n in wanted if not computed(n)]
    return plan_for(nodes, missing) if missing else None


def _sources(
    recorded: Recorded, nodes: list[Node]
) -> tuple[list[tuple[TensorBase, Node]], list[Node]]:
    """Where a replay finds the values that were known: the tensors to read, and fixed values.

    The tensors that are assigned come first.
    """
    tensors, fixed = list(recorded.state), list[Node]()
    given = {*recorded.placeholders, *(old.id for _, old in tensors)}
    # Of two tensors with one value, either may be given another.
    alone = {h.node.id: h for h in recorded.tensors if h.node.handles == 1}
    for n in dict.fromkeys(nodes):
        if n.storage is None or n.id in given:
            continue
        owner = None if n.owner is None else n.owner()
        if owner is None or owner.node is not n:
            owner = alone.get(n.id)
        if owner is None:
            fixed.append(n)
        else:
            tensors.append((owner, n))
    return tensors, fixed


def clear_gradients(tensors: Iterable[weakref.ref[TensorBase]]) -> None:
    """Forget the gradients of those tensors that still exist."""
    for reference in tensors:
        tensor = reference()
        if tensor is not None:
            tensor.grad = None


def _kind(n: Node) -> _Kind:
    return n.shape, n.dtype, n.device
