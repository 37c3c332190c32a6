"""What every Tensor is underneath: a handle on a node, counted, and rebound instead of written to.

The array functions work on handles and give Tensors; `tensor.py` adds the methods on top, so
neither imports the other's names.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from minigrad.context import context
from minigrad.graph import Node, stored
from minigrad.ops.control import stop_gradient, variable

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_tensor_class: Any = None  # what functions return

_new = object.__new__


class TensorBase:
    """A name for a node. `node.handles` counts the live ones: their values are kept."""

    __slots__ = ("__weakref__", "_is_leaf", "_node", "grad")

    def __init__(self, node: Node, requires_grad: bool = False):
        if type(node) is not Node:
            raise TypeError(
                f"Tensor: expected a graph node, got {type(node).__name__}. "
                "Make a tensor of data with minigrad.tensor(data)."
            )
        if requires_grad:
            node = _differentiable(node)
            node.owner = weakref.ref(self)
        self.grad: Tensor | None = None
        self._is_leaf = requires_grad
        self._node = node
        node.handles += 1

    @property
    def node(self) -> Node:
        """The node of the graph that this tensor stands for now."""
        return self._node

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor is a point of differentiation, made by `requires_grad=True`."""
        return self._is_leaf

    def _become_leaf(self) -> None:
        node = _differentiable(self._node)
        self._is_leaf = True
        self.rebind(node)

    def rebind(self, node: Node) -> None:
        """Point at `node`. Values never change: whoever holds the old node still sees its value."""
        old = self._node
        node.handles += 1
        old.handles -= 1
        old.rebound += 1
        self._node = node
        if self._is_leaf:
            node.owner = weakref.ref(self)
        context.observer.assigned(self, old)

    def __del__(self) -> None:
        try:
            self._node.handles -= 1
        except AttributeError:  # the constructor raised
            return


def _differentiable(node: Node) -> Node:
    """A point of differentiation, no one else's, with the value of `node`."""
    if not node.dtype.is_floating:
        raise TypeError(
            f"requires_grad: expected a floating dtype, got {node.dtype.name}. Use astype(float32)."
        )
    if node.op is stored and node.needs_grad and node.owner is None:
        return node
    return variable(stop_gradient(node))


def given_by_functions(subclass: type[Tensor]) -> type[Tensor]:
    """Decorate the class that `wrap` makes, and so every function: it is built on this one."""
    global _tensor_class
    _tensor_class = subclass
    return subclass


def wrap(node: Node) -> Tensor:
    """A Tensor on the result of an op."""
    tensor = _new(_tensor_class)
    tensor.grad = None
    tensor._is_leaf = False
    tensor._node = node
    node.handles += 1
    return tensor


def nodes_of(*tensors: Tensor) -> list[Node]:
    """The nodes of tensors, as an op may use them: under `no_grad`, cut from the gradient."""
    if context.grad_enabled:
        return [t.node for t in tensors]
    return [stop_gradient(t.node) for t in tensors]
