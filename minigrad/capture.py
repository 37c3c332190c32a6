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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigrad import execution, graph, handle
from minigrad.compiler.plan import Plan, computed, plan_for
from minigrad.config import config
from minigrad.errors import CaptureError
from minigrad.graph import Node, topological
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
    only while recording. Gradients (`.grad`) do not outlive the step.

    Raises:
        CaptureError: the function looks at a value while it is recorded.
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
            result = function(*args, **kwargs)
            execution.evaluate(*_tensors(result))
            return result
        for refresh in before_replay:
            refresh()
        step = steps[key]
        if step is None or not step.is_current():
            why = "recorded" if step is None else "recorded again: a tensor it uses was replaced"
            _say(function, why)
            recorder = _Recorder()
            result = recorder.record(function, args, kwargs)
            step = steps[key] = recorder.finish(result)
            if step is None:
                return result
        return step.replay(_tensors(leaves))

    return run


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
    for leaf in leaves:
        if isinstance(leaf, Handle):
            n = leaf.node
            described.append((n.dtype.name, n.shape, n.device, n.needs_grad))
        else:
            described.append((type(leaf), leaf))
    containers = repr(tree_rebuilt((args, kwargs), iter([0] * len(leaves))))
    key = (containers, tuple(described), handle.grad_enabled, execution.mode_version)
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
        self.arguments: list[Handle] = []
        self.placeholders: dict[int, int] = {}  # leaf node id -> number of the argument
        self.assigned: dict[int, tuple[weakref.ref[Handle], Node]] = {}  # with its first node

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the function; if it fails, every tensor gets back the value it had."""
        leaves = tree_leaves((args, kwargs))
        execution.evaluate(*_tensors(leaves))
        replaced = (self._placeholder(x) if isinstance(x, Handle) else x for x in leaves)
        new_args, new_kwargs = tree_rebuilt((args, kwargs), replaced)
        previous = handle.on_assign, execution.on_observe
        handle.on_assign, execution.on_observe = self._assign, self._observe
        try:
            return function(*new_args, **new_kwargs)
        except BaseException:
            handle.on_assign = None
            self._restore()
            raise
        finally:
            handle.on_assign, execution.on_observe = previous
            # What was assigned is an output of the step, or was restored.
            execution.pending_updates.clear()

    def finish(self, result: Any) -> _Step | None:
        """The step that was recorded; None if it made state that later calls must not make again."""
        mine = {id(t) for t in (*_tensors(result), *self.arguments)}
        state: list[tuple[weakref.ref[Handle], Node]] = []
        for key, (reference, old) in self.assigned.items():
            if reference() is None or key in mine:
                continue
            if old.storage is None:
                live = [r() for r, _ in self.assigned.values()]
                execution.evaluate(*[t for t in live if t is not None], *_tensors(result))
                return None
            state.append((reference, old))
        return _Step(result, self, state)

    def _placeholder(self, tensor: Handle) -> Handle:
        node = tensor.node
        leaf = graph.leaf(node.storage, node.shape, node.dtype, node.device)
        self.placeholders[leaf.id] = len(self.arguments)
        mine = wrap(leaf)
        if node.needs_grad:
            mine.requires_grad_()
        self.arguments.append(mine)
        return mine

    def _assign(self, tensor: Handle, old: Node) -> None:
        self.assigned.setdefault(id(tensor), (weakref.ref(tensor), old))

    def _observe(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """Constants may be computed while recording; what depends on an argument may not."""
        for n in topological(nodes, stop=computed):
            if n.id in self.placeholders:
                site = graph.user_site()
                where = f" at {site[0]}:{site[1]}" if site else ""
                raise CaptureError(
                    "compile: expected that no value is looked at inside a compiled function, got a "
                    f"read of {nodes[0]!r}{where}. Return the tensor and look at it outside."
                )
        return nodes

    def _restore(self) -> None:
        for reference, old in self.assigned.values():
            tensor = reference()
            if tensor is not None:
                tensor.rebind(old)


@dataclass(frozen=True)
class _Source:
    """Where a buffer comes from: an argument, the current value of state, a fixed node, or the plan."""

    kind: str  # "argument", "state", "fixed" or "plan"
    which: Any  # a number, the node, or the plan's slot


@dataclass(frozen=True)
class _Output:
    source: _Source
    like: Node  # shape, dtype and device


class _Step:
    """A recorded call: a plan, where its inputs come from and where its outputs go."""

    def __init__(
        self, result: Any, recorder: _Recorder, state: list[tuple[weakref.ref[Handle], Node]]
    ):
        self.state = [reference for reference, _ in state]
        self.form = _form(result)
        handles = [h for h in (reference() for reference in self.state) if h is not None]
        results = [t.node for t in _tensors(result)]
        updates = [h.node for h in handles]
        wanted = list(dict.fromkeys([*results, *updates]))
        nodes = topological(wanted, stop=computed)
        missing = [n for n in wanted if n.storage is None]
        self.plan: Plan | None = plan_for(nodes, missing) if missing else None
        self.constants = self.plan.constant_values(nodes) if self.plan else []
        old_state = {old.id: k for k, (_, old) in enumerate(state)}
        made: dict[int, int] = {}
        if self.plan is not None:
            made = {nodes[position].id: slot for position, slot in self.plan.outputs}

        def source(n: Node) -> _Source:
            if n.storage is None:
                return _Source("plan", made[n.id])
            if n.id in recorder.placeholders:
                return _Source("argument", recorder.placeholders[n.id])
            return _Source("state", old_state[n.id]) if n.id in old_state else _Source("fixed", n)

        used = [nodes[p] for p in self.plan.inputs] if self.plan else []
        self.inputs = [source(n) for n in used]
        self.results = [_Output(source(n), _described(n)) for n in results]
        self.updates = [_Output(source(n), _described(n)) for n in updates]
        owners = {id(n.owner): n.owner for n in used if n.owner is not None}
        self.with_gradients: list[weakref.ref[Handle]] = list(owners.values())
        # From now on the tensors hold their values of before, which the first replay starts from.
        for h, (_, old) in zip(handles, state, strict=True):
            h.rebind(old)
        fixed = [s.which for s in self.inputs if s.kind == "fixed"]
        self.fixed = [(n, n.handles) for n in fixed]

    def is_current(self) -> bool:
        """Whether every tensor the step reads without assigning is still the one it was."""
        if any(reference() is None for reference in self.state):
            return False
        return all(n.handles >= count for n, count in self.fixed)

    def replay(self, arguments: list[Tensor]) -> Any:
        """Run on new arguments and the current state; the result has the form it was recorded in."""
        handles: list[Handle] = [h for h in (r() for r in self.state) if h is not None]
        execution.compute([t.node for t in (*arguments, *handles)])
        made: dict[int, Any] = {}

        def buffer(source: _Source) -> Any:
            if source.kind == "plan":
                return made[source.which]
            if source.kind == "argument":
                return arguments[source.which].node.storage
            state: Handle | None = handles[source.which] if source.kind == "state" else None
            fixed: Node = source.which if state is None else state.node
            return fixed.storage

        if self.plan is not None:
            made = self.plan.run([buffer(s) for s in self.inputs], self.constants)
        new = [buffer(output.source) for output in self.updates]
        results = [_leaf(buffer(output.source), output.like, False) for output in self.results]
        for h, storage, output in zip(handles, new, self.updates, strict=True):
            h.rebind(_leaf(storage, output.like, h.is_leaf))
        for reference in self.with_gradients:
            owner = reference()
            if owner is not None:
                owner.grad = None
        remaining = iter(results)
        leaves = (wrap(next(remaining)) if x is _TENSOR else x for x in tree_leaves(self.form))
        return tree_rebuilt(self.form, leaves)


def _described(n: Node) -> Node:
    """A node's shape, dtype and device, without what it depends on."""
    with graph.site(_SITE):
        return graph.leaf(None, n.shape, n.dtype, n.device)


def _leaf(storage: Any, like: Node, needs_grad: bool) -> Node:
    with graph.site(_SITE):
        return graph.leaf(storage, like.shape, like.dtype, like.device, needs_grad)
