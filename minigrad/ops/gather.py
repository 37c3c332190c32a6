"""Reading and adding at computed places. Negative indices count from the end.

Out-of-range ones raise IndexError when the values are computed.
"""

from __future__ import annotations

from minigrad.dtype import DType, int64
from minigrad.graph import Node, Primitive, Shape, register

__all__ = ["random_bits", "scatter_add", "take"]


def _check(name: str, indices: Node, x: Node, axis: int) -> None:
    if indices.ndim != 1 or indices.dtype.kind not in ("int", "uint"):
        raise TypeError(
            f"{name}: expected 1-D integer indices, got {indices.dtype.name}{list(indices.shape)}."
        )
    if not 0 <= axis < x.ndim:
        raise ValueError(f"{name}: expected an axis in 0..{x.ndim - 1}, got {axis}.")


def _take_infer(x: Node, indices: Node, *, axis: int) -> tuple[Shape, DType]:
    _check("take", indices, x, axis)
    return (*x.shape[:axis], indices.shape[0], *x.shape[axis + 1 :]), x.dtype


def _scatter_infer(indices: Node, updates: Node, *, size: int, axis: int) -> tuple[Shape, DType]:
    _check("scatter_add", indices, updates, axis)
    if indices.shape[0] != updates.shape[axis]:
        raise ValueError(
            f"scatter_add: expected one index for each of {updates.shape[axis]} slices along axis "
            f"{axis}, got {indices.shape[0]}."
        )
    return (*updates.shape[:axis], size, *updates.shape[axis + 1 :]), updates.dtype


def _take_vjp(g: Node, y: Node, x: Node, indices: Node, *, axis: int) -> tuple[Node, None]:
    return scatter_add(indices, g, size=x.shape[axis], axis=axis), None


def _scatter_vjp(g: Node, y: Node, indices: Node, updates: Node, *, size: int, axis: int):
    return None, take(g, indices, axis=axis)


take = register(Primitive("take", "kernel", _take_infer, _take_vjp))
scatter_add = register(Primitive("scatter_add", "kernel", _scatter_infer, _scatter_vjp))


def _bits_infer(state: Node, *, shape: Shape) -> tuple[Shape, DType]:
    if state.dtype is not int64 or state.shape != (2,):
        raise TypeError("random_bits: expected a state of int64[2] (seed, counter).")
    from minigrad.dtype import int32

    return shape, int32


# Philox4x32-10: element i is word i % 4 of the block numbered counter + i // 4, on every device.
random_bits = register(Primitive("random_bits", "kernel", _bits_infer))
