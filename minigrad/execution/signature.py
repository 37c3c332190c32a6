"""What tells the calls of a compiled function apart: its arguments and the modes it runs in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minigrad.context import context
from minigrad.device import Device, default_device
from minigrad.tensor_base import TensorBase
from minigrad.trees import tree_paths, tree_rebuilt


class ArgumentKind(NamedTuple):
    """What a recording depends on of a tensor argument."""

    number: int  # one tensor twice is not the same as two tensors
    dtype: str
    shape: tuple[int, ...]
    device: Device
    needs_grad: bool

    def __str__(self) -> str:
        gradient = " that needs a gradient" if self.needs_grad else ""
        return f"{self.dtype}{list(self.shape)} on {self.device}{gradient}"


class ArgumentValue(NamedTuple):
    """An argument that is no tensor: 2 is not 2.0, and 0.0 is not -0.0."""

    type: type
    value: Any  # the text of a float

    def __str__(self) -> str:
        return self.value if self.type is float else repr(self.value)


class Signature(NamedTuple):
    """What a recording depends on beside the values that its guard watches."""

    nesting: str
    leaves: tuple[ArgumentKind | ArgumentValue, ...]
    modes: tuple[Any, ...]


def signature_of(args: Any, kwargs: Any, leaves: list[Any]) -> Signature:
    """The signature of a call; `leaves` are those of its arguments."""
    described: list[ArgumentKind | ArgumentValue] = []
    seen: dict[int, int] = {}
    for leaf in leaves:
        if isinstance(leaf, TensorBase):
            n, number = leaf.node, seen.setdefault(id(leaf), len(seen))
            described.append(ArgumentKind(number, n.dtype.name, n.shape, n.device, n.needs_grad))
        else:
            described.append(ArgumentValue(type(leaf), repr(leaf) if type(leaf) is float else leaf))
    if any(isinstance(x, (tuple, list, dict)) for x in (*args, *kwargs.values())):
        containers = tree_rebuilt((args, kwargs), iter([0] * len(leaves)))
    else:  # the same, sooner
        containers = (0,) * len(args), dict.fromkeys(kwargs, 0)
    nesting = repr(containers)
    modes = (context.grad_enabled, context.rewrite, default_device())
    key = Signature(nesting, tuple(described), modes)
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(
            f"compile: expected arguments that are tensors or hashable, got {error}."
        ) from None
    return key


def difference(old: Signature, new: Signature, names: Iterator[str]) -> tuple[str, Any, Any]:
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


def argument_names(function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[str]:
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
