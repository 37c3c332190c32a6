"""From groups of stored nodes to launches: loop nests where fused, library kernels elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minigrad.backend.interface import Library
from minigrad.backend.launch import CallRecord, Operand, Program
from minigrad.backend.loopnest import LoopNest, Store, copying, simplified
from minigrad.compiler.build_nest import NestBuilder, point
from minigrad.compiler.fuse import Group
from minigrad.compiler.layout import collapsed, dense, identity_index, transposed
from minigrad.compiler.materialize import Placement
from minigrad.device import cpu
from minigrad.graph import Node, const_op

Ints = tuple[int, ...]


class Lowering:
    """Appends the launches of each group to `program`.

    `library` is the device's kernels.
    """

    def __init__(self, placement: Placement, program: Program, library: Library):
        self.placement, self.program, self.library = placement, program, library
        self.constants: list[Node] = []
        self._const_slots: dict[int, int] = {}

    def lower(self, group: Group) -> None:
        """One group: one loop nest, or the launches of one library op."""
        if group.space is not None:
            self._loop_nest(group)
        else:
            (node,) = group.roots
            _RULES[node.op.name](self, node, self.out(node))

    def const_slot(self, node: Node) -> int:
        """The number of a constant among the plan's run-time arguments."""
        slot = self._const_slots.get(node.id)
        if slot is None:
            slot = self._const_slots[node.id] = len(self.constants)
            self.constants.append(node)
        return slot

    def out(self, node: Node) -> Operand:
        """The dense operand of a stored node."""
        return dense(self.placement.slots[node.id], node.dtype, node.shape)

    def operand(self, node: Node) -> Operand:
        """The operand of a node that is in memory."""
        found = self.placement.locate(node)
        assert found is not None, node
        return found

    def call(
        self, kernel: Callable[..., None], *operands: Operand, space: Ints | None = None,
        **attrs: Any,
    ) -> None:  # fmt: skip
        """A kernel of the library, which reads all operands but the last and writes that.

        `space` is the extents of its loops, by default those of the largest operand.
        """
        begin = len(self.program.launches)
        kernel(self.program, *operands, **attrs)
        space = space or max(operands, key=lambda o: o.size).shape
        ops = (kernel.__name__,)
        self._note(CallRecord(ops, space, operands[:-1], operands[-1:], self._since(begin)))

    def run(self, nest: LoopNest) -> None:
        """A loop nest."""
        nest, begin = simplified(nest), len(self.program.launches)
        self.library.loop_nest(self.program, nest)
        since = self._since(begin)
        self._note(
            CallRecord(nest.ops, nest.shape, nest.reads(), nest.writes(), since, nest.passes)
        )

    def _since(self, begin: int) -> range:
        return range(begin, len(self.program.launches))

    def _note(self, call: CallRecord) -> None:
        if call.launches:  # there is nothing to do for empty arrays
            self.program.calls.append(call)

    # --- loop nests ------------------------------------------------------------------------------

    def _loop_nest(self, group: Group) -> None:
        assert group.space is not None
        inside = {r.id for r in group.roots}

        def locate(node: Node) -> Operand | None:
            operand = self.placement.locate(node)
            if operand is not None and self.placement.base(node).id in inside:
                return None  # made by this very nest: its value is at hand
            return operand

        kept = group.kept or (True,) * len(group.space)
        builder = NestBuilder(group.space, kept, locate, self.const_slot)
        for root in group.roots:
            if root.op.kind == "reduce":
                builder.add_reduction(root, self.out(root))
            else:
                builder.add_store(root, self.out(root))
        self.run(builder.nest)

    def evaluate_into(self, node: Node, out: Operand) -> None:
        """A nest that computes `node` into an operand of its shape, wherever that lies."""
        kept = (True,) * node.ndim
        builder = NestBuilder(node.shape, kept, self.placement.locate, self.const_slot)
        index = identity_index(node.shape)
        number = builder.value(node, index)
        builder.nest.stores.append(Store(number, point(out, index, node.ndim), 0))
        self.run(builder.nest)

    def scratch(self, like: Operand) -> Operand:
        """Row-major scratch memory for what another operand holds."""
        slot = self.program.scratch_slot(like.size * like.dtype.itemsize)
        return dense(slot, like.dtype, like.shape)

    def grouped(self, operand: Operand, groups: tuple[Ints, ...]) -> Operand:
        """The operand with each group of axes merged into one; copied where no strides can."""
        merged = collapsed(operand, groups)
        if merged is not None:
            return merged
        source = transposed(operand, sum(groups, ()))
        copied = self.scratch(source)
        self.run(copying(source, copied))
        return _merged(copied, _consecutive(groups))

    def written(
        self, out: Operand, groups: tuple[Ints, ...], write: Callable[[Operand], None]
    ) -> None:
        """Let `write` fill `out` seen with grouped axes; through scratch where no strides can."""
        merged = collapsed(out, groups)
        if merged is not None:
            write(merged)
            return
        target = transposed(out, sum(groups, ()))
        temporary = self.scratch(target)
        write(_merged(temporary, _consecutive(groups)))
        self.run(copying(temporary, target))


def _merged(operand: Operand, groups: tuple[Ints, ...]) -> Operand:
    """A dense operand with each group of axes, which follow one another, merged into one."""
    merged = collapsed(operand, groups)
    assert merged is not None
    return merged


