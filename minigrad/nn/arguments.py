"""Argument checks of the nn functions: each names the function, the argument and the cure."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from minigrad.functions.arguments import node_of
from minigrad.graph import Node, Shape
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


def floating(caller: str, x: Tensor, name: str = "x") -> Node:
    """The node of a floating-point argument."""
    if not isinstance(x, TensorBase):
        raise TypeError(
            f"{caller}: expected {name} to be a Tensor, got {type(x).__name__}. "
            "Make one with minigrad.tensor()."
        )
    node = node_of(caller, x)
    if not node.dtype.is_floating:
        raise TypeError(
            f"{caller}: expected {name} of a floating dtype, got {node.dtype.name}. "
            "Use astype(float32)."
        )
    return node


def matching(caller: str, x: Node, name: str, value: Tensor, shape: Shape | None = None) -> Node:
    """The node of an argument that goes with `x`: its dtype, and `shape` if that is given."""
    node = floating(caller, value, name)
    if node.dtype is not x.dtype:
        raise TypeError(
            f"{caller}: expected {name} of x's dtype {x.dtype.name}, got {node.dtype.name}. "
            "Use astype()."
        )
    if shape is not None and node.shape != shape:
        raise ValueError(f"{caller}: expected {name} of shape {shape}, got {node.shape}.")
    return node


def integer(caller: str, name: str, value: Any, least: int) -> int:
    """An integer of `least` or more."""
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{caller}: expected {name} to be an integer, got {type(value).__name__} {value!r}."
        ) from None
    if result < least:
        raise ValueError(f"{caller}: expected {name} of {least} or more, got {result}.")
    return result


def int_pair(caller: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """Two integers (height, width) from one or two."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{caller}: expected {name} of one or two integers, got {value}.")
        return integer(caller, name, value[0], least), integer(caller, name, value[1], least)
    n = integer(caller, name, value, least)
    return n, n


def images(caller: str, x: Tensor) -> Node:
    """The node of a batch of images (N, C, H, W)."""
    node = floating(caller, x)
    if node.ndim != 4:
        raise ValueError(
            f"{caller}: expected x of shape (N, C, H, W), got {node.shape}. "
            "A single image needs a batch axis: x[None]."
        )
    return node


def fraction(caller: str, name: str, value: float) -> float:
    """A number in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{caller}: expected {name} in [0, 1], got {value}.")
    return value


def reduction_of(caller: str, reduction: str) -> str:
    """The name of a reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f"{caller}: expected reduction 'mean', 'sum' or 'none', got {reduction!r}."
        )
    return reduction
