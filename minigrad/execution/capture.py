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
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad.config import config
from minigrad.context import context, observing
from minigrad.errors import CaptureWarning
from minigrad.execution.compute import capturing, evaluate
from minigrad.execution.guard import Guard
from minigrad.execution.record import Gradients, Recorder, filled, tensors_of
from minigrad.execution.replay import RecordedStep
from minigrad.execution.signature import (
    ArgumentValue,
    Signature,
    argument_names,
    difference,
    signature_of,
)
from minigrad.trees import tree_leaves

if TYPE_CHECKING:
    from minigrad.compiler.plan import Plan

__all__ = ["compile"]

MOST_SIGNATURES = 64  # how many signatures of a function have recordings
# How many recordings a signature has. More than one serves Python values that go back and forth.
MOST_RECORDINGS = 4
MOST_CHANGES = 8  # how often one Python value may change before a warning says that it should not


def compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Record `function` once for each signature and replay it.

    The signature: shapes and dtypes of the tensors among the arguments (nested in tuples, lists and
    dicts), and all other arguments by value. Inside the function no value may be looked at
    (`item()`, `print`, `if tensor:`); return tensors instead. Python side effects happen only while
    recording. Gradients (`.grad`) do not outlive the step. A step that fails while it is recorded
    changes nothing.

    When a Python value that the function read has changed (a global, an attribute, the training
    mode), it is recorded again: see [Note: what is guarded]. `MINIGRAD_DEBUG=1` says why each
    recording is made.

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
        if context.op_by_op is not None or capturing():  # eager, detect_anomaly, nested
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

    step: RecordedStep
    form: Any
    guard: Guard
    refreshes: Collection[Callable[[], None]]  # of tensors that optimizers keep their numbers in

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
        self.known: dict[Signature, list[_Recording]] = {}
        self.last: Signature | None = None
        self.changes: Counter[str] = Counter()  # of Python values, by name

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replay, or record first, or run as usual first."""
        leaves = tree_leaves((args, kwargs))
        signature = signature_of(args, kwargs, leaves)
        tensors = tensors_of(leaves)
        recordings = self.known.get(signature)
        if recordings is None:
            return self._first_call(signature, args, kwargs)
        self.last = signature
        why = None
        for recording in recordings:
            for refresh in recording.refreshes:
                refresh()
            outdated = recording.outdated()
            if outdated is None:
                if recording is not recordings[0]:
                    recordings.remove(recording)
                    recordings.insert(0, recording)
                results = recording.step.replay(tensors)
                return filled(recording.form, results)
            why = why or outdated
        if why is None:
            self._say("recorded")
        else:
            self._say(f"recorded again: {why[0]} {why[1]}")
            self._count(*why)
        guard = Guard(self.function)
        recorder = Recorder(guard)
        recorder.record(self.function, args, kwargs)
        step = recorder.step(guard.tensors)
        guard.settle()
        if step is None:
            return recorder.results()
        recordings.insert(0, _Recording(step, recorder.form, guard, recorder.refreshes.values()))
        del recordings[MOST_RECORDINGS:]
        return filled(recorder.form, step.replay(tensors))

    def _first_call(self, signature: Signature, args: Any, kwargs: Any) -> Any:
        """Run as usual, so that what is made on first use exists."""
        if self.last is None:
            self._say("the first call runs as usual")
        else:
            names = argument_names(self.function, args, kwargs)
            name, before, now = difference(self.last, signature, names)
            self._say(f"runs as usual, the next time recorded: {name} was {before}, is {now}")
            if isinstance(now, ArgumentValue):
                self._count(name, f"was {before}, is {now}")
        self.last = signature
        self.known[signature] = []
        if len(self.known) > MOST_SIGNATURES:
            del self.known[next(iter(self.known))]
        gradients = Gradients()
        with observing(gradients):
            result = self.function(*args, **kwargs)
        evaluate(*tensors_of(result))
        gradients.clear()
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