def _consecutive(groups: tuple[Ints, ...]) -> tuple[Ints, ...]:
    """The same groups of axes after a permutation that puts their axes in order."""
    position = itertools.count()
    return tuple(tuple(next(position) for _ in axes) for axes in groups)


def _dot(low: Lowering, node: Node, out: Operand) -> None:
    a, b = node.inputs
    (batch_a, batch_b), (sum_a, sum_b) = node.attrs["batch"], node.attrs["contract"]
    free_a = tuple(i for i in range(a.ndim) if i not in batch_a and i not in sum_a)
    free_b = tuple(i for i in range(b.ndim) if i not in batch_b and i not in sum_b)
    left = low.grouped(low.operand(a), (batch_a, free_a, sum_a))
    right = low.grouped(low.operand(b), (batch_b, sum_b, free_b))
    n, m = len(batch_a), len(free_a)
    axes = tuple(range(len(out.shape)))
    result = _merged(out, (axes[:n], axes[n : n + m], axes[n + m :]))
    low.call(low.library.dot, left, right, result, space=(*result.shape, left.shape[2]))


def _conv(low: Lowering, node: Node, out: Operand) -> None:
    x, w = (low.operand(n) for n in node.inputs)
    low.call(low.library.conv2d, x, w, out, space=(*out.shape, *w.shape[1:]), **node.attrs)


def _planes(ndim: int, axes: Ints) -> tuple[Ints, ...]:
    """Groups of axes for a window op: the others as one, a unit axis, the two windowed ones."""
    others = tuple(a for a in range(ndim) if a not in axes)
    return others, (), (axes[0],), (axes[1],)


def _window(low: Lowering, node: Node, out: Operand) -> None:
    attrs = dict(node.attrs)
    groups = _planes(node.ndim, attrs.pop("axes"))
    inputs = [low.grouped(low.operand(n), groups) for n in node.inputs]
    library = low.library
    kernel = {
        "window_sum": library.window_sum,
        "window_max": library.window_max,
        "window_select": library.window_select,
        "window_scatter": library.window_scatter,
    }[node.op.name]
    low.written(out, groups, lambda target: low.call(kernel, *inputs, target, **attrs))


def _rows(ndim: int, axis: int) -> tuple[Ints, ...]:
    return tuple(range(axis)), (axis,), tuple(range(axis + 1, ndim))


def _take(low: Lowering, node: Node, out: Operand) -> None:
    x, indices = node.inputs
    groups = _rows(node.ndim, node.attrs["axis"])
    source = low.grouped(low.operand(x), groups)
    target = _merged(out, groups)
    low.call(low.library.take, source, low.operand(indices), target)


def _scatter_add(low: Lowering, node: Node, out: Operand) -> None:
    indices, updates = node.inputs
    groups = _rows(node.ndim, node.attrs["axis"])
    target = _merged(out, groups)
    source = low.grouped(low.operand(updates), groups)
    low.call(low.library.scatter_add, low.operand(indices), source, target)


def _argmax(low: Lowering, node: Node, out: Operand) -> None:
    (x,) = node.inputs
    before, axis, after = _rows(x.ndim, node.attrs["axis"])
    source = low.grouped(low.operand(x), (before, axis, after))
    target = _merged(out, (before, (*axis, *after)))
    low.call(low.library.argmax, source, target)


def _random_bits(low: Lowering, node: Node, out: Operand) -> None:
    low.call(low.library.random_bits, low.operand(node.inputs[0]), out)


def _fill_zero(low: Lowering, out: Operand) -> None:
    # Not the graph's own zero, if it has one: another graph of this structure may have a 3 there.
    zero = Node(const_op, (), {"value": 0}, (), out.dtype, cpu, False)
    shape = out.shape
    expression = ("const", low.const_slot(zero), out.dtype.name)
    store = Store(0, point(out, identity_index(shape), len(shape)), 0)
    low.run(LoopNest(shape, (True,) * len(shape), [expression], [out.dtype], [], [store]))


def _pad(low: Lowering, node: Node, out: Operand) -> None:
    (x,) = node.inputs
    low_side, interior = node.attrs["low"], node.attrs["interior"]
    _fill_zero(low, out)
    if x.size:
        offset = sum(s * a for s, a in zip(out.strides, low_side, strict=True))
        strides = tuple(s * (i + 1) for s, i in zip(out.strides, interior, strict=True))
        low.evaluate_into(x, replace(out, shape=x.shape, strides=strides, offset=offset))


def _concat(low: Lowering, node: Node, out: Operand) -> None:
    axis, position = node.attrs["axis"], 0
    for x in node.inputs:
        if x.size:
            offset = out.strides[axis] * position
            low.evaluate_into(x, replace(out, shape=x.shape, offset=offset))
        position += x.shape[axis]


_RULES: dict[str, Callable[[Lowering, Node, Operand], None]] = {
    "dot": _dot,
    "conv": _conv,
    "window_sum": _window,
    "window_max": _window,
    "window_select": _window,
    "window_scatter": _window,
    "take": _take,
    "scatter_add": _scatter_add,
    "argmax": _argmax,
    "random_bits": _random_bits,
    "pad": _pad,
    "concat": _concat,
}
