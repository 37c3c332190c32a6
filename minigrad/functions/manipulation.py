"""Functions that move elements without changing them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import promote
from minigrad.functions.arguments import (
    as_shape,
    as_type,
    broadcast_shape,
    drop_axes,
    expand_to,
    node_of,
    one_axis,
    some_axes,
)
from minigrad.graph import Node, Shape
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Axis
    from minigrad.tensor import Tensor

__all__ = [
    "broadcast_arrays",
    "broadcast_to",
    "concat",
    "expand_dims",
    "flatten",
    "flip",
    "matrix_transpose",
    "moveaxis",
    "permute_dims",
    "repeat",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "stack",
    "tile",
    "tril",
    "triu",
    "unstack",
]


def reshape(x: Tensor, *shape: int | Sequence[int]) -> Tensor:
    """The elements in row-major order in a new shape; one extent may be -1."""
    node = node_of("reshape", x)
    return wrap(ops.reshape(node, shape=_resolved(node, _spelled_out("reshape", shape))))


def _spelled_out(caller: str, values: tuple[int | Sequence[int], ...]) -> tuple[int, ...]:
    """Integers given one by one or as one sequence."""
    try:
        if len(values) == 1 and not hasattr(values[0], "__index__"):
            return tuple([operator.index(v) for v in values[0]])  # type: ignore[union-attr]
        return tuple([operator.index(v) for v in values])  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{caller}: expected integers, got {values}.") from None


def _resolved(x: Node, shape: tuple[int, ...]) -> Shape:
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        if shape.count(-1) == 1 and known > 0 and x.size % known == 0:
            shape = tuple([x.size // known if n == -1 else n for n in shape])
    if min(shape, default=0) < 0 or math.prod(shape) != x.size:
        raise ValueError(
            f"reshape: expected a shape of {x.size} elements with at most one -1, got {shape} "
            f"for a tensor of shape {x.shape}."
        )
    return shape


def flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
    """The axes `start` to `end`, both included, as one."""
    node = node_of("flatten", x)
    if node.ndim == 0:
        return wrap(ops.reshape(node, shape=(1,)))
    first, last = one_axis("flatten", start, node.ndim), one_axis("flatten", end, node.ndim)
    if first > last:
        raise ValueError(f"flatten: expected start <= end, got axes {start} and {end}.")
    shape = node.shape
    merged = math.prod(shape[first : last + 1])
    return wrap(ops.reshape(node, shape=(*shape[:first], merged, *shape[last + 1 :])))


def permute_dims(x: Tensor, *axes: int | Sequence[int]) -> Tensor:
    """The axes in a new order."""
    node = node_of("permute_dims", x)
    order = tuple(
        one_axis("permute_dims", a, node.ndim) for a in _spelled_out("permute_dims", axes)
    )
    if len(order) != node.ndim or len(set(order)) != node.ndim:
        raise ValueError(
            f"permute_dims: expected an order of the axes 0..{node.ndim - 1}, got {order}."
        )
    return wrap(ops.permute(node, axes=order))


def matrix_transpose(x: Tensor) -> Tensor:
    """The last two axes swapped."""
    node = node_of("matrix_transpose", x)
    if node.ndim < 2:
        raise ValueError(f"matrix_transpose: expected at least 2 axes, got shape {node.shape}.")
    n = node.ndim
    return wrap(ops.permute(node, axes=(*range(n - 2), n - 1, n - 2)))


def moveaxis(x: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """The axes `source` moved to `destination`, the others in their order."""
    node = node_of("moveaxis", x)
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    start = [one_axis("moveaxis", a, node.ndim) for a in sources]
    end = [one_axis("moveaxis", a, node.ndim) for a in targets]
    if len(start) != len(end) or len(set(start)) != len(start) or len(set(end)) != len(end):
        raise ValueError(
            f"moveaxis: expected as many distinct destinations as sources, got {source} and "
            f"{destination}."
        )
    order = [a for a in range(node.ndim) if a not in start]
    for place, axis in sorted(zip(end, start, strict=True)):
        order.insert(place, axis)
    return wrap(ops.permute(node, axes=tuple(order)))


def squeeze(x: Tensor, axis: Axis = None) -> Tensor:
    """`x` without the axes `axis` of extent 1; None drops every such axis."""
    node = node_of("squeeze", x)
    if axis is None:
        return wrap(drop_axes(node, tuple(a for a, n in enumerate(node.shape) if n == 1)))
    axes = some_axes("squeeze", axis, node.ndim)
    for a in axes:
        if node.shape[a] != 1:
            raise ValueError(f"squeeze: expected extent 1 on axis {a}, got shape {node.shape}.")
    return wrap(drop_axes(node, axes))


def expand_dims(x: Tensor, axis: int = 0) -> Tensor:
    """`x` with a new axis of extent 1 at `axis` of the result."""
    node = node_of("expand_dims", x)
    a = one_axis("expand_dims", axis, node.ndim + 1)
    return wrap(ops.reshape(node, shape=(*node.shape[:a], 1, *node.shape[a:])))


def broadcast_to(x: Tensor, shape: int | Sequence[int]) -> Tensor:
    """`x` repeated along axes of extent 1 up to `shape`."""
    node, target = node_of("broadcast_to", x), as_shape("broadcast_to", shape)
    fits = len(node.shape) <= len(target) and all(
        n in (1, m) for n, m in zip(reversed(node.shape), reversed(target), strict=False)
    )
    if not fits:
        raise ValueError(
            f"broadcast_to: expected a shape that {node.shape} broadcasts to, got {target}."
        )
    return wrap(expand_to(node, target))


def broadcast_arrays(*arrays: Tensor) -> list[Tensor]:
    """All arrays in the shape they broadcast to together."""
    nodes = [node_of("broadcast_arrays", x) for x in arrays]
    shape = broadcast_shape("broadcast_arrays", *(n.shape for n in nodes)) if nodes else ()
    return [wrap(expand_to(n, shape)) for n in nodes]


def concat(arrays: Sequence[Tensor], axis: int | None = 0) -> Tensor:
    """The arrays one after the other along `axis`; None flattens them first."""
    nodes = _alike("concat", arrays)
    if axis is None:
        nodes = [ops.reshape(n, shape=(n.size,)) for n in nodes]
        return wrap(ops.concat(*nodes, axis=0) if len(nodes) > 1 else nodes[0])
    first = nodes[0].shape
    a = one_axis("concat", axis, len(first))
    for n in nodes:
        if len(n.shape) != len(first) or any(
            i != a and n.shape[i] != first[i] for i in range(len(first))
        ):
            raise ValueError(
                f"concat: expected shapes alike except along axis {a}, got {first} and {n.shape}."
            )
    return wrap(ops.concat(*nodes, axis=a) if len(nodes) > 1 else nodes[0])


def stack(arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Arrays of one shape along a new axis."""
    nodes = _alike("stack", arrays)
    first = nodes[0].shape
    for n in nodes:
        if n.shape != first:
            raise ValueError(f"stack: expected equal shapes, got {first} and {n.shape}.")
    a = one_axis("stack", axis, len(first) + 1)
    raised = [ops.reshape(n, shape=(*first[:a], 1, *first[a:])) for n in nodes]
    return wrap(ops.concat(*raised, axis=a) if len(raised) > 1 else raised[0])


