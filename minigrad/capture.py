"""`compile`: a whole training step recorded once and replayed.

The first call with a new signature runs as usual, so that state which is made on first use
(momentum buffers, step counts) exists. The second is recorded: the function runs on placeholders,
nothing is computed, and every tensor that was assigned (parameters, optimizer state, running
statistics, random counters) becomes both an input and an output of one plan. Later calls bind
the current values and run that plan: no graph building, no scheduling.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad import execution, graph, tensor_base
from minigrad.compiler.plan import Plan, computed
from minigrad.config import config
from minigrad.device import Device, cpu, default_device
from minigrad.dtype import bool_
from minigrad.errors import CaptureError, CaptureWarning
from minigrad.graph import Node, const_value, topological
from minigrad.guard import Guard
from minigrad.replay import Recorded, Step, clear_gradients
from minigrad.tensor_base import TensorBase, wrap
from minigrad.trees import tree_leaves, tree_paths, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["compile"]

before_replay: list[Callable[[], None]] = []  # optimizers bring their hyper-parameters up to date

MOST_SIGNATURES = 64  # remembered for each function, and
MOST_RECORDINGS = 4  # kept for each signature: values that go back and forth
MOST_CHANGES = 8  # of one Python value, before a warning says that this is not what compile is for


def compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Record `function` once for each signature and replay it.

    The signature: shapes and dtypes of the tensors among the arguments (nested in tuples, lists and
    dicts), and all other arguments by value. Inside the function no value may be looked at
    (`item()`, `print`, `if tensor:`); return tensors instead. Python side effects happen only while
    recording. Gradients (`.grad`) do not outlive the step. A step that fails while it is recorded
    changes nothing.

    When a Python value that the function read has changed (a global, an attribute, the training
    mode), it is recorded again: see `minigrad.guard` for what is noticed. `MINIGRAD_DEBUG=1` says
    why each recording is made.

    Raises:
        CaptureError: the function looks at a value while it is recorded, or adds to a gradient
            from before the step.
        TypeError: an argument that is no tensor cannot be hashed.

    Warns:
        CaptureWarning: one Python value changes again and again. Pass it as a tensor.
    """
    recordings = _Recordings(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if graph.on_build is not None or execution.capturing():  # eager, detect_anomaly, nested
            return function(*args, **kwargs)
        return recordings.call(args, kwargs)

    run.recordings = recordings  # pyright: ignore[reportAttributeAccessIssue]
    return run


def recorded_plan(function: Callable[..., Any]) -> Plan | None:
    """The plan of a compiled function, of the newest signature that was recorded, or None."""
    recordings = getattr(function, "recordings", None)
    known = recordings.known.values() if isinstance(recordings, _Recordings) else ()
    steps = [latest.step for latest, *_ in filter(None, known)]
    return steps[-1].plan if steps else None


class _Recording(NamedTuple):
    """A step, the form of its result, and the Python values that it holds for."""

    step: Step
    form: Any
    guard: Guard

    def outdated(self) -> tuple[str, str] | None:
        """What has changed since: its name, and how."""
        changed = self.guard.changed()
        if changed is None:
            tensor = self.step.replaced()
            if tensor is not None:
                return tensor, "was replaced or changed its type"
        return changed


class _Recordings:
    """The recordings of a function by signature, the one used last in front."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.known: dict[_Signature, list[_Recording]] = {}
        self.last: _Signature | None = None
        self.changes: Counter[str] = Counter()  # of Python values, by name

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replay, or record first, or run as usual first."""
        leaves = tree_leaves((args, kwargs))
        signature = _signature(args, kwargs, leaves)
        tensors = _tensors(leaves)
        recordings = self.known.get(signature)
        if recordings is None:
            return self._first_call(signature, args, kwargs)
        self.last = signature
        for refresh in before_replay:
            refresh()
        why = None
        for recording in recordings:
            outdated = recording.outdated()
            if outdated is None:
                if recording is not recordings[0]:
                    recordings.remove(recording)
                    recordings.insert(0, recording)
                results = recording.step.replay(tensors)
                return _filled(recording.form, results)
            why = why or outdated
        if why is None:
            self._say("recorded")
        else:
            self._say(f"recorded again: {why[0]} {why[1]}")
            self._count(*why)
        recorder, guard = _Recorder(), Guard(self.function)
        recorder.record(self.function, args, kwargs, guard)
        step = recorder.step(guard.tensors)
        guard.settle()
        if step is None:
            return recorder.results()
        recordings.insert(0, _Recording(step, recorder.form, guard))
        del recordings[MOST_RECORDINGS:]
        return _filled(recorder.form, step.replay(tensors))

    def _first_call(self, signature: _Signature, args: Any, kwargs: Any) -> Any:
        """Run as usual, so that what is made on first use exists."""
        if self.last is None:
            self._say("the first call runs as usual")
        else:
            names = _argument_names(self.function, args, kwargs)
            name, before, now = _difference(self.last, signature, names)
            self._say(f"runs as usual, the next time recorded: {name} was {before}, is {now}")
            if isinstance(now, _Value):
                self._count(name, f"was {before}, is {now}")
        self.last = signature
        self.known[signature] = []
        if len(self.known) > MOST_SIGNATURES:
            del self.known[next(iter(self.known))]
        recorder = _Recorder()
        with recorder.collecting_gradients():
            result = self.function(*args, **kwargs)
        execution.evaluate(*_tensors(result))
        clear_gradients(recorder.gradients.values())
        return result

    def _say(self, text: str) -> None:
        if config.debug >= 1:
            print(f"minigrad: compile {self._name}: {text}", file=sys.stderr)  # noqa: T201

    def _count(self, name: str, how: str) -> None:
        """Warn, once, of a value that each call changes: recording is slower than not compiling."""
        self.changes[name] += 1
        if self.changes[name] == MOST_CHANGES:
            warnings.warn(
                f"compile {self._name}: expected Python values that stay the same, got {name}, "
                f"which changed {MOST_CHANGES} times (it {how}); each time the function is "
                "recorded again. Pass it as a tensor argument, or keep it in a tensor and assign.",
                CaptureWarning,
                stacklevel=4,
            )

    @property
    def _name(self) -> str:
        return getattr(self.function, "__name__", "step")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, TensorBase)]  # type: ignore[misc]


