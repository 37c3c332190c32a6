"""Steering differentiation: constants of it, walls against rewriting, recomputation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minigrad import ops
from minigrad.functions.arguments import node_of
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["barrier", "checkpoint", "stop_gradient"]


def stop_gradient(x: Tensor) -> Tensor:
    """The values of `x`, as a constant of differentiation."""
    return wrap(ops.stop_gradient(node_of("stop_gradient", x)))


def barrier(x: Tensor) -> Tensor:
    """The values of `x`, which algebraic rewriting does not look through."""
    return wrap(ops.barrier(node_of("barrier", x)))


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, whose gradient recomputes what f computed instead of keeping it.

    `f` takes and returns Tensors (or a tuple or list of them); it may use other tensors as well.
    """

    @functools.wraps(f)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        sources = [
            node_of("checkpoint", a) for a in (*args, *kwargs.values()) if isinstance(a, TensorBase)
        ]
        result = f(*args, **kwargs)
        if isinstance(result, (tuple, list)):
            return type(result)(
                wrap(ops.checkpoint(node_of("checkpoint", r), sources)) for r in result
            )
        return wrap(ops.checkpoint(node_of("checkpoint", result), sources))

    return recomputed
