"""`compile`: a whole training step recorded once and replayed.

The first call with a new signature runs as usual, so that state which is made on first use
(momentum buffers, step counts) exists. The second is recorded: the function runs on placeholders,
nothing is computed, and every tensor that was assigned (parameters, optimizer state, running
statistics, random counters) becomes both an input and an output of one plan. Later calls bind
the current values and run that plan: no graph building, no scheduling.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigrad import execution, graph, handle
from minigrad.compiler.plan import Plan, computed, plan_for
from minigrad.config import config
from minigrad.device import cpu
from minigrad.dtype import bool_
from minigrad.errors import CaptureError
from minigrad.graph import Node, const_value, topological
from minigrad.handle import Handle, wrap
from minigrad.trees import tree_leaves, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_SITE = ("<compiled step>", 0)
before_replay: list[Callable[[], None]] = []  # optimizers bring their hyper-parameters up to date


def compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Record `function` once for each signature and replay it.

    The signature: shapes and dtypes of the tensors among the arguments (nested in tuples, lists and
    dicts), all other arguments by value, and the training mode. Inside the function no value may be
    looked at (`item()`, `print`, `if tensor:`); return tensors instead. Python side effects happen
    only while recording. Gradients (`.grad`) do not outlive the step. A step that fails while it is
    recorded changes nothing.

    Raises:
        CaptureError: the function looks at a value while it is recorded, or adds to a gradient
            from before the step.
        TypeError: an argument that is no tensor cannot be hashed.
    """
    steps: dict[Any, _Step | None] = {}  # None: called once, not recorded yet

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if graph.on_build is not None or execution.capturing():  # eager, detect_anomaly, nested
            return function(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        key = _signature(args, kwargs, leaves)
        if key not in steps:
            _say(function, "the first call with this signature runs as usual")
            steps[key] = None
            first = _Recorder()
            with first.collecting_gradients():
                result = function(*args, **kwargs)
            execution.evaluate(*_tensors(result))
            first.clear_gradients()
            return result
        for refresh in before_replay:
            refresh()
        step = steps[key]
        if step is None or not step.is_current():
            why = "recorded" if step is None else "recorded again: a tensor it uses was replaced"
            _say(function, why)
            recorder = _Recorder()
            recorder.record(function, args, kwargs)
            step = steps[key] = recorder.step()
            if step is None:
                return recorder.results()
        return step.replay(_tensors(leaves))

    run.steps = steps  # pyright: ignore[reportAttributeAccessIssue]
    return run


def recorded_plan(function: Callable[..., Any]) -> Plan | None:
    """The plan of a compiled function, of the newest signature that was recorded, or None."""
    steps = [step for step in getattr(function, "steps", {}).values() if step is not None]
    return steps[-1].plan if steps else None


def _say(function: Callable[..., Any], text: str) -> None:
    if config.debug >= 1:
        name = getattr(function, "__name__", "step")
        print(f"minigrad: compile {name}: {text}", file=sys.stderr)  # noqa: T201


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Handle)]  # type: ignore[misc]


class _Mark:
    """Stands for a tensor in the form of a tree."""


_TENSOR = _Mark()


def _form(tree: Any) -> Any:
    """The tree with each tensor replaced by a mark."""
    leaves = (_TENSOR if isinstance(x, Handle) else x for x in tree_leaves(tree))
    return tree_rebuilt(tree, leaves)


def _signature(args: Any, kwargs: Any, leaves: list[Any]) -> Any:
    """What a recording depends on, hashable."""
    described: list[Any] = []
    seen: dict[int, int] = {}  # one tensor twice is not the same as two tensors
    for leaf in leaves:
        if isinstance(leaf, Handle):
            n, number = leaf.node, seen.setdefault(id(leaf), len(seen))
            described.append((number, n.dtype.name, n.shape, n.device, n.needs_grad))
        else:
            described.append((type(leaf), leaf))
    containers = repr(tree_rebuilt((args, kwargs), iter([0] * len(leaves))))
    key = (containers, tuple(described), handle.grad_enabled, execution.modes)
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(
            f"compile: expected arguments that are tensors or hashable, got {error}."
        ) from None
    return key