class _Mark:
    """Stands for a tensor in the form of a tree."""


_TENSOR = _Mark()


def _form(tree: Any) -> Any:
    """The tree with each tensor replaced by a mark."""
    leaves = (_TENSOR if isinstance(x, TensorBase) else x for x in tree_leaves(tree))
    return tree_rebuilt(tree, leaves)


def _filled(form: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree that `_form` made, with tensors for its marks."""
    remaining = iter(tensors)
    leaves = (next(remaining) if x is _TENSOR else x for x in tree_leaves(form))
    return tree_rebuilt(form, leaves)


class _Kind(NamedTuple):
    """What a recording depends on of a tensor argument."""

    number: int  # one tensor twice is not the same as two tensors
    dtype: str
    shape: tuple[int, ...]
    device: Device
    needs_grad: bool

    def __str__(self) -> str:
        gradient = " that needs a gradient" if self.needs_grad else ""
        return f"{self.dtype}{list(self.shape)} on {self.device}{gradient}"


class _Value(NamedTuple):
    """An argument that is no tensor: 2 is not 2.0, and 0.0 is not -0.0."""

    type: type
    value: Any  # the text of a float

    def __str__(self) -> str:
        return self.value if self.type is float else repr(self.value)


class _Signature(NamedTuple):
    """What a recording depends on beside the values that its guard watches."""

    nesting: str
    leaves: tuple[_Kind | _Value, ...]
    modes: tuple[Any, ...]


def _signature(args: Any, kwargs: Any, leaves: list[Any]) -> _Signature:
    described: list[_Kind | _Value] = []
    seen: dict[int, int] = {}
    for leaf in leaves:
        if isinstance(leaf, TensorBase):
            n, number = leaf.node, seen.setdefault(id(leaf), len(seen))
            described.append(_Kind(number, n.dtype.name, n.shape, n.device, n.needs_grad))
        else:
            described.append(_Value(type(leaf), repr(leaf) if type(leaf) is float else leaf))
    if any(isinstance(x, (tuple, list, dict)) for x in (*args, *kwargs.values())):
        containers = tree_rebuilt((args, kwargs), iter([0] * len(leaves)))
    else:  # the same, sooner
        containers = (0,) * len(args), dict.fromkeys(kwargs, 0)
    nesting = repr(containers)
    modes = (tensor_base.grad_enabled, config.rewrite, default_device())
    key = _Signature(nesting, tuple(described), modes)
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(
            f"compile: expected arguments that are tensors or hashable, got {error}."
        ) from None
    return key


def _difference(old: _Signature, new: _Signature, names: Iterator[str]) -> tuple[str, Any, Any]:
    """The first thing in which two signatures differ: its name, before and now."""
    if new.nesting != old.nesting:
        return "the nesting of the arguments", old.nesting, new.nesting
    modes = ("gradient recording", "algebraic rewriting", "the default device")
    named = (f"argument `{name}`" for name in names)
    pairs = zip(old.leaves + old.modes, new.leaves + new.modes, strict=True)
    return next(
        (name, before, now)
        for name, (before, now) in zip((*named, *modes), pairs, strict=True)
        if before != now
    )


def _argument_names(function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[str]:
    """What to call each leaf of the arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have none
        parameters = ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for i, tree in enumerate(args):
        yield from tree_paths(tree, named[i] if i < len(named) else f"args[{i}]")
    for name, tree in kwargs.items():
        yield from tree_paths(tree, name)


class _Recorder:
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
        execution.evaluate(*_tensors(leaves))
        replaced = (self._placeholder(x) if isinstance(x, TensorBase) else x for x in leaves)
        new_args, new_kwargs = tree_rebuilt((args, kwargs), replaced)
        previous = tensor_base.on_assign, execution.on_observe, execution.on_use
        tensor_base.on_assign, execution.on_observe = self._assign, self._observe
        execution.on_use = guard.use
        try:
            with graph.unshared(), self.collecting_gradients(must_be_new=True):
                result = function(*new_args, **new_kwargs)
            self._check_seen()
            self.form, self.outputs = _form(result), [t.node for t in _tensors(result)]
        except BaseException:
            tensor_base.on_assign = None
            self._restore()
            raise
        finally:
            tensor_base.on_assign, execution.on_observe, execution.on_use = previous
            # What was assigned is an output of the step, or was restored.
            execution.pending_updates.clear()

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
        execution.evaluate(*self._live(), *results)
        clear_gradients(self.gradients.values())
        return _filled(self.form, results)

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
        execution.compute([n for n in nodes if n.id < self.start and const_value(n) is None])
