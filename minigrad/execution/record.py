"""Recording: one run of a function on placeholders, in which nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minigrad import graph
from minigrad.context import Observer, context, observing
from minigrad.device import cpu
from minigrad.dtype import bool_
from minigrad.errors import CaptureError
from minigrad.execution.compute import compute, evaluate
from minigrad.execution.guard import Guard
from minigrad.execution.replay import Recorded, RecordedStep, clear_gradients
from minigrad.graph import Node, computed, const_value, topological
from minigrad.tensor_base import TensorBase, wrap
from minigrad.trees import tree_leaves, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in a tree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, TensorBase)]  # type: ignore[misc]


_TENSOR = object()  # stands for a tensor in the form of a tree


def form_of(tree: Any) -> Any:
    """The tree with each tensor replaced by a mark."""
    leaves = (_TENSOR if isinstance(x, TensorBase) else x for x in tree_leaves(tree))
    return tree_rebuilt(tree, leaves)


def filled(form: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree that `form_of` made, with tensors for its marks."""
    remaining = iter(tensors)
    leaves = (next(remaining) if x is _TENSOR else x for x in tree_leaves(form))
    return tree_rebuilt(form, leaves)


class Gradients(Observer):
    """Notes every tensor whose `.grad` grows, so that it does not outlive the step."""

    def __init__(self) -> None:
        self.grown: dict[int, weakref.ref[TensorBase]] = {}

    def gradient_grows(self, tensor: TensorBase) -> None:
        """Note a tensor."""
        self.grown[id(tensor)] = weakref.ref(tensor)

    def clear(self) -> None:
        """Forget the gradients."""
        clear_gradients(self.grown.values())


class Recorder(Gradients):
    """One run of a function on placeholders, with everything it assigns, reads and uses."""

    recording = True

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard
        self.start = graph.leaf(None, (), bool_, cpu).id  # nodes with lower ids are older
        self.arguments: dict[int, TensorBase] = {}  # id of an argument -> its placeholder, in order
        self.placeholders: dict[int, int] = {}  # leaf node id -> number of the argument
        self.changed: dict[int, tuple[weakref.ref[TensorBase], Node]] = {}  # with its first node
        self.seen: dict[int, Node] = {}  # nodes whose values were looked at
        self.refreshes: dict[int, Callable[[], None]] = {}  # of what was used, by its id
        self.form: Any = None  # the result, with marks for its tensors
        self.outputs: list[Node] = []  # and their nodes

    # What it hears.

    def assigned(self, tensor: TensorBase, old: Node) -> None:
        """Note a tensor with the node that it stood for before the step."""
        known = self.changed.get(id(tensor))
        if known is None or known[0]() is not tensor:  # a dead tensor's id may be given again
            self.changed[id(tensor)] = weakref.ref(tensor), old

    def gradient_grows(self, tensor: TensorBase) -> None:
        """Note a tensor; the gradient must be new, since no replay would add to an older one."""
        if tensor.grad is not None and id(tensor) not in self.grown:
            raise CaptureError(
                "compile: expected no gradient from before the step, got one of "
                f"{tensor.node.dtype.name}{list(tensor.node.shape)}. Call zero_grad() first, "
                "inside the compiled function."
            )
        super().gradient_grows(tensor)

    def looked_at(self, nodes: Sequence[Node]) -> None:
        """Constants may be computed while recording; what depends on an argument may not."""
        for n in topological(nodes, stop=computed):
            if n.id in self.placeholders:
                site = graph.user_site()
                _refuse(nodes[0], f" at {site[0]}:{site[1]}" if site else "")
            if n.id < self.start:
                self.seen[n.id] = n

    def used(self, owner: Any, refresh: Callable[[], None] | None = None) -> None:
        """Guard the attributes of what takes part; refresh it now, as before each replay."""
        self.guard.use(owner)
        if refresh is not None and id(owner) not in self.refreshes:
            self.refreshes[id(owner)] = refresh
            with observing(Observer()):  # what it assigns is no part of the step
                refresh()

    # What it makes of it.

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Run the function; if it fails, every tensor gets back the value it had."""
        leaves = tree_leaves((args, kwargs))
        evaluate(*tensors_of(leaves))
        replaced = (self._placeholder(x) if isinstance(x, TensorBase) else x for x in leaves)
        new_args, new_kwargs = tree_rebuilt((args, kwargs), replaced)
        try:
            with graph.apart(), observing(self):
                result = function(*new_args, **new_kwargs)
            self._check_seen()
            self.form, self.outputs = form_of(result), [t.node for t in tensors_of(result)]
        except BaseException:
            self._restore()
            raise
        finally:  # what was assigned is an output of the step, or was restored
            context.updates.clear()

    def step(self, tensors: list[TensorBase]) -> RecordedStep | None:
        """The step that was recorded; None if it made state, which later calls must not do.

        `tensors` may be among those that it read: a replay then reads their values of the moment.
        """
        self._compute_older()
        arguments = {id(h): k for k, h in enumerate(self.arguments.values())}
        state: list[tuple[TensorBase, Node]] = []
        updates: list[tuple[int, Node]] = []  # assigned arguments
        for key, (reference, old) in self.changed.items():
            tensor = reference()
            if tensor is None:  # only the result knew it
                continue
            if key in arguments:
                updates.append((arguments[key], tensor.node))
            elif old.storage is None:
                return None
            else:
                state.append((tensor, old))
        seen, grown = list(self.seen.values()), list(self.grown.values())
        return RecordedStep(
            Recorded(self.placeholders, state, updates, tensors, self.outputs, seen, grown)
        )

    def results(self) -> Any:
        """Compute all that the function made, and give its result."""
        results = [wrap(n) for n in self.outputs]
        evaluate(*self._live(), *results)
        self.clear()
        return filled(self.form, results)

    def _placeholder(self, tensor: TensorBase) -> TensorBase:
        mine = self.arguments.get(id(tensor))
        if mine is None:
            node = tensor.node
            leaf = graph.leaf(node.storage, node.shape, node.dtype, node.device)
            self.placeholders[leaf.id] = len(self.arguments)
            mine = self.arguments[id(tensor)] = wrap(leaf)
            if node.needs_grad:
                mine.requires_grad_()
        return mine

    def _check_seen(self) -> None:
        """What the step changes may not be looked at, either: the next replay has another value."""
        for _, old in self.changed.values():
            if old.id in self.seen:
                _refuse(old, ", which the function also assigns")

    def _restore(self) -> None:
        for reference, old in self.changed.values():
            tensor = reference()
            if tensor is not None:
                tensor.rebind(old)
        self.clear()

    def _live(self) -> list[TensorBase]:
        return [h for h in (r() for r, _ in self.changed.values()) if h is not None]

    def _compute_older(self) -> None:
        """Compute what the step reads but is older than it: otherwise each replay would, again."""
        roots = [*self.outputs, *(h.node for h in self._live())]
        nodes = topological(roots, stop=lambda n: n.id < self.start or n.storage is not None)
        nodes += [old for _, old in self.changed.values()]
        compute([n for n in nodes if n.id < self.start and const_value(n) is None])


def _refuse(node: Node, how: str) -> None:
    raise CaptureError(
        "compile: expected that no value is looked at inside a compiled function, got a "
        f"read of {node!r}{how}. Return the tensor and look at it outside."
    )
