"""What belongs to the thread that runs: its modes, and the one observer of what it does.

All of it is fields of one object, `context`, and `with setting(field, value):` changes one for a
block. What belongs to the whole process is in `config` and `device`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any

from minigrad.config import config

if TYPE_CHECKING:
    from minigrad.graph import Node
    from minigrad.tensor_base import TensorBase


class Observer:
    """Hears what happens to tensors in a block `with observing(...)`. This one ignores it."""

    recording = False  # whether a step is recorded, so that no value may be looked at

    def assigned(self, tensor: TensorBase, old: Node) -> None:
        """A tensor stands for another node now; `old` is the one before."""

    def gradient_grows(self, tensor: TensorBase) -> None:
        """A gradient is about to be added to `tensor.grad`."""

    def looked_at(self, nodes: Sequence[Node]) -> None:
        """Somebody wants the values of these nodes. May raise, if they may not be seen now."""

    def used(self, owner: Any, refresh: Callable[[], None] | None = None) -> None:
        """A module or an optimizer takes part, and its attributes are about to be read.

        `owner.baked_in()` names those attributes that graphs depend on. `refresh` brings the
        tensors that it keeps for its other attributes up to date.
        """


class Context:
    """The fields, with what they are outside of every block."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.grad_enabled = True  # False in `no_grad`
        self.op_by_op: Callable[[Node], None] | None = None  # how `eager` computes a node, at once
        self.rewrite = config.rewrite  # the level of algebraic rewriting, see `Config`
        self.site: tuple[str, int] | None = None  # whom new nodes are built for; None: user's line
        self.derivative_order = 0  # of what is being built, 0 in the forward
        # Every node that exists, by op, inputs and attributes: equal ones are built once.
        self.nodes: weakref.WeakValueDictionary[Any, Node] = weakref.WeakValueDictionary()
        # What waits to be computed with the next computation; see `compute_with_next`.
        self.updates: dict[int, Any] = {}


context = Context()


class setting(ContextDecorator):
    """`with setting("grad_enabled", False):` gives a field of `context` another value in the block.

    One object may be entered several times, also nested.
    """

    def __init__(self, field: str, value: Any):
        self._field, self._value = field, value
        self._before: list[Any] = []

    def __enter__(self) -> None:
        """Change the field."""
        self._before.append(getattr(context, self._field))
        setattr(context, self._field, self._value)

    def __exit__(self, *exception: object) -> None:
        """Put it back as it was."""
        setattr(context, self._field, self._before.pop())


def observing(observer: Observer) -> setting:
    """In the block `observer` hears what happens, and whoever heard it before does not."""
    return setting("observer", observer)