class _Recorder:
    """One run of a function on placeholders, with everything it assigns."""

    def __init__(self) -> None:
        self.start = graph.leaf(None, (), bool_, cpu).id  # nodes with lower ids are older
        self.arguments: dict[int, Handle] = {}  # id of an argument -> its placeholder, in order
        self.placeholders: dict[int, int] = {}  # leaf node id -> number of the argument
        self.assigned: dict[int, tuple[weakref.ref[Handle], Node]] = {}  # with its first node
        self.gradients: dict[int, weakref.ref[Handle]] = {}  # whose .grad grew
        self.seen: dict[int, Node] = {}  # nodes whose values were looked at
        self.form: Any = None  # the result, with marks for its tensors
        self.outputs: list[Node] = []  # and their nodes

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Run the function; if it fails, every tensor gets back the value it had."""
        leaves = tree_leaves((args, kwargs))
        execution.evaluate(*_tensors(leaves))
        replaced = (self._placeholder(x) if isinstance(x, Handle) else x for x in leaves)
        new_args, new_kwargs = tree_rebuilt((args, kwargs), replaced)
        previous = handle.on_assign, execution.on_observe
        handle.on_assign, execution.on_observe = self._assign, self._observe
        try:
            with graph.unshared(), self.collecting_gradients(must_be_new=True):
                result = function(*new_args, **new_kwargs)
            self._check_seen()
            self.form, self.outputs = _form(result), [t.node for t in _tensors(result)]
        except BaseException:
            handle.on_assign = None
            self._restore()
            raise
        finally:
            handle.on_assign, execution.on_observe = previous
            # What was assigned is an output of the step, or was restored.
            execution.pending_updates.clear()

    def step(self) -> _Step | None:
        """The step that was recorded; None if it made state, which later calls must not do."""
        self._compute_older()
        arguments = {id(h): k for k, h in enumerate(self.arguments.values())}
        state: list[tuple[Handle, Node]] = []
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
        return _Step(self, state, updates)

    def results(self) -> Any:
        """Compute all that the function made, and give its result."""
        results = [wrap(n) for n in self.outputs]
        execution.evaluate(*self._live(), *results)
        self.clear_gradients()
        return _filled(self.form, results)

    @contextmanager
    def collecting_gradients(self, must_be_new: bool = False) -> Generator[None]:
        """Note every tensor whose `.grad` grows, so that it does not outlive the step."""

        def note(tensor: Handle) -> None:
            if must_be_new and tensor.grad is not None and id(tensor) not in self.gradients:
                raise CaptureError(
                    "compile: expected no gradient from before the step, got one of "
                    f"{tensor.node.dtype.name}{list(tensor.node.shape)}. Call zero_grad() first, "
                    "inside the compiled function."
                )
            self.gradients[id(tensor)] = weakref.ref(tensor)

        previous, handle.on_gradient = handle.on_gradient, note
        try:
            yield
        finally:
            handle.on_gradient = previous

    def clear_gradients(self) -> None:
        """Forget the gradients that were collected."""
        for reference in self.gradients.values():
            tensor = reference()
            if tensor is not None:
                tensor.grad = None

    def _placeholder(self, tensor: Handle) -> Handle:
        mine = self.arguments.get(id(tensor))
        if mine is None:
            node = tensor.node
            leaf = graph.leaf(node.storage, node.shape, node.dtype, node.device)
            self.placeholders[leaf.id] = len(self.arguments)
            mine = self.arguments[id(tensor)] = wrap(leaf)
            if node.needs_grad:
                mine.requires_grad_()
        return mine

    def _assign(self, tensor: Handle, old: Node) -> None:
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

    def _refuse(self, node: Node, where: str) -> None:
        raise CaptureError(
            "compile: expected that no value is looked at inside a compiled function, got a "
            f"read of {node!r}{where}. Return the tensor and look at it outside."
        )

    def _restore(self) -> None:
        for reference, old in self.assigned.values():
            tensor = reference()
            if tensor is not None:
                tensor.rebind(old)
        self.clear_gradients()

    def _live(self) -> list[Handle]:
        return [h for h in (r() for r, _ in self.assigned.values()) if h is not None]

    def _compute_older(self) -> None:
        """Compute what the step reads but is older than it: otherwise each replay would, again."""
        roots = [*self.outputs, *(h.node for h in self._live())]
        nodes = topological(roots, stop=lambda n: n.id < self.start or n.storage is not None)
        nodes += [old for _, old in self.assigned.values()]
        execution.compute([n for n in nodes if n.id < self.start and const_value(n) is None])


@dataclass(frozen=True)
class _Source:
    """Where a buffer comes from: an argument, a tensor's current value, a fixed node, the plan."""

    kind: str  # "argument", "tensor", "fixed" or "plan"
    which: Any  # a number, the node, or the plan's slot


@dataclass(frozen=True)
class _Output:
    source: _Source
    like: Node  # shape, dtype and device


