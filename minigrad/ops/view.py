"""Views: ops that only say where an element is found. The kernel that reads one absorbs it.

`pad` and `concat` write into a part of their output and so do cost a copy.
"""

from __future__ import annotations

from math import prod
from typing import Any

from minigrad.dtype import DType
from minigrad.graph import Node, Primitive, Shape, register, zeros_like

__all__ = ["concat", "flip", "narrow", "pad", "permute", "reshape", "slice_"]

Ints = tuple[int, ...]


def _reshape_infer(x: Node, *, shape: Shape) -> tuple[Shape, DType]:
    if prod(shape) != x.size:
        raise ValueError(f"reshape: expected a shape of {x.size} elements, got {shape}.")
    return shape, x.dtype


def _permute_infer(x: Node, *, axes: Ints) -> tuple[Shape, DType]:
    if sorted(axes) != list(range(x.ndim)):
        raise ValueError(f"permute: expected an order of the axes 0..{x.ndim - 1}, got {axes}.")
    return tuple(x.shape[a] for a in axes), x.dtype


def _slice_infer(x: Node, *, starts: Ints, stops: Ints, steps: Ints) -> tuple[Shape, DType]:
    for n, a, b, s in zip(x.shape, starts, stops, steps, strict=True):
        if not (0 <= a <= b <= n and s >= 1):
            raise ValueError(
                f"slice: expected 0 <= start <= stop <= {n} and step > 0, got {a, b, s}."
            )
    return tuple(-(-(b - a) // s) for a, b, s in zip(starts, stops, steps, strict=True)), x.dtype


def _pad_infer(x: Node, *, low: Ints, high: Ints, interior: Ints) -> tuple[Shape, DType]:
    """Zeros before, after and between: extent n becomes low + n + (n - 1) * interior + high."""
    shape = []
    for n, a, b, i in zip(x.shape, low, high, interior, strict=True):
        if min(a, b, i) < 0:
            raise ValueError(f"pad: expected amounts of 0 or more, got {low}, {high}, {interior}.")
        shape.append(a + n + max(n - 1, 0) * i + b)
    return tuple(shape), x.dtype


def _flip_infer(x: Node, *, axes: Ints) -> tuple[Shape, DType]:
    return x.shape, x.dtype


def _concat_infer(*inputs: Node, axis: int) -> tuple[Shape, DType]:
    first = inputs[0]
    for n in inputs:
        rest = n.shape[:axis] + n.shape[axis + 1 :]
        if n.dtype is not first.dtype or rest != first.shape[:axis] + first.shape[axis + 1 :]:
            got = ", ".join(f"{i.dtype.name}{list(i.shape)}" for i in inputs)
            raise ValueError(f"concat: expected inputs alike except along axis {axis}, got {got}.")
    total = sum(n.shape[axis] for n in inputs)
    return (*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype


def _permute_vjp(g: Node, y: Node, x: Node, *, axes: Ints) -> tuple[Node]:
    return (permute(g, axes=inverse(axes)),)


def _slice_vjp(g: Node, y: Node, x: Node, *, starts: Ints, stops: Ints, steps: Ints) -> tuple[Node]:
    if 0 in y.shape:
        return (zeros_like(x),)
    ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, y.shape, steps, strict=True)]
    high = tuple(n - e for n, e in zip(x.shape, ends, strict=True))
    return (pad(g, low=starts, high=high, interior=tuple(s - 1 for s in steps)),)


def _pad_vjp(g: Node, y: Node, x: Node, *, low: Ints, high: Ints, interior: Ints) -> tuple[Node]:
    steps = tuple(i + 1 for i in interior)
    stops = tuple(
        a + (n - 1) * s + 1 if n else a for a, n, s in zip(low, x.shape, steps, strict=True)
    )
    return (slice_(g, starts=low, stops=stops, steps=steps),)


def _concat_vjp(g: Node, y: Node, *inputs: Node, axis: int) -> tuple[Node, ...]:
    pieces, position = [], 0
    for n in inputs:
        pieces.append(narrow(g, axis, position, position + n.shape[axis]))
        position += n.shape[axis]
    return tuple(pieces)


def inverse(axes: Ints) -> Ints:
    """The permutation that undoes `axes`."""
    order = [0] * len(axes)
    for i, a in enumerate(axes):
        order[a] = i
    return tuple(order)


def narrow(x: Node, axis: int, start: int, stop: int) -> Node:
    """x[..., start:stop, ...] along one axis."""
    starts, stops = [0] * x.ndim, list(x.shape)
    starts[axis], stops[axis] = start, stop
    return slice_(x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * x.ndim)


def _view(name: str, infer: Any, vjp: Any) -> Primitive:
    return register(Primitive(name, "view", infer, vjp))


# fmt: off
reshape = _view("reshape", _reshape_infer, lambda g, y, x, *, shape: (reshape(g, shape=x.shape),))
permute = _view("permute", _permute_infer, _permute_vjp)
slice_  = _view("slice", _slice_infer, _slice_vjp)
flip    = _view("flip", _flip_infer, lambda g, y, x, *, axes: (flip(g, axes=axes),))
pad     = register(Primitive("pad", "kernel", _pad_infer, _pad_vjp))
concat  = register(Primitive("concat", "kernel", _concat_infer, _concat_vjp))
# fmt: on
