"""The CPU device: what the layers above call. Everything here is a thin name for a neighbour."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from minigrad.backend.cpu.driver import num_threads
from minigrad.backend.cpu.memory import BorrowedBuffer, Buffer, copy_in, view

# What a core moves to or from memory in the time of a vectorized addition, for each element of it.
addition_bytes = 0.3


def why_unusable() -> str | None:
    """None when kernels can be compiled, else the reason and the cure."""
    if importlib.util.find_spec("numba") is None:
        return "the package numba is not installed; pip install numba"
    return None


def device(index: int) -> Any:
    """The one CPU: this module."""
    return sys.modules[__name__]


def allocate(nbytes: int, purpose: str = "") -> Buffer:
    """Uninitialised memory, 64-byte aligned; `purpose` is named if there is not enough."""
    return Buffer(nbytes, purpose)


def from_bytes(data: memoryview) -> Buffer:
    """A copy of contiguous bytes."""
    buffer = Buffer(data.nbytes)
    view(buffer)[:] = data.cast("B")
    return buffer


def borrow(address: int, nbytes: int, owner: object) -> Buffer:
    """Memory of another object, shared, not copied; `owner` is kept alive."""
    return BorrowedBuffer(address, nbytes, owner)


def copy_from_address(address: int, nbytes: int) -> Buffer:
    """A copy of raw memory."""
    buffer = Buffer(nbytes)
    copy_in(buffer, address, nbytes)
    return buffer


def to_bytes(buffer: Buffer, nbytes: int) -> memoryview:
    """The buffer's first `nbytes` bytes, shared, format "B"."""
    return view(buffer, nbytes)


def synchronize() -> None:
    """CPU kernels have finished when their launch returns."""


def library() -> Any:
    """The kernels that the compiler lowers to. Imports Numba."""
    from minigrad.backend.cpu import library as kernels

    return kernels


def executable(*args: Any) -> Any:
    """A program bound to memory: see `Executable`."""
    from minigrad.backend.cpu.executable import Executable

    return Executable(*args)


def batch_assembler() -> Any:
    """What gathers, crops, flips and scales a batch in one pass: see `Augment`."""
    from minigrad.backend.cpu.augment import Augment

    return Augment


__all__ = [
    "addition_bytes",
    "allocate",
    "batch_assembler",
    "borrow",
    "copy_from_address",
    "device",
    "executable",
    "from_bytes",
    "library",
    "num_threads",
    "synchronize",
    "to_bytes",
    "why_unusable",
]
