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
from typing import Any

from minigrad import execution, graph, handle
from minigrad.compiler.plan import Plan, computed, plan_for
from minigrad.config import config
from minigrad.graph import Node, topological
from minigrad.handle import Handle, wrap

_SITE = ("<compiled step>", 0)
before_replay: list[Callable[[], None]] = []  # optimizers refresh their hyper-parameters here


class CaptureError(RuntimeError):
    """A value was asked for while a step was being recorded."""


def compile(function: Callable[..., Any]) -> Callable[..., Any]:  # noqa: A001
    """Record `function` once for each signature and replay it.

    The signature: shapes and dtypes of the tensors among the arguments (nested in tuples, lists and
    dicts), all other arguments by value, and the training mode. Inside the function no value may be
    looked at (`item()`, `print`, `if tensor:`); return tensors instead. Python side effects happen
    only while recording. Gradients (`.grad`) do not outlive the step.

    Raises:
        CaptureError: the function looks at a value while it is recorded.
        TypeError: an argument that is no tensor cannot be hashed.
    """
    steps: dict[Any, _Step | None] = {}

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if graph.on_build is not None or execution.capturing():  # eager, detect_anomaly, nested
            return function(*args, **kwargs)
        tensors: list[Handle] = []
        key = (_signature((args, kwargs), tensors), handle.grad_enabled, execution.mode_version)
        try:
            step = steps.get(key, False)
        except TypeError as error:
            raise TypeError(
                f"compile: expected arguments that are tensors or hashable, got {error}."
            ) from None
        if step is False:
            _say(f"{function.__name__}: first call with this signature runs as usual")
            steps[key] = None
            result = function(*args, **kwargs)
            execution.evaluate(*_tensors_in(result))
            return result
        for refresh in before_replay:
            refresh()
        if step is not None and step.is_current():
            return step.replay(tensors)
        why = "recorded" if step is None else "recorded again: a tensor it uses was replaced"
        _say(f"{function.__name__}: {why}")
        step, result = _record(function, args, kwargs, tensors)
        steps[key] = step
        return result

    return run


def _say(text: str) -> None:
    if config.debug >= 1:
        print(f"minigrad: compile {text}", file=sys.stderr)


def _signature(value: Any, tensors: list[Handle]) -> Any:
    """A hashable description of arguments; their tensors are appended to `tensors`."""
    if isinstance(value, Handle):
        tensors.append(value)
        node = value.node
        return "tensor", node.dtype.name, node.shape, node.device, node.needs_grad
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple([_signature(v, tensors) for v in value])
    if isinstance(value, dict):
        return "dict", tuple([(k, _signature(v, tensors)) for k, v in value.items()])
    return type(value), value


def _tensors_in(value: Any) -> list[Handle]:
    tensors: list[Handle] = []
    _signature(value, tensors)
    return tensors


def _rebuilt(value: Any, replace: Callable[[Handle], Any]) -> Any:
    """A copy of nested arguments or results with every tensor replaced, in `_signature`'s order."""
    if isinstance(value, Handle):
        return replace(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_rebuilt(v, replace) for v in value])
    if isinstance(value, (tuple, list)):
        return type(value)([_rebuilt(v, replace) for v in value])
    if isinstance(value, dict):
        return {k: _rebuilt(v, replace) for k, v in value.items()}
    return value


