"""Argument checks of the nn functions: each names the function, the argument and the cure."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from minigrad.functions.arguments import node_of
from minigrad.graph import Node, Shape
from minigrad.handle import Handle

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


def floating(where: str, x: Tensor, name: str = "x") -> Node:
    """The node of a floating-point argument."""
    if not isinstance(x, Handle):
        raise TypeError(
            f"{where}: expected {name} to be a Tensor, got {type(x).__name__}. "
            "Make one with minigrad.tensor()."
        )
    node = node_of(where, x)
    if not node.dtype.is_floating:
        raise TypeError(
            f"{where}: expected {name} of a floating dtype, got {node.dtype.name}. "
            "Use astype(float32)."
        )
    return node


def beside(where: str, x: Node, name: str, value: Tensor, shape: Shape | None = None) -> Node:
    """The node of an argument that goes with `x`: its dtype, and `shape` if that is given."""
    node = floating(where, value, name)
    if node.dtype is not x.dtype:
        raise TypeError(
            f"{where}: expected {name} of x's dtype {x.dtype.name}, got {node.dtype.name}. "
            "Use astype()."
        )
    if shape is not None and node.shape != shape:
        raise ValueError(f"{where}: expected {name} of shape {shape}, got {node.shape}.")
    return node


def integer(where: str, name: str, value: Any, least: int) -> int:
    """An integer of `least` or more."""
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{where}: expected {name} to be an integer, got {type(value).__name__} {value!r}."
        ) from None
    if result < least:
        raise ValueError(f"{where}: expected {name} of {least} or more, got {result}.")
    return result


def integers(where: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """Two integers (height, width) from one or two."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{where}: expected {name} of one or two integers, got {value}.")
        return integer(where, name, value[0], least), integer(where, name, value[1], least)
    n = integer(where, name, value, least)
    return n, n


def images(where: str, x: Tensor) -> Node:
    """The node of a batch of images (N, C, H, W)."""
    node = floating(where, x)
    if node.ndim != 4:
        raise ValueError(
            f"{where}: expected x of shape (N, C, H, W), got {node.shape}. "
            "A single image needs a batch axis: x[None]."
        )
    return node


def fraction(where: str, name: str, value: float) -> float:
    """A number in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: expected {name} in [0, 1], got {value}.")
    return value


def reduction_of(where: str, reduction: str) -> str:
    """The name of a reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{where}: expected reduction 'mean', 'sum' or 'none', got {reduction!r}.")
    return reduction
