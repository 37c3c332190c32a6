"""Nodes made while a graph is rewritten.

They are hash-consed among themselves and with the unstored nodes of the graph in hand, not with the
rest of the process: a node that somebody else has computed must not become an input of the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partialmethod
from typing import Any

from minigrad import graph, ops
from minigrad.graph import Node, Number, Primitive, Shape, const_op
from minigrad.ops import expand, permute, reshape

_COMMUTE = (ops.add, ops.mul)


class NodeBuilder:
    """Builds nodes. All operands of an elementwise op have one rank; extents of 1 are broadcast.

    `here` is the node in hand: what is made for it inherits its line and its derivative order.
    """

    def __init__(self, nodes: Iterable[Node]):
        self.here: Node | None = None
        self.origin: dict[int, int] = {}  # id of a node made here -> id of the node it is made for
        self._nodes: dict[Any, Node] = {}
        for n in nodes:
            if n.storage is None:
                self._nodes[_key(n.op, n.inputs, n.attrs, n)] = n

    def make(self, op: Primitive, inputs: Sequence[Node], attrs: dict[str, Any]) -> Node:
        """The node that applies `op` to `inputs`."""
        key = _key(op, inputs, attrs)
        found = self._nodes.get(key)
        if found is None and op in _COMMUTE:  # a * b and b * a are one node
            found = self._nodes.get(_key(op, inputs[::-1], attrs))
        if found is None:
            shape, dtype = op.infer(*inputs, **attrs)
            found = self._add(key, op, tuple(inputs), attrs, shape, dtype, inputs[0].device)
        return found

    def _add(self, key: Any, *parts: Any) -> Node:
        here = self.here
        assert here is not None
        make: Any = Node
        with graph.site(here.site or ("<rewritten>", 0)):
            node: Node = make(*parts, False)
        node.derivative_order = here.derivative_order
        self._nodes[key] = node
        self.origin[node.id] = self.origin.get(here.id, here.id)
        return node

    def number(self, value: Number, like: Node, rank: int | None = None) -> Node:
        """A constant of the dtype of `like` with `rank` axes (its own rank) of extent 1."""
        value = float(value) if like.dtype.is_floating else int(value)
        key = _const_key(value, like)
        node = self._nodes.get(key)
        if node is None:
            node = self._add(key, const_op, (), {"value": value}, (), like.dtype, like.device)
        return self.reshape(node, (1,) * (like.ndim if rank is None else rank))

    def reshape(self, x: Node, shape: Shape) -> Node:
        """x in another shape; of several reshapes only the last one remains."""
        while x.op is reshape and x.storage is None:
            x = x.inputs[0]
        return x if x.shape == shape else self.make(reshape, (x,), {"shape": shape})

    def permute(self, x: Node, axes: tuple[int, ...]) -> Node:
        """The axes in another order; two orders become one."""
        if x.op is permute and x.storage is None:
            axes, x = tuple(x.attrs["axes"][a] for a in axes), x.inputs[0]
        return x if axes == tuple(range(x.ndim)) else self.make(permute, (x,), {"axes": axes})

    def expand(self, x: Node, shape: Shape) -> Node:
        """A broadcast to `shape`."""
        if x.shape == shape:
            return x
        if x.op is expand and x.storage is None:
            return self.expand(x.inputs[0], shape)
        return self.make(expand, (x,), {"shape": shape})

    def together(self, op: Primitive, a: Node, b: Node) -> Node:
        """An elementwise op of two nodes of one rank."""
        if a.shape != b.shape:
            shape = tuple(q if p == 1 else p for p, q in zip(a.shape, b.shape, strict=True))
            a, b = self.expand(a, shape), self.expand(b, shape)
        return self.make(op, (a, b), {})

    add = partialmethod(together, ops.add)  # a + b
    sub = partialmethod(together, ops.sub)  # a - b
    mul = partialmethod(together, ops.mul)  # a * b
    div = partialmethod(together, ops.div)  # a / b

    def neg(self, a: Node) -> Node:
        """-a."""
        return self.make(ops.neg, (a,), {})

    def sum(self, x: Node, axes: Iterable[int]) -> Node:
        """The sum over `axes`; those of extent 1 need none."""
        axes = tuple(a for a in sorted(axes) if x.shape[a] != 1)
        return self.make(ops.sum_, (x,), {"axes": axes}) if axes else x


def _key(op: Primitive, inputs: Sequence[Node], attrs: dict[str, Any], node: Node | None = None):
    if op is const_op and node is not None:
        return _const_key(node.attrs["value"], node)
    if not inputs:
        return op.name, id(node)
    return op.name, tuple([n.id for n in inputs]), tuple(attrs.values())


def _const_key(value: Number, like: Node) -> Any:
    exactly = value.hex() if isinstance(value, float) else value
    return const_op.name, exactly, like.dtype.name, like.device
