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

Ints = tuple[int, ...]


Index = tuple[Affine, ...]  # one for each axis of a node


def identity_index(shape: Shape) -> Index:
    """The index of a node whose axes are the loop nest's own (an axis of extent 1 stays at 0)."""
    rank = len(shape)
    return tuple(
        Affine(0, tuple(int(i == axis and n != 1) for i in range(rank)))
        for axis, n in enumerate(shape)
    )


def _blocks(a: Shape, b: Shape) -> list[tuple[Ints, Ints]] | None:
    """Pair up runs of axes of two shapes that hold the same elements; None for empty shapes."""
    if prod(a) == 0:
        return None
    blocks, i, j = [], 0, 0
    while i < len(a) or j < len(b):
        left, right = [], []
        m = n = 1
        if i < len(a):
            left.append(i)
            m = a[i]
            i += 1
        if j < len(b) and (m != 1 or not left):
            right.append(j)
            n = b[j]
            j += 1
        while m != n:
            if m < n:
                left.append(i)
                m *= a[i]
                i += 1
            else:
                right.append(j)
                n *= b[j]
                j += 1
        blocks.append((tuple(left), tuple(right)))
    return blocks


def reshape_index(index: Index, shape: Shape, source: Shape, rank: int) -> Index | None:
    """The index into `source` of the element at `index` in its reshape to `shape`.

    `rank` is the loop nest's. Splitting an axis keeps indices affine; merging axes does not: None.
    """
    blocks = _blocks(source, shape)
    if blocks is None:
        return None
    zero = Affine(0, (0,) * rank)
    result = [zero] * len(source)
    for left, right in blocks:
        real = [i for i in left if source[i] != 1]
        if len(real) > 1:
            long = [j for j in right if shape[j] != 1]
            if [source[i] for i in real] != [shape[j] for j in long]:
                return None
            for i, j in zip(real, long, strict=True):
                result[i] = index[j]
        elif real:
            total, step = zero, 1
            for j in reversed(right):
                total = total.plus(index[j].scaled(step))
                step *= shape[j]
            result[real[0]] = total
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
            Affine(0, (0,) * len(i.coefficients)) if n == 1 else i
            for i, n in zip(index, x.shape, strict=True)
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
    blocks = _blocks(shape, target)
    if blocks is None:
        return contiguous_strides(target)
    result = [0] * len(target)
    for left, right in blocks:
        real = [i for i in left if shape[i] != 1]
        for i, j in pairwise(real):
            if strides[i] != strides[j] * shape[j]:
                return None
        step = strides[real[-1]] if real else 0
        for j in reversed(right):
            result[j] = step
            step *= target[j]
    return tuple(result)


def view_operand(node: Node, base: Operand) -> Operand | None:
    """The operand of a view node over its input's operand; None if strides cannot express it."""
    name, attrs = node.op.name, node.attrs
    strides, offset = base.strides, base.offset
    if name == "permute":
        strides = tuple(strides[a] for a in attrs["axes"])
    elif name == "expand":
        both = zip(base.shape, node.shape, strides, strict=True)
        strides = tuple(0 if a != b else s for a, b, s in both)
    elif name == "slice":
        offset += sum(s * a for s, a in zip(strides, attrs["starts"], strict=True))
        strides = tuple(s * k for s, k in zip(strides, attrs["steps"], strict=True))
    elif name == "flip":
        axes = attrs["axes"]
        offset += sum(strides[a] * (base.shape[a] - 1) for a in axes)
        strides = tuple(-s if a in axes else s for a, s in enumerate(strides))
    else:
        reshaped = reshape_strides(base.shape, strides, node.shape)
        if reshaped is None:
            return None
        strides = reshaped
    return Operand(base.slot, base.dtype, node.shape, strides, offset)


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
