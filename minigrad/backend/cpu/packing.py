"""Strided memory of another library into row-major order."""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

from minigrad.backend.cpu.runtime.memory import Buffer, view
from minigrad.backend.launch import contiguous_strides
from minigrad.dtype import DType


def packed(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType, owner: object
) -> Buffer:
    """A row-major copy. `strides` are in bytes; `owner` keeps the memory alive.

    Copied by slices of memoryviews: nothing is compiled for a copy that happens once.
    """
    size = dtype.itemsize
    buffer = Buffer(prod(shape) * size)
    target: Any = view(buffer)
    # The longest axis is copied by slicing; Python only loops over the others.
    inner = max(range(len(shape)), key=lambda a: shape[a])
    outer = [a for a in range(len(shape)) if a != inner]
    dense = contiguous_strides(shape)
    n, step = shape[inner], strides[inner]
    by_slice = step != 0 and step % size == 0
    word = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]  # whatever it means: it is only copied
    elements = target.cast(word)
    for position in range(prod(shape[a] for a in outer)):
        start, place = address, 0
        for a in reversed(outer):
            position, i = divmod(position, shape[a])
            start += i * strides[a]
            place += i * dense[a]
        if by_slice:
            span = (n - 1) * abs(step) + size
            low = min(start, start + (n - 1) * step)
            source: Any = memoryview((ctypes.c_char * span).from_address(low)).cast("B")
            row = source.cast(word)[:: step // size]  # a negative step starts at the end
            elements[place : place + (n - 1) * dense[inner] + 1 : dense[inner]] = row
        else:
            for i in range(n):
                at = (place + i * dense[inner]) * size
                target[at : at + size] = ctypes.string_at(start + i * step, size)
    return buffer
