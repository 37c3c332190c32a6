"""Strided memory of another library into row-major order."""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

from minigrad.backend.cpu.runtime.memory import DeviceBuffer, view
from minigrad.backend.launch import contiguous_strides
from minigrad.dtype import DType


def packed(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType, owner: object
) -> DeviceBuffer:
    """A row-major copy. `strides` are in bytes; `owner` keeps the memory alive.

    Copied by slices of memoryviews: nothing is compiled for a copy that happens once.
    """
    size = dtype.itemsize
    if any(step % size for step in strides):  # slices step by whole elements, so bytes are these
        shape, strides, size = (*shape, size), (*strides, 1), 1
    buffer = DeviceBuffer(prod(shape) * size)
    word: Any = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]  # whatever it means: it is only copied
    target: Any = view(buffer)
    elements = target.cast(word)
    # The longest axis is copied by slicing; Python only loops over the others.
    inner = max(range(len(shape)), key=lambda a: shape[a])
    outer = [a for a in range(len(shape)) if a != inner]
    dense = contiguous_strides(shape)
    n, step = shape[inner], strides[inner]
    for position in range(prod(shape[a] for a in outer)):
        start, place = address, 0
        for a in reversed(outer):
            position, i = divmod(position, shape[a])
            start += i * strides[a]
            place += i * dense[a]
        low = min(start, start + (n - 1) * step)
        memory = (ctypes.c_char * ((n - 1) * abs(step) + size)).from_address(low)
        source: Any = memoryview(memory).cast("B").cast(word)
        # A negative step starts at the end; one of 0 repeats the only element.
        row = source[:: step // size] if step else memoryview(source.tobytes() * n).cast(word)
        elements[place : place + (n - 1) * dense[inner] + 1 : dense[inner]] = row
    return buffer
