"""The CUDA device: what the layers above call. Everything here is a thin name for a neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from minigrad.backend.cuda import runtime
from minigrad.backend.cuda.memory import BorrowedBuffer, Buffer


def why_unusable() -> str | None:
    """None when a GPU can be used, else the reason and the cure."""
    return runtime.why_unusable()


@cache
def device(index: int) -> Backend:
    """One GPU."""
    return Backend(index)


class Backend:
    """One GPU, for the layers above."""

    # What it moves to or from memory in the time of an addition. H100: 3.3 TB/s, 33 T/s.
    addition_bytes = 0.1

    def __init__(self, index: int):
        self.runtime = runtime.runtimes(index)
        self._arena = Buffer(self.runtime, 0)
        # Programs with something to check since the host last waited: id -> Executable.
        self.unchecked: dict[int, Any] = {}

    def allocate(self, nbytes: int, purpose: str = "") -> Buffer:
        """Uninitialised memory; `purpose` is named if there is not enough."""
        return Buffer(self.runtime, nbytes, purpose)

    def from_bytes(self, data: memoryview) -> Buffer:
        """A copy of contiguous host bytes."""
        buffer = Buffer(self.runtime, data.nbytes)
        self.runtime.upload(buffer.address, data)
        return buffer

    def borrow(self, address: int, nbytes: int, owner: object) -> Buffer:
        """Memory of another object, shared, not copied; `owner` is kept alive."""
        return BorrowedBuffer(self.runtime, address, nbytes, owner)

    def copy_from_address(self, address: int, nbytes: int) -> Buffer:
        """A copy of device memory."""
        buffer = Buffer(self.runtime, nbytes)
        self.runtime.copy(buffer.address, address, nbytes)
        return buffer

    def to_bytes(self, buffer: Buffer, nbytes: int) -> memoryview:
        """A copy of the buffer's first `nbytes` bytes, format "B".

        Raises:
            IndexError: something computed since the last look at a value had an index out of range.
        """
        data = self.runtime.download(buffer.address, nbytes)
        self._check()
        return data

    def synchronize(self) -> None:
        """Wait until everything launched has finished. Raises as `to_bytes`."""
        self.runtime.synchronize()
        self._check()

    def _check(self) -> None:
        while self.unchecked:
            _, executable = self.unchecked.popitem()
            executable.check()

    def num_threads(self) -> int:
        """Blocks that should be at work at the same time: one for each multiprocessor."""
        return self.runtime.processors

    def library(self) -> Any:
        """The kernels that the compiler lowers to."""
        from minigrad.backend.cuda.library import Library

        return Library(self.runtime.processors)

    def executable(self, *args: Any) -> Any:
        """A program bound to memory: see `Executable`."""
        from minigrad.backend.cuda.executable import Executable

        return Executable(self, *args)

    def arena(self, nbytes: int) -> Buffer:
        """Memory for the temporaries of whichever program runs, at least this much."""
        if nbytes > self._arena.nbytes:
            self._arena = Buffer(self.runtime, 0)  # the old one goes before the new one comes
            self._arena = Buffer(self.runtime, nbytes, "temporaries")
        return self._arena

    def batch_assembler(self) -> Any:
        """None: batches are assembled on the host."""
        return None


__all__: Sequence[str] = ["Backend", "device", "why_unusable"]
