"""Buffers of device memory."""

from __future__ import annotations

from typing import Any

ALIGNMENT = 16  # bytes: what kernels assume of an array's first element


class DeviceBuffer:
    """`nbytes` of device memory at `address`; returned to the pool with the last reference."""

    __slots__ = ("__weakref__", "_memory", "address", "nbytes", "owner", "runtime")

    def __init__(self, runtime: Any, nbytes: int, purpose: str = ""):
        self.runtime = runtime
        self._memory = runtime.allocate(nbytes, purpose)
        self.address, self.nbytes = self._memory.address, nbytes
        self.owner: object = None

    @property
    def is_aligned(self) -> bool:
        """Whether kernels can use it as it is."""
        return self.address % ALIGNMENT == 0

    def copied(self) -> DeviceBuffer:
        """A copy in memory of our own."""
        copy = DeviceBuffer(self.runtime, self.nbytes)
        self.runtime.copy(copy.address, self.address, self.nbytes)
        return copy


class CopyBuffer(DeviceBuffer):
    """Memory that the data loader copies to: see [Note: one stream]."""

    __slots__ = ()

    def __init__(self, runtime: Any, nbytes: int):
        self.runtime = runtime
        self._memory = runtime.allocate_for_copies(nbytes, "a batch of stored samples")
        self.address, self.nbytes, self.owner = self._memory.address, nbytes, None


class BorrowedBuffer(DeviceBuffer):
    """Memory of another object (`owner`), kept alive by us and never written."""

    __slots__ = ()

    def __init__(self, runtime: Any, address: int, nbytes: int, owner: object):
        self.runtime, self._memory = runtime, None
        self.address, self.nbytes, self.owner = address, nbytes, owner

    def __del__(self) -> None:
        """See [Note: loans]."""
        self.runtime.loans.keep(self.owner)


class Lent:
    """Holds a buffer while another library uses it; see [Note: loans]."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: DeviceBuffer):
        self._buffer = buffer

    def __del__(self) -> None:
        self._buffer.runtime.loans.take_back(self._buffer)
