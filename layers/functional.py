"""Calling a module as a function of its state; stateless mathematics is in `minigrad.nn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layers.module import Module
from minigrad import Tensor

__all__ = ["functional_call"]


def functional_call(module: Module, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """`module(*args)` with some parameters and buffers replaced, for derivatives of functions.

    >>> import layers, minigrad as mg
    >>> linear = layers.Linear(2, 1, bias=False)
    >>> loss = lambda w: layers.functional_call(linear, {"weight": w}, mg.ones((1, 2))).sum()
    >>> mg.grad(loss)(mg.zeros((1, 2))).tolist()
    [[1.0, 1.0]]

    Args:
        module: what is called; it is as before afterwards.
        state: dotted names, as in `state_dict`, to tensors of the same shapes.
        args: the arguments of the call.
        kwargs: its keyword arguments.

    Raises:
        ValueError: an unknown name, or another shape.
    """
    modules = dict(module.named_modules())
    replaced: list[tuple[Module, str, Tensor]] = []
    try:
        for path, value in state.items():
            parent, _, name = path.rpartition(".")
            old = vars(modules[parent]).get(name) if parent in modules else None
            # A plain Tensor is what a call around this one has put there.
            if not isinstance(old, Tensor) or old.shape != value.shape:
                expected = "a name of the state" if old is None else f"shape {old.shape}"
                raise ValueError(
                    f"functional_call: expected {expected}, got {path!r} of shape {value.shape}. "
                    f"See state_dict()."
                )
            replaced.append((modules[parent], name, old))
            object.__setattr__(modules[parent], name, value)
        return module(*args, **kwargs)
    finally:
        for owner, name, old in reversed(replaced):
            object.__setattr__(owner, name, old)