class _Recorder:
    """What happens while a function is recorded."""

    def __init__(self) -> None:
        self.assigned: dict[int, tuple[weakref.ref[Handle], Node]] = {}  # first node of each handle
        self.placeholders: set[int] = set()

    def assign(self, tensor: Handle, old: Node) -> None:
        self.assigned.setdefault(id(tensor), (weakref.ref(tensor), old))

    def observe(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """Constants may be computed while recording, the arguments' values may not be looked at."""
        for n in topological(nodes, stop=lambda n: n.storage is not None):
            if n.id in self.placeholders:
                site = graph.user_site()
                where = f" at {site[0]}:{site[1]}" if site else ""
                raise CaptureError(
                    "compile: expected that no value is looked at inside a compiled function, got a "
                    f"read of {nodes[0]!r}{where}. Return the tensor and look at it outside."
                )
        return nodes


def _record(function, args, kwargs, tensors: list[Handle]) -> tuple[_Step | None, Any]:
    execution.evaluate(*tensors)
    recorder = _Recorder()
    arguments: list[Handle] = []

    def placeholder(tensor: Handle) -> Handle:
        node = tensor.node
        leaf = graph.leaf(node.storage, node.shape, node.dtype, node.device)
        recorder.placeholders.add(leaf.id)
        mine = wrap(leaf)
        if node.needs_grad:
            mine._become_leaf()
        arguments.append(mine)
        return mine

    previous = handle.on_assign, execution.on_observe
    new_args, new_kwargs = _rebuilt((args, kwargs), placeholder)
    handle.on_assign, execution.on_observe = recorder.assign, recorder.observe
    try:
        result = function(*new_args, **new_kwargs)
    finally:
        handle.on_assign, execution.on_observe = previous
    execution.pending_updates.clear()  # they were assigned, so the step computes them

    results = {id(t) for t in _tensors_in(result)} | {id(t) for t in arguments}
    state: list[tuple[weakref.ref[Handle], Node]] = []
    for key, (reference, old) in recorder.assigned.items():
        tensor = reference()
        if tensor is None or key in results:
            continue
        if old.storage is None:  # state that was made just now: record when it exists
            execution.evaluate(tensor, *_tensors_in(result))
            live = [r() for r, _ in recorder.assigned.values()]
            execution.evaluate(*[t for t in live if t is not None])
            return None, result
        state.append((reference, old))
    step = _Step(result, arguments, state, recorder.placeholders)
    return step, step.replay(tensors)


class _Step:
    """A recorded call: a plan, where its inputs come from and where its outputs go."""

    def __init__(self, result, arguments, state, placeholders: set[int]):
        self.state = [reference for reference, _ in state]
        outputs = [t.node for t in _tensors_in(result)]
        updates = [reference().node for reference in self.state]
        wanted = list(dict.fromkeys([*outputs, *updates]))
        nodes = topological(wanted, stop=computed)
        missing = [n for n in wanted if n.storage is None]
        self.plan: Plan | None = plan_for(nodes, missing) if missing else None
        self.constants = self.plan.constant_values(nodes) if self.plan else []
        from_argument = {t.node.id: k for k, t in enumerate(arguments)}
        for k, t in enumerate(arguments):  # a leaf's node shows its placeholder
            from_argument.update({n.id: k for n in t.node.inputs})
        from_state = {old.id: k for k, (_, old) in enumerate(state)}
        used = [nodes[p] for p in self.plan.inputs] if self.plan else []
        used += [n for n in wanted if n.storage is not None]
        self.sources: dict[int, tuple[str, Any]] = {}
        for n in used:
            if n.id in from_argument:
                self.sources[n.id] = ("argument", from_argument[n.id])
            elif n.id in from_state:
                self.sources[n.id] = ("state", from_state[n.id])
            else:
                self.sources[n.id] = ("fixed", n)
        self.inputs = [self.sources[nodes[p].id] for p in self.plan.inputs] if self.plan else []
        slots = dict(self.plan.outputs) if self.plan else {}
        position = {n.id: i for i, n in enumerate(nodes)}

        def place(n: Node) -> Any:
            return self.sources[n.id] if n.storage is not None else slots[position[n.id]]

        self.outputs = [(place(n), n.shape, n.dtype, n.device) for n in outputs]
        self.updates = [(place(n), n.shape, n.dtype, n.device) for n in updates]
        self.gradients = [
            reference
            for reference in {id(n.owner): n.owner for n in used if n.owner is not None}.values()
        ]
        self.template = _skeleton(result)
        fixed = [n for kind, n in self.sources.values() if kind == "fixed"]
        for reference in self.state:
            tensor = reference()
            if tensor is not None:
                old = next(o for r, o in state if r is reference)
                tensor._bind(old)
        self.fixed = [(n, n.handles) for n in fixed]

    def is_current(self) -> bool:
        """Whether every tensor the step reads without assigning is still the one it was."""
        if any(reference() is None for reference in self.state):
            return False
        return all(n.handles >= count for n, count in self.fixed)

    def replay(self, tensors: list[Handle]) -> Any:
        """Run on new arguments and the current state."""
        execution.compute([t.node for t in tensors])
        handles = [reference() for reference in self.state]
        execution.compute([h.node for h in handles if h is not None])

        def buffer(source: tuple[str, Any]) -> Any:
            kind, which = source
            if kind == "argument":
                return tensors[which].node.storage
            return handles[which].node.storage if kind == "state" else which.storage

        by_slot = {}
        if self.plan is not None:
            by_slot = self.plan.run([buffer(s) for s in self.inputs], self.constants)

        def value(place: Any) -> Any:
            return by_slot[place] if isinstance(place, int) else buffer(place)

        new_state = [value(place) for place, *_ in self.updates]
        new_results = [value(place) for place, *_ in self.outputs]
        with graph.site(_SITE):
            for h, storage, (_, shape, dtype, device) in zip(
                handles, new_state, self.updates, strict=True
            ):
                assert h is not None
                h._bind(graph.leaf(storage, shape, dtype, device, h._is_leaf))
            results = [
                wrap(graph.leaf(storage, shape, dtype, device))
                for storage, (_, shape, dtype, device) in zip(
                    new_results, self.outputs, strict=True
                )
            ]
        for reference in self.gradients:
            owner = reference()
            if owner is not None:
                owner.grad = None
        return _filled(self.template, results)


def _skeleton(value: Any) -> Any:
    """A function's result with each tensor replaced by a mark."""
    return _rebuilt(value, lambda t: _MARK)


class _Mark:
    pass


_MARK = _Mark()


def _filled(template: Any, results: list[Any]) -> Any:
    remaining = iter(results)

    def fill(value: Any) -> Any:
        if value is _MARK:
            return next(remaining)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*[fill(v) for v in value])
        if isinstance(value, (tuple, list)):
            return type(value)([fill(v) for v in value])
        if isinstance(value, dict):
            return {k: fill(v) for k, v in value.items()}
        return value

    return fill(template)
