"""Recording: one run of a function on placeholders, in which nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from minigrad import graph, tensor_base
from minigrad.compiler.plan import computed
from minigrad.device import cpu
from minigrad.dtype import bool_
from minigrad.errors import CaptureError
from minigrad.execution import compute as computing
from minigrad.execution.compute import compute, evaluate
from minigrad.execution.guard import Guard
from minigrad.execution.replay import Recorded, Step, clear_gradients
from minigrad.graph import Node, const_value, topological
from minigrad.tensor_base import TensorBase, wrap
from minigrad.trees import tree_leaves, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in a tree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, TensorBase)]  # type: ignore[misc]


class _Mark:
    """Stands for a tensor in the form of a tree."""


_TENSOR = _Mark()


def form_of(tree: Any) -> Any:
    """The tree with each tensor replaced by a mark."""
    leaves = (_TENSOR if isinstance(x, TensorBase) else x for x in tree_leaves(tree))
    return tree_rebuilt(tree, leaves)


def filled(form: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree that `form_of` made, with tensors for its marks."""
    remaining = iter(tensors)
    leaves = (next(remaining) if x is _TENSOR else x for x in tree_leaves(form))
    return tree_rebuilt(form, leaves)


class Recorder:
    """One run of a function on placeholders, with everything it assigns."""

    def __init__(self) -> None:
        self.start = graph.leaf(None, (), bool_, cpu).id  # nodes with lower ids are older
        self.arguments: dict[int, TensorBase] = {}  # id of an argument -> its placeholder, in order
        self.placeholders: dict[int, int] = {}  # leaf node id -> number of the argument
        self.assigned: dict[int, tuple[weakref.ref[TensorBase], Node]] = {}  # with its first node
        self.gradients: dict[int, weakref.ref[TensorBase]] = {}  # whose .grad grew
        self.seen: dict[int, Node] = {}  # nodes whose values were looked at
        self.form: Any = None  # the result, with marks for its tensors
        self.outputs: list[Node] = []  # and their nodes

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any, guard: Guard) -> None:
        """Run the function; if it fails, every tensor gets back the value it had."""
        leaves = tree_leaves((args, kwargs))
        evaluate(*tensors_of(leaves))
        replaced = (self._placeholder(x) if isinstance(x, TensorBase) else x for x in leaves)
        new_args, new_kwargs = tree_rebuilt((args, kwargs), replaced)
        previous = tensor_base.on_assign, computing.on_observe, computing.on_use
        tensor_base.on_assign, computing.on_observe = self._assign, self._observe
        computing.on_use = guard.use
        try:
            with graph.unshared(), self.collecting_gradients(must_be_new=True):
                result = function(*new_args, **new_kwargs)
            self._check_seen()
            self.form, self.outputs = form_of(result), [t.node for t in tensors_of(result)]
        except BaseException:
            tensor_base.on_assign = None
            self._restore()
            raise
        finally:
            tensor_base.on_assign, computing.on_observe, computing.on_use = previous
            # What was assigned is an output of the step, or was restored.
            computing.pending_updates.clear()

    def step(self, tensors: list[TensorBase]) -> Step | None:
        """The step that was recorded; None if it made state, which later calls must not do.

        `tensors` may be among those that it read: a replay then reads their values of the moment.
        """
        self._compute_older()
        arguments = {id(h): k for k, h in enumerate(self.arguments.values())}
        state: list[tuple[TensorBase, Node]] = []
        updates: list[tuple[int, Node]] = []  # assigned arguments
        for key, (reference, old) in self.assigned.items():
            tensor = reference()
            if tensor is None:  # only the result knew it
                continue
            if key in arguments:
                updates.append((arguments[key], tensor.node))
            elif old.storage is None:
                return None
            else:
                state.append((tensor, old))
        recorded = Recorded(
            self.placeholders,
            state,
            updates,
            tensors,
            self.outputs,
            list(self.seen.values()),
            list(self.gradients.values()),
        )
        return Step(recorded)

    def results(self) -> Any:
        """Compute all that the function made, and give its result."""
        results = [wrap(n) for n in self.outputs]
        evaluate(*self._live(), *results)
        clear_gradients(self.gradients.values())
        return filled(self.form, results)

    @contextmanager
    def collecting_gradients(self, must_be_new: bool = False) -> Generator[None]:
        """Note every tensor whose `.grad` grows, so that it does not outlive the step."""

        def note(tensor: TensorBase) -> None:
            if must_be_new and tensor.grad is not None and id(tensor) not in self.gradients:
                raise CaptureError(
                    "compile: expected no gradient from before the step, got one of "
                    f"{tensor.node.dtype.name}{list(tensor.node.shape)}. Call zero_grad() first, "
                    "inside the compiled function."
                )
            self.gradients[id(tensor)] = weakref.ref(tensor)

        previous, tensor_base.on_gradient = tensor_base.on_gradient, note
        try:
            yield
        finally:
            tensor_base.on_gradient = previous

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

    def _assign(self, tensor: TensorBase, old: Node) -> None:
        known = self.assigned.get(id(tensor))
        if known is None or known[0]() is not tensor:  # a dead tensor's id may be given again
            self.assigned[id(tensor)] = weakref.ref(tensor), old

    def _observe(self, nodes: Sequence[Node]) -> None:
        """Constants may be computed while recording; what depends on an argument may not."""
        for n in topological(nodes, stop=computed):
            if n.id in self.placeholders:
                site = graph.user_site()
                self._refuse(nodes[0], f" at {site[0]}:{site[1]}" if site else "")
            if n.id < self.start:
                self.seen[n.id] = n

    def _check_seen(self) -> None:
        """What the step changes may not be looked at, either: the next replay has another value."""
        for _, old in self.assigned.values():
            if old.id in self.seen:
                self._refuse(old, ", which the function also assigns")

    def _refuse(self, node: Node, caller: str) -> None:
        raise CaptureError(
            "compile: expected that no value is looked at inside a compiled function, got a "
            f"read of {node!r}{caller}. Return the tensor and look at it outside."
        )

    def _restore(self) -> None:
        for reference, old in self.assigned.values():
            tensor = reference()
            if tensor is not None:
                tensor.rebind(old)
        clear_gradients(self.gradients.values())

    def _live(self) -> list[TensorBase]:
        return [h for h in (r() for r, _ in self.assigned.values()) if h is not None]

    def _compute_older(self) -> None:
        """Compute what the step reads but is older than it: otherwise each replay would, again."""
        roots = [*self.outputs, *(h.node for h in self._live())]
        nodes = topological(roots, stop=lambda n: n.id < self.start or n.storage is not None)
        nodes += [old for _, old in self.assigned.values()]
        compute([n for n in nodes if n.id < self.start and const_value(n) is None])
