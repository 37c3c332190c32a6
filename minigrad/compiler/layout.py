"""Where elements are found: strided views of memory, and affine maps between index spaces.

A view over memory changes strides. A view over a value that is never stored (an elementwise
expression) changes the *indices* at which the expression is evaluated instead.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod

from minigrad.backend.launch import Operand, contiguous_strides
from minigrad.backend.loopnest import Affine
from minigrad.graph import Node, Shape
from minigrad.ops.shapes import matched_axes

Ints = tuple[int, ...]
Index = tuple[Affine, ...]  # one for each axis of a node


def identity_index(shape: Shape) -> Index:
    """The index of a node whose axes are the loop nest's own (an axis of extent 1 stays at 0)."""
    rank = len(shape)
    return tuple(
        Affine(0, tuple(int(i == axis and n != 1) for i in range(rank)))
        for axis, n in enumerate(shape)
    )


def reshape_index(index: Index, shape: Shape, source: Shape, rank: int) -> Index | None:
    """The index into `source` of the element at `index` in its reshape to `shape`.

    `rank` is the loop nest's. Splitting an axis keeps indices affine; merging axes does not: None.
    """
    if 0 in shape:
        return None
    zero = Affine(0, (0,) * rank)
    result = [zero] * len(source)
    for left, right in matched_axes(source, shape):
        if len(left) > 1:
            return None
        total, step = zero, 1
        for j in reversed(right):
            total = total.plus(index[j].scaled(step))
            step *= shape[j]
        result[left[0]] = total
    return tuple(result)


def source_index(node: Node, index: Index, rank: int) -> Index | None:
    """The index into a view's input of the element at `index` of the view; None if not affine."""
    x, name, attrs = node.inputs[0], node.op.name, node.attrs
    if name == "permute":
        result = list(index)
        for i, a in enumerate(attrs["axes"]):
            result[a] = index[i]
        return tuple(result)
    if name == "expand":
        return tuple(
            i if m == n else Affine(0, (0,) * rank)
            for i, m, n in zip(index, x.shape, node.shape, strict=True)
        )
    if name == "slice":
        parts = zip(index, attrs["starts"], attrs["steps"], strict=True)
        return tuple(i.scaled(step, start) for i, start, step in parts)
    if name == "flip":
        return tuple(
            i.scaled(-1, x.shape[a] - 1) if a in attrs["axes"] else i for a, i in enumerate(index)
        )
    assert name == "reshape", name
    return reshape_index(index, node.shape, x.shape, rank)


def reshape_strides(shape: Shape, strides: Ints, target: Shape) -> Ints | None:
    """Strides that show the same memory under another shape; None where no strides can."""
    if 0 in shape:
        return contiguous_strides(target)
    result = [0] * len(target)
    end = 0
    for left, right in matched_axes(shape, target):
        for i, j in pairwise(left):
            if strides[i] != strides[j] * shape[j]:
                return None
        step = strides[left[-1]]
        for j in range(right[-1], end - 1, -1):
            result[j] = step
            step *= target[j]
        end = right[-1] + 1
    return tuple(result)


def view_operand(node: Node, base: Operand) -> Operand | None:
    """The operand of a view node over its input's operand; None if strides cannot express it."""
    if node.op.name == "reshape":
        strides = reshape_strides(base.shape, base.strides, node.shape)
        if strides is None:
            return None
        return Operand(base.slot, base.dtype, node.shape, strides, base.offset)
    rank = node.ndim  # elsewhere an element is where its index in the input is
    axes = tuple(Affine(0, tuple(int(i == axis) for i in range(rank))) for axis in range(rank))
    at = Affine(base.offset, (0,) * rank)
    for index, stride in zip(source_index(node, axes, rank) or (), base.strides, strict=True):
        at = at.plus(index.scaled(stride))
    return Operand(base.slot, base.dtype, node.shape, at.coefficients, at.offset)


def transposed(operand: Operand, axes: Ints) -> Operand:
    """The operand with its axes in another order."""
    return replace(
        operand,
        shape=tuple(operand.shape[a] for a in axes),
        strides=tuple(operand.strides[a] for a in axes),
    )


def collapsed(operand: Operand, groups: tuple[Ints, ...]) -> Operand | None:
    """The operand with each group of axes merged into one axis (an empty group gives extent 1)."""
    shape, strides = [], []
    for axes in groups:
        sub_shape = tuple(operand.shape[a] for a in axes)
        sub_strides = tuple(operand.strides[a] for a in axes)
        merged = reshape_strides(sub_shape, sub_strides, (prod(sub_shape),))
        if merged is None:
            return None
        shape.append(prod(sub_shape))
        strides.append(merged[0])
    return replace(operand, shape=tuple(shape), strides=tuple(strides))


def is_dense(operand: Operand) -> bool:
    """Whether an operand is row-major from its slot's start (an extent of 1 has any stride)."""
    steps = zip(operand.shape, operand.strides, contiguous_strides(operand.shape), strict=True)
    return operand.offset == 0 and all(a == b for n, a, b in steps if n != 1)


def dense(slot: int, dtype, shape: Shape) -> Operand:
    """A row-major operand that fills its slot."""
    return Operand(slot, dtype, shape, contiguous_strides(shape), 0)
