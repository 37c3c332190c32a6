"""The CPU as `minigrad.backend.interface` wants a device: each member names a neighbour's work."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigrad.backend import interface
from minigrad.backend.batches import Assembly
from minigrad.backend.cpu.batches import BatchStage
from minigrad.backend.cpu.packing import packed
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.cpu.runtime.memory import BorrowedBuffer, DeviceBuffer, view
from minigrad.backend.launch import Program
from minigrad.dtype import ALL, DType

if TYPE_CHECKING:
    from minigrad.backend.cpu.runtime.executable import Executable

dtypes = frozenset(d for d in ALL if d.everywhere)
dlpack_types = (1, 3, 11)  # and memory that CUDA or ROCm has pinned


def why_unusable(computing: bool = True) -> str | None:
    """None when kernels can be compiled, else the reason and the cure. Memory needs no library."""
    if computing and importlib.util.find_spec("numba") is None:
        return "the package numba is not installed; pip install numba"
    return None


def device(index: int) -> interface.Backend[DeviceBuffer]:
    """The CPU, whatever the index: there is one."""
    return _cpu


def index_of(address: int) -> int:
    """The device that memory belongs to."""
    return 0


class Backend:
    """The host's memory, and its cores by Numba, which is imported where kernels are needed."""

    # A core adds ten elements, on vectors, in the time in which it moves three bytes.
    addition_bytes = 0.3
    host_readable = True
    stream = None  # the host has no streams
    packed = staticmethod(packed)

    @property
    def processors(self) -> int:
        """Threads of a parallel launch."""
        return num_threads()

    def allocate(self, nbytes: int, purpose: str = "") -> DeviceBuffer:
        """Uninitialised memory, 64-byte aligned."""
        return DeviceBuffer(nbytes, purpose)

    def from_bytes(self, data: memoryview) -> DeviceBuffer:
        """A copy of contiguous bytes."""
        buffer = DeviceBuffer(data.nbytes)
        view(buffer)[:] = data.cast("B")
        return buffer

    def to_bytes(self, buffer: DeviceBuffer, nbytes: int) -> memoryview:
        """The buffer's first bytes themselves."""
        return view(buffer, nbytes)

    def borrow(self, address: int, nbytes: int, owner: object) -> DeviceBuffer:
        """Memory of another object."""
        return BorrowedBuffer(address, nbytes, owner)

    def copy_from_address(self, address: int, nbytes: int, owner: object) -> DeviceBuffer:
        """A copy of memory."""
        return self.borrow(address, nbytes, owner).copied()

    def receive(self, source: interface.Backend[Any], buffer: Any, nbytes: int) -> DeviceBuffer:
        """A copy of a buffer of another backend's."""
        return self.from_bytes(source.to_bytes(buffer, nbytes))

    def library(self) -> interface.Library:
        """The kernels. Imports Numba."""
        from minigrad.backend.cpu import library

        return library

    def executable(
        self, program: Program, offsets: Mapping[int, int], arena_bytes: int,
        bound: Sequence[int], constants: Sequence[DType],
    ) -> Executable:  # fmt: skip
        """A program with its compiled kernels."""
        from minigrad.backend.cpu.runtime.executable import Executable

        return Executable(program, offsets, arena_bytes, bound, constants)

    def batch_stage(self, assembly: Assembly) -> BatchStage:
        """Batches by a kernel, or in plain Python on a machine without Numba."""
        return BatchStage(assembly, compiled=why_unusable() is None)

    def synchronize(self) -> None:
        """Kernels have finished when their launch returns."""

    def wait_for(self, caller: str, stream: int | None) -> None:
        """Nothing to wait for; any stream is an error."""
        if stream is not None:
            raise BufferError(f"{caller}: expected stream None for host memory, got {stream!r}.")

    hold = wait_for

    def lend(self, buffer: DeviceBuffer) -> object:
        """The buffer itself: host memory is not reused while it is referred to."""
        return buffer


_cpu = Backend()
