"""`x[index]` and `x[index] = v`, with NumPy's meaning.

Integers, slices, None and Ellipsis become views. Integer tensors and lists gather lazily. Boolean
masks select as many elements as they hold, so reading through one computes the mask, here and now;
writing a value through one does not, unless the value has one element for each that is selected.
"""

# pyright: basic
# An index is anything that Python puts in brackets, told apart by isinstance.
from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from math import prod
from typing import Any

from minigrad import ops
from minigrad.device import Device, backend_of
from minigrad.dtype import bool_, int32, int64
from minigrad.functions.arguments import as_type, broadcast_shape, expand_to
from minigrad.functions.gathering import linear
from minigrad.graph import Node, Shape, const, leaf
from minigrad.tensor_base import TensorBase

_EVERYTHING = slice(None)


@dataclass
class _Gather:
    """An int64 index tensor for one axis; unless `is_safe`, it may hold negative numbers."""

    index: Node
    is_safe: bool


@dataclass
class _Region:
    """The part of a node that integers, slices and None select."""

    starts: list[int]
    stops: list[int]
    steps: list[int]
    flips: list[int]  # axes that a negative step reverses
    shape: list[int]  # after integers dropped their axes and None made new ones


def read(x: Node, index: Any) -> Node:
    """x[index]."""
    x, items = _resolve(x, index)
    region = _region(x, items)
    node = _view(x, region)
    if any(isinstance(item, _Gather) for item in items):
        return _gather(node, items)
    return node


