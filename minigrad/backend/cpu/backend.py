"""The CPU device: what the layers above call. Everything here is a thin name for a neighbour."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from minigrad.backend.batches import Assembly
from minigrad.backend.cpu.batches import BatchStage
from minigrad.backend.cpu.packing import packed
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.cpu.runtime.memory import BorrowedBuffer, Buffer, copy_in, view

# What a core moves to or from memory in the time of a vectorized addition, for each element of it.
addition_bytes = 0.3
host_readable = True  # looking at a value waits for nothing


def why_unusable(computing: bool = True) -> str | None:
    """None when kernels can be compiled, else the reason and the cure. Memory needs no library."""
    if computing and importlib.util.find_spec("numba") is None:
        return "the package numba is not installed; pip install numba"
    return None


def device(index: int) -> Any:
    """The one CPU: this module."""
    return sys.modules[__name__]


def index_of(address: int) -> int:
    """The device that memory belongs to."""
    return 0


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


def copy_from_address(address: int, nbytes: int, owner: object) -> Buffer:
    """A copy of memory that `owner` keeps alive."""
    buffer = Buffer(nbytes)
    copy_in(buffer, address, nbytes)
    return buffer


def to_bytes(buffer: Buffer, nbytes: int) -> memoryview:
    """The buffer's first `nbytes` bytes, shared, format "B"."""
    return view(buffer, nbytes)


def receive(source: Any, buffer: Any, nbytes: int) -> Buffer:
    """A copy of a buffer of another backend's."""
    return from_bytes(source.to_bytes(buffer, nbytes))


# Other libraries: the host's memory has no streams.

stream = None  # what we launch on, as a number for them


def wait_for(caller: str, stream: int | None) -> None:
    """What is launched from now on comes after what a stream of theirs holds."""
    if stream is not None:
        raise BufferError(f"{caller}: expected stream None for host memory, got {stream!r}.")


def hold(caller: str, stream: int | None) -> None:
    """What a stream of theirs gets from now on comes after what we have launched."""
    wait_for(caller, stream)


def lend(buffer: Buffer) -> object:
    """What to hold on to while another library uses a buffer."""
    return buffer


def synchronize() -> None:
    """CPU kernels have finished when their launch returns."""


def library() -> Any:
    """The kernels that the compiler lowers to. Imports Numba."""
    from minigrad.backend.cpu import library as kernels

    return kernels


def executable(*args: Any) -> Any:
    """A program bound to memory: see `Executable`."""
    from minigrad.backend.cpu.runtime.executable import Executable

    return Executable(*args)


def batch_stage(assembly: Assembly) -> BatchStage:
    """What makes batches of stored samples: see `minigrad.backend.batches`."""
    return BatchStage(assembly, compiled=why_unusable() is None)


__all__ = [
    "addition_bytes",
    "allocate",
    "batch_stage",
    "borrow",
    "copy_from_address",
    "device",
    "executable",
    "from_bytes",
    "hold",
    "host_readable",
    "index_of",
    "lend",
    "library",
    "num_threads",
    "packed",
    "receive",
    "stream",
    "synchronize",
    "to_bytes",
    "wait_for",
    "why_unusable",
]
