"""Building loop nests: nodes evaluated at indices over a nest's axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.backend.launch import Operand
from minigrad.backend.loopnest import Access, LoopNest, Reduction, Store
from minigrad.compiler.layout import Index, identity_index, source_index, view_operand
from minigrad.dtype import DType
from minigrad.graph import Node, Shape


class NestBuilder:
    """Builds a nest by evaluating nodes at indices over its axes.

    `locate(node)` gives the operand of a node that is in memory, None for one that is not.
    `const_slot(node)` numbers a constant, whose value is a run-time argument.
    """

    def __init__(
        self,
        shape: Shape,
        kept: tuple[bool, ...],
        locate: Callable[[Node], Operand | None],
        const_slot: Callable[[Node], int],
    ):
        self.nest = LoopNest(shape, kept)
        self.locate, self.const_slot = locate, const_slot
        self.levels: list[int] = []  # per expression: the first pass in which it is known
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._memo: dict[tuple[int, Index], int] = {}
        self._inside: dict[tuple[int, Index], int] = {}  # values this nest itself makes

    def _intern(self, key: tuple[Any, ...], dtype: DType, level: int) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.nest.expressions)
            self.nest.expressions.append(key)
            self.nest.types.append(dtype)
            self.levels.append(level)
        return number

    def value(self, node: Node, index: Index) -> int:
        """The number of the expression for `node` at `index`. Iterative: graphs can be deep."""
        stack = [(node, index)]
        while stack:
            n, i = stack[-1]
            if (n.id, i) in self._memo:
                stack.pop()
                continue
            pending = self._visit(n, i)
            if pending:
                stack.extend(pending)
            else:
                stack.pop()
        return self._memo[node.id, index]

    def _visit(self, node: Node, index: Index) -> list[tuple[Node, Index]]:
        """Evaluate one node if its arguments are known, else say which are missing."""
        key = (node.id, index)
        if key in self._inside:
            self._memo[key] = self._inside[key]
            return []
        operand = self.locate(node)
        if operand is not None:
            access = point(operand, index, len(self.nest.shape))
            self._memo[key] = self._intern(("load", access), node.dtype, 0)
            return []
        name = node.op.name
        if name == "const":
            slot = self.const_slot(node)
            self._memo[key] = self._intern(("const", slot, node.dtype.name), node.dtype, 0)
            return []
        if name == "iota":
            self._memo[key] = self._intern(("index", index[0], node.dtype.name), node.dtype, 0)
            return []
        if node.op.kind == "view":
            inner = source_index(node, index, len(self.nest.shape))
            assert inner is not None, "a merging reshape must have been materialized"
            arguments = [(node.inputs[0], inner)]
        elif node.op.kind == "identity":
            arguments = [(node.inputs[0], index)]
        else:
            assert node.op.kind == "map", node
            arguments = [(n, index) for n in node.inputs]
        missing = [a for a in arguments if (a[0].id, a[1]) not in self._memo]
        if missing:
            return missing
        numbers = [self._memo[n.id, i] for n, i in arguments]
        if node.op.kind == "map":
            level = max(self.levels[k] for k in numbers)
            expression = (name, node.dtype.name, *numbers)
            self.nest.costs[name] = node.op.cost
            self._memo[key] = self._intern(expression, node.dtype, level)
        else:
            self._memo[key] = numbers[0]
        return []

    def add_store(self, node: Node, out: Operand) -> None:
        """Store a node over the whole space."""
        index = identity_index(self.nest.shape)
        number = self.definition(node, index)
        access = point(out, index, len(self.nest.shape))
        self.nest.stores.append(Store(number, access, self.levels[number]))
        self._inside[node.id, index] = number

    def add_reduction(self, node: Node, out: Operand) -> None:
        """Accumulate a `sum` or `max` node over the reduced axes."""
        index = identity_index(self.nest.shape)
        number = self.value(node.inputs[0], index)
        # The output keeps the reduced axes with extent 1, so its own identity index has them at 0.
        kept_index = identity_index(node.shape)
        access = point(out, kept_index, len(self.nest.shape))
        level = self.levels[number]
        reduction = Reduction(node.op.name, number, node.dtype, access, level)
        self.nest.reductions.append(reduction)
        key = ("reduction", len(self.nest.reductions) - 1)
        self._inside[node.id, kept_index] = self._intern(key, node.dtype, level + 1)

    def definition(self, node: Node, index: Index) -> int:
        """The value of a node that is being stored: what it is made of, not a load of itself."""
        if node.op.kind == "view":
            base = self.locate(node.inputs[0])
            seen = None if base is None else view_operand(node, base)
            if seen is not None:  # a copy of memory seen otherwise, which may merge axes
                access = point(seen, index, len(self.nest.shape))
                return self._intern(("load", access), node.dtype, 0)
        locate, self.locate = self.locate, lambda n: None if n is node else locate(n)
        try:
            return self.value(node, index)
        finally:
            self.locate = locate


def point(operand: Operand, index: Index, rank: int) -> Access:
    """The access that reads `operand` at `index`."""
    offset = operand.offset
    strides = [0] * rank
    for stride, affine in zip(operand.strides, index, strict=True):
        offset += stride * affine.offset
        for axis, c in enumerate(affine.coefficients):
            strides[axis] += stride * c
    return Access(operand.slot, operand.dtype, tuple(strides), offset)