def _view(x: Node, region: _Region) -> Node:
    starts, stops, steps = region.starts, region.stops, region.steps
    if stops != list(x.shape) or any(starts) or any(s != 1 for s in steps):
        x = ops.slice_(x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    if region.flips:
        x = ops.flip(x, axes=tuple(region.flips))
    shape = tuple(region.shape)
    return x if shape == x.shape else ops.reshape(x, shape=shape)


# What an index means


def _resolve(x: Node, index: Any) -> tuple[Node, list[Any]]:
    """One item (integer, slice, None or _Gather) for each axis or new axis.

    The axes that a mask of several axes covers are merged into one, so the node may change shape.
    """
    if type(index) is not tuple:
        index = (index,)
    items = [_known(item) for item in index]
    used = sum(_axes_taken(item) for item in items)
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError("index: expected at most one '...', got several.")
    if used > x.ndim:
        raise IndexError(
            f"index: expected at most {x.ndim} indices for shape {x.shape}, got {used}."
        )
    fill = [_EVERYTHING] * (x.ndim - used)
    if dots:
        items[dots[0] : dots[0] + 1] = fill
    else:
        items += fill
    axis = 0
    for place, item in enumerate(items):
        if isinstance(item, Node) and item.dtype is bool_:
            x, item = _selected(x, axis, item)
        elif isinstance(item, Node):
            item = _Gather(as_type(item, int64), is_safe=False)
        elif isinstance(item, list):
            item = _listed(item, axis, x)
        elif isinstance(item, int):
            item = _integer(item, axis, x.shape)
        items[place] = item
        axis += item is not None
    return x, items


def _known(item: Any) -> Any:
    """The item as a Python integer, slice, None, Ellipsis, list or node."""
    if item is None or item is Ellipsis or isinstance(item, slice) or type(item) is int:
        return item
    if isinstance(item, TensorBase):
        node = item.node
        if node.dtype.is_floating:
            raise IndexError(
                f"index: expected an integer or bool tensor, got {node.dtype.name}. "
                "Use astype(int64)."
            )
        if node.dtype is bool_ and node.ndim == 0:
            raise IndexError("index: expected a mask of at least 1 axis, got a bool of shape ().")
        return node
    if isinstance(item, bool):
        raise IndexError("index: expected a mask of at least 1 axis, got a bool. Use where().")
    if (
        isinstance(item, (list, range))
        or hasattr(item, "__array_interface__")
        or hasattr(item, "__dlpack__")
    ):
        return _from_sequence(item)
    try:
        return operator.index(item)
    except TypeError:
        raise IndexError(
            "index: expected integers, slices, None, ..., lists, or integer or bool tensors, got "
            f"{type(item).__name__}."
        ) from None


def _from_sequence(item: Any) -> Any:
    from minigrad.creation import asarray

    if isinstance(item, (list, range)) and len(item) == 0:
        return []
    if isinstance(item, (list, range)) and all(type(i) is int for i in item):
        return list(item)
    return _known(asarray(item))


def _axes_taken(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Node) and item.dtype is bool_ else 1


def _integer(i: int, axis: int, shape: Shape) -> int:
    n = shape[axis]
    if not -n <= i < n:
        allowed = f"an index in {-n}..{n - 1}" if n else "no index"
        raise IndexError(f"index: expected {allowed} for axis {axis} of shape {shape}, got {i}.")
    return i + n if i < 0 else i


def _listed(indices: list[int], axis: int, x: Node) -> _Gather:
    positions = [_integer(i, axis, x.shape) for i in indices]
    return _Gather(_positions(positions, x.device), is_safe=True)


def _positions(values: Sequence[int], device: Device) -> Node:
    from array import array

    data = memoryview(array("q", values)).cast("B")
    return leaf(backend_of(device).from_bytes(data), (len(values),), int64, device)


def _selected(x: Node, axis: int, mask: Node) -> tuple[Node, _Gather]:
    """The positions where the mask holds, along the axes it covers merged into one."""
    _check_mask(x, axis, mask)
    n, before, after = mask.size, x.shape[:axis], x.shape[axis + mask.ndim :]
    if mask.ndim > 1:
        x = ops.reshape(x, shape=(*before, n, *after))
    held = list(compress(range(n), _bytes_of(mask)))
    return x, _Gather(_positions(held, x.device), is_safe=True)


def _check_mask(x: Node, axis: int, mask: Node) -> None:
    covered = x.shape[axis : axis + mask.ndim]
    if covered != mask.shape:
        raise IndexError(
            f"index: expected a mask of shape {covered} at axis {axis} of shape {x.shape}, got "
            f"{mask.shape}."
        )


def _bytes_of(x: Node) -> memoryview:
    from minigrad.execution.compute import compute

    compute([x])
    return backend_of(x.device).to_bytes(x.storage, x.size * x.dtype.itemsize)


def _region(x: Node, items: list[Any]) -> _Region:
    region = _Region([], [], [], [], [])
    for item in items:
        if item is None:
            region.shape.append(1)
            continue
        axis = len(region.starts)
        n = x.shape[axis]
        if isinstance(item, int):
            start, stop, step = item, item + 1, 1
        elif isinstance(item, slice):
            start, stop, step = _slice_of(item, n)
            if step < 0:  # the same elements from low to high, then reversed
                count = len(range(start, stop, step))
                start, stop, step = start + (count - 1) * step, start + 1, -step
                stop = stop if count else start
                start, stop = (start, stop) if count else (0, 0)
                region.flips.append(axis)
            stop = max(start, stop)
            region.shape.append(len(range(start, stop, step)))
        else:
            start, stop, step = 0, n, 1
            region.shape.append(n)
        region.starts.append(start)
        region.stops.append(stop)
        region.steps.append(step)
    return region


def _slice_of(item: slice, n: int) -> tuple[int, int, int]:
    try:
        return item.indices(n)
    except TypeError:
        raise TypeError(f"index: expected integers or None in a slice, got {item}.") from None


# Gathering


def _gather(x: Node, items: list[Any]) -> Node:
    """Index tensors applied to a node whose integers, slices and None are done.

    NumPy's placement: their broadcast shape stands where the index tensors stood, or first when a
    slice or None separates them (integers beside them count as index tensors).
    """
    advanced = [i for i, item in enumerate(items) if isinstance(item, (int, _Gather))]
    together = advanced[-1] - advanced[0] + 1 == len(advanced)
    kept = [item for item in items if not isinstance(item, int)]
    axes = [a for a, item in enumerate(kept) if isinstance(item, _Gather)]
    place = axes[0] if together else 0
    others = [a for a in range(x.ndim) if a not in axes]
    order = (*others[:place], *axes, *others[place:])
    if order != tuple(range(x.ndim)):
        x = ops.permute(x, axes=order)
    extents = x.shape[place : place + len(axes)]
    before, after = x.shape[:place], x.shape[place + len(axes) :]
    gathers = [kept[a] for a in axes]
    shape = _index_shape(gathers)
    places = [expand_to(g.index, shape) for g in gathers]
    if len(axes) == 1:
        position = places[0]
    else:
        x = ops.reshape(x, shape=(*before, prod(extents), *after))
        checked = tuple(i for i, g in enumerate(gathers) if not g.is_safe)
        position = linear(places, extents, checked)
    flat = position if position.ndim == 1 else ops.reshape(position, shape=(position.size,))
    taken = ops.take(x, flat, axis=place)
    result = (*before, *shape, *after)
    return taken if taken.shape == result else ops.reshape(taken, shape=result)


def _index_shape(gathers: list[_Gather]) -> Shape:
    try:
        return broadcast_shape("index", *(g.index.shape for g in gathers))
    except ValueError as error:
        raise IndexError(str(error)) from None


# Writing: a new node, equal to x except in the region


def written(x: Node, index: Any, value: Node) -> Node:
    """`x` with `value` at `index`. With repeated places, the last value stands."""
    mask = _only_mask(index)
    if mask is not None:
        _check_mask(x, 0, mask)
        rest = x.shape[mask.ndim :]
        if value.ndim <= len(rest):  # the same value(s) wherever the mask holds
            _require_fit(value, rest, x)
            column = ops.reshape(mask, shape=mask.shape + (1,) * len(rest))
            return ops.where(ops.expand(column, shape=x.shape), expand_to(value, x.shape), x)
    resolved, items = _resolve(x, index)
    if any(isinstance(item, _Gather) for item in items):
        return _scattered(x, index, value)
    region = _region(resolved, items)
    _require_fit(value, tuple(region.shape), x)
    return _placed(x, region, expand_to(value, tuple(region.shape)))


def _only_mask(index: Any) -> Node | None:
    if isinstance(index, tuple):
        if len(index) != 1:
            return None
        index = index[0]
    item = _known(index) if isinstance(index, (TensorBase, list)) else None
    return item if isinstance(item, Node) and item.dtype is bool_ else None


def _require_fit(value: Node, shape: Shape, x: Node) -> None:
    fits = value.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(value.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"index: expected a value that broadcasts to {shape}, the shape of the indexed part of "
            f"{x.shape}, got {value.shape}."
        )


def _placed(x: Node, region: _Region, value: Node) -> Node:
    extents = [
        len(range(a, b, s))
        for a, b, s in zip(region.starts, region.stops, region.steps, strict=True)
    ]
    value = ops.reshape(value, shape=tuple(extents))
    if region.flips:
        value = ops.flip(value, axes=tuple(region.flips))
    if tuple(extents) == x.shape:
        return value
    if 0 in extents:
        return x
    ends = [
        a + (n - 1) * s + 1 for a, n, s in zip(region.starts, extents, region.steps, strict=True)
    ]
    around = {
        "low": tuple(region.starts),
        "high": tuple(n - end for n, end in zip(x.shape, ends, strict=True)),
        "interior": tuple(s - 1 for s in region.steps),
    }
    inside = ops.pad(const(True, bool_, x.device, tuple(extents)), **around)
    return ops.where(inside, ops.pad(value, **around), x)


def _scattered(x: Node, index: Any, value: Node) -> Node:
    """Through index tensors: the positions are computed now, to keep the last of repeated ones."""
    numbered = ops.reshape(ops.iota(x.size, int64, x.device), shape=x.shape)
    chosen = read(numbered, index)
    _require_fit(value, chosen.shape, x)
    if chosen.size == 0:
        return x
    last = {p: i for i, p in enumerate(_bytes_of(chosen).cast("q"))}
    value = ops.reshape(expand_to(value, chosen.shape), shape=(chosen.size,))
    if len(last) < chosen.size:
        value = ops.take(value, _positions(list(last.values()), x.device), axis=0)
    held = bytearray(x.size)
    for p in last:
        held[p] = 1
    storage = backend_of(x.device).from_bytes(memoryview(held))
    mask = leaf(storage, x.shape, bool_, x.device)
    if x.dtype is bool_:  # scatter_add adds numbers
        value = ops.cast(value, dtype=int32)
    spread = ops.scatter_add(_positions(list(last), x.device), value, size=x.size, axis=0)
    spread = as_type(ops.reshape(spread, shape=x.shape), x.dtype)
    return ops.where(mask, spread, x)
