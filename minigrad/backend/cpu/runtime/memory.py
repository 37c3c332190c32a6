"""Aligned memory owned by us, recycled by size: a training loop never page-faults fresh pages.

[Note: any thread frees] The data loader has a thread of its own, and the garbage collector may run
`DeviceBuffer.__del__` on any thread, even in the middle of an allocation. So the free lists are
deques, whose `pop` and `append` are single steps, and the lock is held for the counters alone:
nothing in there allocates, waits or calls, hence nothing can come in between on the thread that
holds it.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import defaultdict, deque

from minigrad.backend.debug import for_purpose
from minigrad.errors import DeviceError

ALIGNMENT = 64
SLACK = 1024  # bytes past the end of a buffer: kernels read whole vectors there, and ignore them
_POOL_LIMIT = 1 << 30  # bytes of free blocks kept for reuse

_free: defaultdict[int, deque[Block]] = defaultdict(deque)
_free_bytes = 0  # in blocks that wait for reuse
live_bytes = 0  # held by live buffers
_lock = threading.RLock()


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
        if size >= 1 << 16:
            self._owner = mmap.mmap(-1, size)
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._owner))
        else:
            self._owner = ctypes.create_string_buffer(size + ALIGNMENT)
            base = ctypes.addressof(self._owner)
            self.address = base + (-base) % ALIGNMENT


def _new_block(size: int, nbytes: int, purpose: str) -> Block:
    try:
        try:
            return Block(size)
        except (MemoryError, OSError):  # what the pool keeps for reuse may be enough
            release_free_blocks()
            return Block(size)
    except (MemoryError, OSError, ValueError, OverflowError) as error:
        raise DeviceError(
            f"cpu: out of memory: asked for {nbytes} bytes{for_purpose(purpose)} while "
            f"{live_bytes} are held. Use a smaller batch, or drop tensors that are no longer "
            "needed."
        ) from error


def _count(live: int, free: int) -> None:
    global _free_bytes, live_bytes
    with _lock:
        live_bytes += live
        _free_bytes += free


def _take_free(size: int) -> Block | None:
    try:
        return _free[size].pop()
    except IndexError:
        return None


def release_free_blocks() -> None:
    """Give the blocks that wait for reuse back to the operating system."""
    for size in list(_free):
        while _take_free(size) is not None:
            _count(0, -size)


class DeviceBuffer:
    """`nbytes` of memory at `address`; returned to the pool when the last reference goes."""

    __slots__ = ("__weakref__", "_block", "address", "has_slack", "nbytes", "owner")

    def __init__(self, nbytes: int, purpose: str = ""):
        self._block: Block | None = None
        size = _rounded(nbytes)
        reused = _take_free(size)
        self._block = block = reused or _new_block(size, nbytes, purpose)
        _count(size, -size if reused else 0)
        self.address = block.address
        self.nbytes = nbytes
        self.owner: object = None
        self.has_slack = True  # SLACK bytes past the end may be read

    def copied(self) -> DeviceBuffer:
        """A copy in memory of our own, with slack."""
        copy = DeviceBuffer(self.nbytes)
        ctypes.memmove(copy.address, self.address, self.nbytes)
        return copy

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is None or _free is None:  # the latter while the interpreter shuts down
            return
        pooled = _free_bytes + block.size <= _POOL_LIMIT
        _count(-block.size, block.size if pooled else 0)
        if pooled:
            _free[block.size].append(block)


class BorrowedBuffer(DeviceBuffer):
    """Memory of another object (`owner`), kept alive by us and never written.

    Unless it is a part of a DeviceBuffer, only the rest of its last page is known to be readable.
    """

    __slots__ = ()

    def __init__(self, address: int, nbytes: int, owner: object):
        self._block = None
        self.address, self.nbytes, self.owner = address, nbytes, owner
        exporter = getattr(owner, "obj", None)  # of a memoryview, perhaps one that `view` made
        ours = isinstance(getattr(exporter, "_owner", None), DeviceBuffer)
        self.has_slack = ours or -(address + nbytes) % mmap.PAGESIZE >= SLACK


def view(buffer: DeviceBuffer, nbytes: int | None = None) -> memoryview:
    """The buffer's bytes as a writable memoryview that keeps the buffer alive."""
    n = buffer.nbytes if nbytes is None else nbytes
    array = (ctypes.c_char * n).from_address(buffer.address)
    array._owner = buffer  # type: ignore[attr-defined]
    return memoryview(array).cast("B")