def _alike(caller: str, arrays: Sequence[Tensor]) -> list[Node]:
    """The arrays' nodes in one dtype."""
    nodes = [node_of(caller, x) for x in arrays]
    if not nodes:
        raise ValueError(f"{caller}: expected at least one tensor, got none.")
    dtype = nodes[0].dtype
    for n in nodes[1:]:
        dtype = promote(dtype, n.dtype)
    return [as_type(n, dtype) for n in nodes]


def unstack(x: Tensor, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along `axis`, without that axis."""
    node = node_of("unstack", x)
    a = one_axis("unstack", axis, node.ndim)
    return tuple(wrap(drop_axes(ops.narrow(node, a, i, i + 1), (a,))) for i in range(node.shape[a]))


def split(x: Tensor, sizes: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Pieces of the given sizes along `axis`; an integer is the size of all but the last."""
    node = node_of("split", x)
    a = one_axis("split", axis, node.ndim)
    extent = node.shape[a]
    if isinstance(sizes, int):
        if sizes <= 0:
            raise ValueError(f"split: expected a size of 1 or more, got {sizes}.")
        pieces = [min(sizes, extent - start) for start in range(0, extent, sizes)]
    else:
        pieces = list(as_shape("split", sizes))
        if sum(pieces) != extent:
            raise ValueError(
                f"split: expected sizes that add up to {extent}, the extent of axis {a}, got "
                f"{tuple(pieces)}."
            )
    results, start = [], 0
    for n in pieces:
        results.append(wrap(ops.narrow(node, a, start, start + n)))
        start += n
    return tuple(results)


def flip(x: Tensor, axis: Axis = None) -> Tensor:
    """The order of elements reversed along `axis`; None reverses every axis."""
    node = node_of("flip", x)
    axes = some_axes("flip", axis, node.ndim)
    return wrap(ops.flip(node, axes=axes) if axes else node)


def roll(x: Tensor, shift: int | Sequence[int], axis: Axis = None) -> Tensor:
    """Elements moved by `shift` places; those that leave at one end come back at the other."""
    node = node_of("roll", x)
    if axis is None:
        if not isinstance(shift, int):
            raise ValueError(
                "roll: expected one shift when axis is None, got several. Name the axes."
            )
        flat = ops.reshape(node, shape=(node.size,))
        return wrap(ops.reshape(_rolled(flat, shift, 0), shape=node.shape))
    axes = [axis] if isinstance(axis, int) else list(axis)
    shifts = [shift] * len(axes) if isinstance(shift, int) else list(shift)
    if len(shifts) != len(axes):
        raise ValueError(
            f"roll: expected one shift for each of {len(axes)} axes, got {len(shifts)}."
        )
    for a, s in zip(axes, shifts, strict=True):
        node = _rolled(node, s, one_axis("roll", a, node.ndim))
    return wrap(node)


def _rolled(x: Node, shift: int, axis: int) -> Node:
    n = x.shape[axis]
    cut = -shift % n if n else 0
    if cut == 0:
        return x
    return ops.concat(ops.narrow(x, axis, cut, n), ops.narrow(x, axis, 0, cut), axis=axis)


def tile(x: Tensor, repetitions: int | Sequence[int]) -> Tensor:
    """`x` laid side by side, so many times along each axis; axes are lined up from the right."""
    node, times = node_of("tile", x), as_shape("tile", repetitions)
    ndim = max(node.ndim, len(times))
    shape = (1,) * (ndim - node.ndim) + node.shape
    times = (1,) * (ndim - len(times)) + times
    split_shape = tuple(v for n in shape for v in (1, n))
    tiled = tuple(v for t, n in zip(times, shape, strict=True) for v in (t, n))
    node = ops.expand(ops.reshape(node, shape=split_shape), shape=tiled)
    return wrap(ops.reshape(node, shape=tuple(t * n for t, n in zip(times, shape, strict=True))))


def repeat(x: Tensor, repeats: int, axis: int | None = None) -> Tensor:
    """Each element `repeats` times in a row along `axis`; None flattens first."""
    node, (times,) = node_of("repeat", x), as_shape("repeat", operator.index(repeats))
    if axis is None:
        node, axis = ops.reshape(node, shape=(node.size,)), 0
    a = one_axis("repeat", axis, node.ndim)
    before, n, after = node.shape[:a], node.shape[a], node.shape[a + 1 :]
    node = ops.reshape(node, shape=(*before, n, 1, *after))
    node = ops.expand(node, shape=(*before, n, times, *after))
    return wrap(ops.reshape(node, shape=(*before, n * times, *after)))


def tril(x: Tensor, k: int = 0) -> Tensor:
    """The last two axes with zeros above diagonal `k`."""
    node = node_of("tril", x)
    above = ops.less(*_diagonals("tril", node, k))
    return wrap(ops.where(above, ops.zeros_like(node), node))


def triu(x: Tensor, k: int = 0) -> Tensor:
    """The last two axes with zeros below diagonal `k`."""
    node = node_of("triu", x)
    diagonal, columns = _diagonals("triu", node, k)
    return wrap(ops.where(ops.less(columns, diagonal), ops.zeros_like(node), node))


def _diagonals(caller: str, x: Node, k: int) -> tuple[Node, Node]:
    """Row + k and column of each element: equal on diagonal k."""
    if x.ndim < 2:
        raise ValueError(f"{caller}: expected at least 2 axes, got shape {x.shape}.")
    from minigrad.dtype import int64

    rows, columns = x.shape[-2:]
    row = ops.reshape(ops.iota(rows, int64, x.device), shape=(rows, 1)) + operator.index(k)
    column = ops.iota(columns, int64, x.device)
    return expand_to(row, x.shape), expand_to(column, x.shape)


class ManipulationMethods:
    """The functions above as methods of a Tensor."""

    __slots__ = ()

    broadcast_to = broadcast_to
    expand_dims = expand_dims
    flatten = flatten
    flip = flip
    matrix_transpose = matrix_transpose
    moveaxis = moveaxis
    permute_dims = permute_dims
    repeat = repeat
    reshape = reshape
    roll = roll
    split = split
    squeeze = squeeze
    tile = tile
    tril = tril
    triu = triu
    unstack = unstack
