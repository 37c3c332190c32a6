"""Einstein summation: operands are contracted from left to right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import promote
from minigrad.functions.arguments import as_type, node_of
from minigrad.functions.linalg import _diagonal
from minigrad.graph import Node
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["einsum"]

Labels = list[str]


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """The sum of products that `equation` spells, such as "ij,jk->ik".

    A label repeated in one operand takes its diagonal; "..." stands for axes that broadcast.
    Without "->" the result has the labels that appear once, in alphabetical order.
    """
    nodes = [node_of("einsum", x) for x in operands]
    terms, output = _parse(equation, nodes)
    dtype = nodes[0].dtype
    for n in nodes:
        dtype = promote(dtype, n.dtype)
    parts = [_without_repeats(as_type(n, dtype), t) for n, t in zip(nodes, terms, strict=True)]
    extents = _extents(equation, parts)
    node, labels = parts[0]
    for i, (other, other_labels) in enumerate(parts[1:], 1):
        later = {label for _, names in parts[i + 1 :] for label in names}
        node, labels = _contract(
            (node, labels), (other, other_labels), later | set(output), extents
        )
    node, labels = _sum_out(node, labels, set(output))
    node = ops.permute(node, axes=tuple(labels.index(label) for label in output))
    shape = tuple(extents[label] for label in output)
    return wrap(node if node.shape == shape else ops.expand(node, shape=shape))


def _parse(equation: str, nodes: list[Node]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the result, "..." replaced by the labels "0", "1", ..."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    texts = inputs.split(",")
    if len(texts) != len(nodes):
        raise ValueError(
            f"einsum: expected {len(texts)} operands for {equation!r}, got {len(nodes)}."
        )
    terms = [_labels(equation, text, n) for text, n in zip(texts, nodes, strict=True)]
    known = {label for term in terms for label in term}
    leading = sorted((label for label in known if label.isdigit()), key=int, reverse=True)
    if not arrow:
        named = [label for term in terms for label in term if label.isalpha()]
        return terms, [*leading, *sorted(c for c in set(named) if named.count(c) == 1)]
    before, dots, after = result.partition("...")
    output = [*before, *(leading if dots else []), *after]
    if len(set(output)) != len(output) or not set(output) <= known:
        raise ValueError(
            f"einsum: expected distinct labels of the operands after '->', got {equation!r}."
        )
    return terms, output


def _labels(equation: str, text: str, x: Node) -> Labels:
    """The labels of one operand's axes; those of "..." are numbered from the right."""
    before, dots, after = text.partition("...")
    rest = x.ndim - len(before) - len(after)
    if not all(c.isalpha() for c in before + after) or rest < 0 or (rest and not dots):
        raise ValueError(
            f"einsum: expected one letter for each axis of shape {x.shape}, got {text!r} in "
            f"{equation!r}."
        )
    return [*before, *(str(rest - 1 - i) for i in range(rest)), *after]


def _without_repeats(x: Node, labels: Labels) -> tuple[Node, Labels]:
    while len(set(labels)) != len(labels):
        label = next(c for c in labels if labels.count(c) > 1)
        i = labels.index(label)
        j = labels.index(label, i + 1)
        if x.shape[i] != x.shape[j]:
            raise ValueError(
                f"einsum: expected equal extents for the repeated label {label!r}, got "
                f"{x.shape[i]} and {x.shape[j]}."
            )
        rest = [a for a in range(x.ndim) if a not in (i, j)]
        x = _diagonal(ops.permute(x, axes=(*rest, i, j)), 0, x.shape[i])
        labels = [*(labels[a] for a in rest), label]
    return x, labels


def _extents(equation: str, parts: list[tuple[Node, Labels]]) -> dict[str, int]:
    extents: dict[str, int] = {}
    for node, labels in parts:
        for n, label in zip(node.shape, labels, strict=True):
            known = extents.get(label, 1)
            if known != n and 1 not in (known, n):
                raise ValueError(
                    f"einsum: expected one extent for the label {label!r} of {equation!r}, got "
                    f"{known} and {n}."
                )
            extents[label] = n if known == 1 else known
    return extents


def _sum_out(x: Node, labels: Labels, needed: set[str]) -> tuple[Node, Labels]:
    axes = tuple(i for i, label in enumerate(labels) if label not in needed)
    if not axes:
        return x, labels
    kept = [label for label in labels if label in needed]
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    return ops.reshape(ops.sum_(x, axes=axes), shape=shape), kept


def _contract(
    left: tuple[Node, Labels], right: tuple[Node, Labels], needed: set[str], extents: dict[str, int]
) -> tuple[Node, Labels]:
    a, a_labels = _sum_out(*left, needed | set(right[1]))
    b, b_labels = _sum_out(*right, needed | set(a_labels))
    shared = [label for label in a_labels if label in b_labels]
    # An extent of 1 broadcasts against the other operand's.
    a, b = _grown(a, a_labels, shared, extents), _grown(b, b_labels, shared, extents)
    batch = [label for label in shared if label in needed]
    summed = [label for label in shared if label not in needed]
    labels = [
        *batch,
        *(label for label in a_labels if label not in shared),
        *(label for label in b_labels if label not in shared),
    ]
    if summed:
        batched, contracted = (
            (tuple(a_labels.index(c) for c in names), tuple(b_labels.index(c) for c in names))
            for names in (batch, summed)
        )
        return ops.dot(a, b, batch=batched, contract=contracted), labels
    factor = _aligned(a, a_labels, labels, b, b_labels)
    return factor * _aligned(b, b_labels, labels, a, a_labels), labels


def _grown(x: Node, labels: Labels, shared: Labels, extents: dict[str, int]) -> Node:
    shape = tuple(
        extents[label] if label in shared else n for n, label in zip(x.shape, labels, strict=True)
    )
    return x if shape == x.shape else ops.expand(x, shape=shape)


def _aligned(x: Node, own: Labels, labels: Labels, other: Node, other_labels: Labels) -> Node:
    """`x` with its axes in the order of `labels`, expanded along those of `other` it lacks."""
    x = ops.permute(x, axes=tuple(own.index(c) for c in labels if c in own))
    extents = dict(zip(other_labels, other.shape, strict=True))
    present = dict(zip([c for c in labels if c in own], x.shape, strict=True))
    x = ops.reshape(x, shape=tuple(present.get(c, 1) for c in labels))
    return ops.expand(x, shape=tuple(present.get(c) or extents.get(c, 1) for c in labels))
