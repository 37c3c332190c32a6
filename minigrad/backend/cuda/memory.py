"""Buffers of device memory."""

from __future__ import annotations

from typing import Any

ALIGNMENT = 16  # bytes: what kernels assume of an array's first element


class Buffer:
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

    def copied(self) -> Buffer:
        """A copy in memory of our own."""
        copy = Buffer(self.runtime, self.nbytes)
        self.runtime.copy(copy.address, self.address, self.nbytes)
        return copy


class BorrowedBuffer(Buffer):
    """Memory of another object (`owner`), kept alive by us and never written."""

    __slots__ = ()

    def __init__(self, runtime: Any, address: int, nbytes: int, owner: object):
        self.runtime, self._memory = runtime, None
        self.address, self.nbytes, self.owner = address, nbytes, owner
