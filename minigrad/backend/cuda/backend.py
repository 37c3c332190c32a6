"""A GPU as `minigrad.backend.interface` wants a device: each member names a neighbour's work."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from minigrad.backend import interface
from minigrad.backend.batches import Assembly
from minigrad.backend.cuda.runtime import runtime
from minigrad.backend.cuda.runtime.loans import LEGACY_STREAM
from minigrad.backend.cuda.runtime.memory import BorrowedBuffer, DeviceBuffer, Lent
from minigrad.backend.launch import Program
from minigrad.dtype import ALL, DType

if TYPE_CHECKING:
    from minigrad.backend.cuda.batches import BatchStage
    from minigrad.backend.cuda.runtime.executable import Executable

dtypes = frozenset(ALL)
dlpack_types = (2, 13)  # and memory that CUDA moves by itself


def why_unusable(computing: bool = True) -> str | None:
    """None when a GPU can be used, else the reason and the cure; its memory needs no less."""
    return runtime.why_unusable()


@cache
def device(index: int) -> interface.Backend[DeviceBuffer]:
    """One GPU: one object, whatever threads ask at once, since it has one stream of its own."""
    with _making:
        return _made(index)


@cache
def _made(index: int) -> Backend:
    return Backend(index)


_making = Lock()


def index_of(address: int) -> int:
    """The GPU that memory belongs to, 0 for no memory."""
    return runtime.device_of(address) if address else 0


class Backend:
    """One GPU."""

    addition_bytes = 0.1  # an H100 moves 3.3e12 bytes and does 33e12 additions a second
    host_readable = False  # who looks at a value waits for all that was launched

    def __init__(self, index: int):
        self.runtime = runtime.runtimes(index)
        self._arena = DeviceBuffer(self.runtime, 0)
        # Programs with something to check since the host last waited: id -> Executable.
        self.unchecked: dict[int, Any] = {}

    def allocate(self, nbytes: int, purpose: str = "") -> DeviceBuffer:
        """Uninitialised memory; `purpose` is named if there is not enough."""
        return DeviceBuffer(self.runtime, nbytes, purpose)

    def from_bytes(self, data: memoryview) -> DeviceBuffer:
        """A copy of contiguous host bytes."""
        buffer = DeviceBuffer(self.runtime, data.nbytes)
        self.runtime.upload(buffer.address, data)
        return buffer

    def borrow(self, address: int, nbytes: int, owner: object) -> DeviceBuffer:
        """Memory of another object, shared, not copied; `owner` is kept alive."""
        return BorrowedBuffer(self.runtime, address, nbytes, owner)

    def copy_from_address(self, address: int, nbytes: int, owner: object) -> DeviceBuffer:
        """A copy of device memory that `owner` keeps alive."""
        return self.borrow(address, nbytes, owner).copied()

    def packed(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType,
        owner: object,
    ) -> DeviceBuffer:  # fmt: skip
        """A row-major copy of memory with `strides` in bytes, which `owner` keeps alive."""
        from minigrad.backend.cuda.packing import packed

        return packed(self, address, shape, strides, dtype, owner)

    def receive(self, source: interface.Backend[Any], buffer: Any, nbytes: int) -> DeviceBuffer:
        """A copy of a buffer of another backend's; from GPU to GPU without the host."""
        if not isinstance(source, Backend):
            return self.from_bytes(source.to_bytes(buffer, nbytes))
        copy = DeviceBuffer(self.runtime, nbytes)
        source.runtime.hold_stream(self.runtime.stream_pointer)
        self.runtime.copy(copy.address, buffer.address, nbytes)
        self.runtime.hold_stream(source.runtime.stream_pointer)  # before it reuses the memory
        return copy

    def to_bytes(self, buffer: DeviceBuffer, nbytes: int) -> memoryview:
        """A copy of the buffer's first `nbytes` bytes, format "B".

        Raises:
            IndexError: something computed since the last look at a value had an index out of range.
        """
        data = self.runtime.download(buffer.address, nbytes)
        self._check()
        return data

    # Other libraries. They number streams as DLPack and the CUDA array interface do.

    @property
    def stream(self) -> int:
        """What we launch on, as a number for them."""
        return self.runtime.stream_pointer

    def wait_for(self, caller: str, stream: int | None) -> None:
        """What is launched from now on comes after what a stream of theirs holds.

        Args:
            caller: the function, for errors.
            stream: the handle; 1 or None is the legacy default stream, 2 the per-thread default
                stream, -1 none, whose order is not our concern.

        Raises:
            ValueError: another number, such as 0, which some take for 1 and others for 2.
        """
        handle = _handle(caller, stream)
        if handle is not None:
            self.runtime.wait_for_stream(handle)

    def hold(self, caller: str, stream: int | None) -> None:
        """What a stream of theirs gets from now on comes after what we have launched.

        Arguments and errors as for `wait_for`.
        """
        handle = _handle(caller, stream)
        if handle is not None:
            self.runtime.hold_stream(handle)

    def lend(self, buffer: DeviceBuffer) -> object:
        """What to hold on to while another library uses a buffer."""
        return Lent(buffer)

    def synchronize(self) -> None:
        """Wait until everything launched has finished. Raises as `to_bytes`."""
        self.runtime.synchronize()
        self._check()

    def _check(self) -> None:
        while self.unchecked:
            _, executable = self.unchecked.popitem()
            executable.check()

    @property
    def processors(self) -> int:
        """Multiprocessors."""
        return self.runtime.processors

    def library(self) -> interface.Library:
        """The kernels."""
        from minigrad.backend.cuda.library import Library

        return Library(self.runtime.processors)

    def executable(
        self, program: Program, offsets: Mapping[int, int], arena_bytes: int,
        bound: Sequence[int], constants: Sequence[DType],
    ) -> Executable:  # fmt: skip
        """A program with its compiled kernels."""
        from minigrad.backend.cuda.runtime.executable import Executable

        return Executable(self, program, offsets, arena_bytes, bound, constants)

    def arena(self, nbytes: int) -> DeviceBuffer:
        """Memory for the temporaries of whichever program runs, at least this much."""
        if nbytes > self._arena.nbytes:
            self._arena = DeviceBuffer(self.runtime, 0)  # the old one goes before the new one comes
            self._arena = DeviceBuffer(self.runtime, nbytes, "temporaries")
        return self._arena

    def batch_stage(self, assembly: Assembly) -> BatchStage:
        """Batches that are copied by a stream of their own."""
        from minigrad.backend.cuda.batches import BatchStage

        return BatchStage(self, assembly)


def _handle(caller: str, stream: int | None) -> int | None:
    """CUDA's handle for a number of DLPack's, None for no stream."""
    handle = LEGACY_STREAM if stream is None else operator.index(stream)
    if handle == 0 or handle < -1:
        raise ValueError(
            f"{caller}: expected a stream's handle, 1 (the legacy default stream), 2 (the "
            f"per-thread default stream) or -1 (no order), got {stream}."
        )
    return None if handle == -1 else handle