class _Step:
    """A recorded call: a plan, where its inputs come from and where its outputs go."""

    def __init__(
        self,
        recorder: _Recorder,
        state: list[tuple[Handle, Node]],
        updates: list[tuple[int, Node]],
    ):
        self.form = recorder.form
        changed = [*(h.node for h, _ in state), *(n for _, n in updates)]
        wanted = list(dict.fromkeys([*recorder.outputs, *changed]))
        nodes = topological(wanted, stop=computed)
        missing = [n for n in wanted if n.storage is None]
        self.plan: Plan | None = plan_for(nodes, missing) if missing else None
        self.constants = self.plan.constant_values(nodes) if self.plan else []
        made: dict[int, int] = {}
        if self.plan is not None:
            made = {nodes[position].id: slot for position, slot in self.plan.outputs}
        # The tensors whose values of the moment a replay reads: first those it also assigns.
        tensors = [(weakref.ref(h), old) for h, old in state]
        number = {old.id: k for k, (_, old) in enumerate(tensors)}

        def source(n: Node) -> _Source:
            if n.storage is None:
                return _Source("plan", made[n.id])
            if n.id in recorder.placeholders:
                return _Source("argument", recorder.placeholders[n.id])
            if n.id not in number:
                owner = None if n.owner is None else n.owner()
                if owner is None or owner.node is not n:
                    return _Source("fixed", n)
                number[n.id] = len(tensors)
                tensors.append((weakref.ref(owner), n))
            return _Source("tensor", number[n.id])

        used = [nodes[p] for p in self.plan.inputs] if self.plan else []
        self.inputs = [source(n) for n in used]
        self.results = [_Output(source(n), _described(n)) for n in recorder.outputs]
        self.changes = [_Output(source(n), _described(n)) for n in changed]
        self.changed_arguments = [k for k, _ in updates]
        self.tensors = [(reference, _described(old)) for reference, old in tensors]
        self.gradients = recorder.gradients
        recorder.clear_gradients()
        # From now on the tensors hold their values of before, which the first replay starts from.
        for h, old in state:
            h.rebind(old)
        fixed = {s.which for s in self.inputs if s.kind == "fixed"} | {*recorder.seen.values()}
        self.fixed = [(n, n.rebound) for n in fixed]

    def is_current(self) -> bool:
        """Whether every tensor is still what the step was recorded for."""
        for reference, like in self.tensors:
            tensor = reference()
            if tensor is None:
                return False
            n = tensor.node
            if (n.needs_grad, n.dtype, n.device) != (like.needs_grad, like.dtype, like.device):
                return False
        return all(n.rebound == count for n, count in self.fixed)

    def replay(self, leaves: list[Tensor]) -> Any:
        """Run on new arguments and the current state; the result has its recorded form."""
        arguments: list[Handle] = list(dict.fromkeys(leaves))
        tensors: list[Handle] = [h for h in (r() for r, _ in self.tensors) if h is not None]
        execution.compute([t.node for t in (*arguments, *tensors)])
        made: dict[int, Any] = {}

        def buffer(source: _Source) -> Any:
            if source.kind == "plan":
                return made[source.which]
            if source.kind == "fixed":
                return source.which.storage
            known = arguments if source.kind == "argument" else tensors
            number: int = source.which
            return known[number].node.storage

        if self.plan is not None:
            made = self.plan.run([buffer(s) for s in self.inputs], self.constants)
        new = [buffer(output.source) for output in self.changes]
        results = [_leaf(buffer(output.source), output.like, False) for output in self.results]
        states = len(self.changes) - len(self.changed_arguments)
        targets = [*tensors[:states], *(arguments[k] for k in self.changed_arguments)]
        for h, storage, output in zip(targets, new, self.changes, strict=True):
            h.rebind(_leaf(storage, output.like, h.is_leaf))
        for reference in self.gradients.values():
            tensor = reference()
            if tensor is not None:
                tensor.grad = None
        return _filled(self.form, [wrap(n) for n in results])


def _filled(form: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree that `_form` made, with tensors for its marks."""
    remaining = iter(tensors)
    leaves = (next(remaining) if x is _TENSOR else x for x in tree_leaves(form))
    return tree_rebuilt(form, leaves)


def _described(n: Node) -> Node:
    """What a node is like, without its value and what it depends on."""
    return _leaf(None, n, n.needs_grad)


def _leaf(storage: Any, like: Node, needs_grad: bool) -> Node:
    with graph.site(_SITE):
        return graph.leaf(storage, like.shape, like.dtype, like.device, needs_grad)
