"""Aligned memory owned by us, recycled by size so that a training loop never page-faults fresh pages."""

from __future__ import annotations

import ctypes
import mmap
from collections import defaultdict

from minigrad.errors import DeviceError

ALIGNMENT = 64
# Micro-kernels read whole vectors past the last element (never storing those lanes): CONV.md, 5.
SLACK = 1024
_POOL_LIMIT = 1 << 30  # bytes of free blocks kept for reuse

_free: dict[int, list[Block]] = defaultdict(list)
_free_bytes = 0
live_bytes = 0  # held by live blocks; tests read it


def _rounded(nbytes: int) -> int:
    """The size class: a power of two in eight steps, so that at most an eighth is wasted."""
    n = max(nbytes + SLACK, 2048)
    step = 1 << max(n.bit_length() - 4, 6)
    return -(-n // step) * step


class Block:
    """One anonymous mapping or heap block, 64-byte aligned."""

    __slots__ = ("_owner", "address", "size")

    def __init__(self, size: int):
        self.size = size
        try:
            if size >= 1 << 16:
                self._owner = mmap.mmap(-1, size)
                self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._owner))
            else:
                self._owner = ctypes.create_string_buffer(size + ALIGNMENT)
                base = ctypes.addressof(self._owner)
                self.address = base + (-base) % ALIGNMENT
        except (MemoryError, OSError, ValueError, OverflowError) as error:
            raise DeviceError(
                f"cpu: out of memory: asked for {size} bytes while {live_bytes} are held. "
                "Use a smaller batch, or drop tensors that are no longer needed."
            ) from error


class Buffer:
    """`nbytes` of memory at `address`; returned to the pool when the last reference goes."""

    __slots__ = ("__weakref__", "_block", "address", "nbytes", "owner")

    def __init__(self, nbytes: int):
        global _free_bytes, live_bytes
        size = _rounded(nbytes)
        stack = _free.get(size)
        if stack:
            block = stack.pop()
            _free_bytes -= size
        else:
            block = Block(size)
        live_bytes += size
        self._block: Block | None = block
        self.address = block.address
        self.nbytes = nbytes
        self.owner: object = None

    def __del__(self) -> None:
        global _free_bytes, live_bytes
        block = getattr(self, "_block", None)
        if block is None or _free is None:
            return
        live_bytes -= block.size
        if _free_bytes + block.size <= _POOL_LIMIT:
            _free[block.size].append(block)
            _free_bytes += block.size


class BorrowedBuffer(Buffer):
    """Memory of another object (`owner`), kept alive by us and never written."""

    __slots__ = ()

    def __init__(self, address: int, nbytes: int, owner: object):
        self._block = None
        self.address, self.nbytes, self.owner = address, nbytes, owner


def copy_in(buffer: Buffer, source: int, nbytes: int) -> None:
    """Copy `nbytes` from the raw address `source` to the start of the buffer."""
    ctypes.memmove(buffer.address, source, nbytes)


def view(buffer: Buffer, nbytes: int | None = None) -> memoryview:
    """The buffer's bytes as a writable memoryview that keeps the buffer alive."""
    n = buffer.nbytes if nbytes is None else nbytes
    array = (ctypes.c_char * n).from_address(buffer.address)
    array._owner = buffer  # type: ignore[attr-defined]
    return memoryview(array).cast("B")
