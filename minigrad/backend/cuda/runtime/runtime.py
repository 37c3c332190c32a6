"""What the backend asks of CUDA, through CuPy: memory, kernels, streams, graphs, matrix products.

Nothing but this file, `native` and `cublas` imports CuPy. The tests replace `runtimes` by a runtime
that does the same with host memory and kernels compiled for the CPU.

[Note: one stream] Everything a device computes is launched on one stream of ours, in the order of
the program. Copies of batches take a second stream, so that a batch arrives while a step runs.

Memory belongs to a stream: CuPy's pool gives a block that was freed only to who allocates on the
same stream, and may do so while kernels that use it have yet to run, since what the new owner
launches there runs after them. Batches arrive in memory of the copy stream, which is what makes all
of this safe without the host ever waiting:

* a copy never waits for memory that the other stream freed, and never touches that stream;
* a kernel reads the batch after `ready`, so not before its copy;
* after `consumed`, later copies wait for that kernel. From then on the memory may be dropped, and
  become the target of a later copy;
* a batch that is never used is just dropped: only a later copy can get its memory.

[Note: threads] Any thread may call any method. Those that touch the first stream hold a lock, since
whatever reaches it between the two ends of a capture would become a part of the graph, or break it.
(Only the wait for an event is outside: an event is no part of a capture.) What the data loader's
thread calls, `allocate_for_copies`, `pinned` and `upload_pinned`, takes no lock and touches only
the copy stream: that thread and the training loop never wait for each other here. A capture forbids
it nothing, as CuPy begins it in relaxed mode. CuPy's pools have locks of their own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

from minigrad.backend.cuda.contract import cublas
from minigrad.backend.cuda.runtime import native
from minigrad.backend.cuda.runtime.jit import Kernel
from minigrad.backend.cuda.runtime.loans import Loans
from minigrad.backend.cuda.runtime.pinned import PinnedPool
from minigrad.backend.debug import announce, for_purpose
from minigrad.errors import DeviceError

_MOST_UPLOADED = 1 << 25  # bytes of one copy; more are staged and copied by turns
INSTALL = "pip install 'minigrad[cuda13]' (or cuda12, to match the driver)"


def why_unusable() -> str | None:
    """None when there is a GPU that CuPy can use, else the reason and the cure."""
    if importlib.util.find_spec("cupy") is None:
        return f"the package cupy is not installed; {INSTALL}"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        return f"cupy does not import ({_cause(error)}); {INSTALL}"
    except Exception as error:  # CuPy's own: no driver, an older one, no device
        return f"cupy finds no usable GPU ({error}); check the driver with nvidia-smi"
    if not count:
        return "this machine has no GPU"
    try:  # CuPy itself needs neither before it is asked for something
        cupy.cuda.nvrtc.getVersion()
        cublas.library()
    except (ImportError, RuntimeError, OSError) as error:
        return f"cupy does not find a library of CUDA's ({_cause(error)}); {INSTALL}"
    return None


def _cause(error: Exception) -> str:
    """What is behind an error of CuPy's, which explains at length, in one line."""
    return str(error.__cause__ or error).strip().partition("\n")[0]


def device_count() -> int:
    """GPUs that this process sees."""
    import cupy

    return cupy.cuda.runtime.getDeviceCount()


def device_of(address: int) -> int:
    """The GPU that memory belongs to.

    Raises:
        DeviceError: none; the host's memory that CUDA does not know of.
    """
    import cupy

    index = cupy.cuda.runtime.pointerGetAttributes(address).device
    if index < 0:
        raise DeviceError(f"cuda: expected memory of a GPU, got the host's address {address:#x}.")
    return index


class Memory:
    """A block of device memory at `address`; it goes back to CuPy's pool with the last reference.

    `address` is 0 for no bytes.
    """

    __slots__ = ("__weakref__", "_pointer", "address", "nbytes")

    def __init__(self, pointer: Any, nbytes: int):
        self._pointer, self.nbytes = pointer, nbytes
        self.address = int(pointer.ptr) if pointer is not None else 0


class Pinned:
    """Page-locked host memory, which the GPU copies to and from by itself: `view` is its bytes."""

    def __init__(self, pointer: Any, nbytes: int):
        self._pointer, self.nbytes = pointer, nbytes
        self.address = int(pointer.ptr)
        array = (ctypes.c_char * nbytes).from_address(self.address)
        array._owner = pointer  # type: ignore[attr-defined]  # not self: it has the view
        self.view = memoryview(array).cast("B")


class Runtime:
    """One GPU."""

    def __init__(self, index: int):
        import cupy

        self.index = index
        self._cupy, self._api = cupy, cupy.cuda.runtime
        self._device = cupy.cuda.Device(index)
        with self._device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.copy_stream = cupy.cuda.Stream(non_blocking=True)
            self._pool = cupy.cuda.MemoryPool()
        count = self._api.cudaDevAttrMultiProcessorCount
        self.processors: int = self._api.deviceGetAttribute(count, index)
        self._functions: dict[str, Any] = {}
        self._cublas: cublas.CublasHandle | None = None  # made when it is first needed
        self._blocks = PinnedPool(self._new_pinned)
        self._order = threading.RLock()  # see [Note: threads]
        self.loans = Loans(self)

    @property
    def stream_pointer(self) -> int:
        """The stream's handle, for other libraries."""
        return int(self.stream.ptr)

    # --- memory ----------------------------------------------------------------------------------

    def allocate(self, nbytes: int, purpose: str = "") -> Memory:
        """Uninitialised memory, 512-byte aligned, for what is launched.

        Raises:
            DeviceError: there is not enough.
        """
        self.loans.settle()
        return self._allocated(nbytes, purpose, self.stream)

    def allocate_for_copies(self, nbytes: int, purpose: str = "") -> Memory:
        """Memory for `upload_pinned`: see [Note: one stream]. Raises as `allocate`."""
        return self._allocated(nbytes, purpose, self.copy_stream)

    def _allocated(self, nbytes: int, purpose: str, stream: Any) -> Memory:
        if not nbytes:
            return Memory(None, 0)
        try:
            with self._device, stream:
                return Memory(self._pool.malloc(nbytes), nbytes)
        except self._cupy.cuda.memory.OutOfMemoryError:
            free, total = self._device.mem_info
            with self._device:  # the pool has parts, one for each GPU
                held, reusable = self._pool.used_bytes(), self._pool.free_bytes()
            raise DeviceError(
                f"cuda:{self.index}: out of memory: asked for {nbytes} bytes{for_purpose(purpose)} "
                f"while minigrad holds {held} (and {reusable} for reuse), with {free} of the "
                f"card's {total} free. Use a smaller batch, or drop tensors that are no longer "
                "needed."
            ) from None

    def pinned(self, nbytes: int) -> Pinned:
        """Page-locked host memory for `upload_pinned`."""
        return self._blocks.take(nbytes)

    def _new_pinned(self, nbytes: int) -> Pinned:
        with self._device:
            return Pinned(self._cupy.cuda.alloc_pinned_memory(nbytes), nbytes)

    def upload(self, address: int, data: memoryview) -> None:
        """Copy host bytes to the device, in the stream's order; `data` may change at once."""
        data = data.cast("B")
        for start in range(0, data.nbytes, _MOST_UPLOADED):
            part = data[start : start + _MOST_UPLOADED]
            block = self._blocks.take(part.nbytes)
            block.view[: part.nbytes] = part
            with self._order, self._device:
                kind = self._api.memcpyHostToDevice
                self._copy(address + start, block.address, part.nbytes, kind)
                self._blocks.give(block, self._recorded(self.stream))

    def upload_pinned(self, address: int, block: Pinned, nbytes: int) -> Any:
        """Copy to memory from `allocate_for_copies`; gives what `ready` waits for.

        The block, from `pinned`, is no longer the caller's.
        """
        with self._device:
            self._api.memcpyAsync(
                address, block.address, nbytes, self._api.memcpyHostToDevice, self.copy_stream.ptr
            )
            event = self._recorded(self.copy_stream)
        self._blocks.give(block, event)
        return event

    def ready(self, event: Any) -> None:
        """What is launched from now on waits for the copy. The host does not."""
        with self._order, self._device:
            self.stream.wait_event(event)

    def consumed(self) -> None:
        """Copies from now on wait for what was launched up to now: see [Note: one stream]."""
        with self._order, self._device:
            self.copy_stream.wait_event(self._recorded(self.stream))

    def _recorded(self, stream: Any) -> Any:
        # An event without a time costs the device nothing, and a host that waits for it sleeps.
        return stream.record(self._cupy.cuda.Event(block=True, disable_timing=True))

    def download(self, address: int, nbytes: int) -> memoryview:
        """A copy of device memory, when all that was launched before has finished."""
        if not nbytes:
            self.synchronize()
            return memoryview(bytearray())
        block = self._new_pinned(nbytes)  # it belongs to whoever holds the values
        with self._order, self._device:
            self._copy(block.address, address, nbytes, self._api.memcpyDeviceToHost)
        self.synchronize()
        return block.view[:nbytes]

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the device, or from another one."""
        if nbytes:
            with self._order, self._device:
                self._copy(target, source, nbytes, self._api.memcpyDefault)

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zero bytes."""
        if nbytes:
            with self._order, self._device:
                self._api.memsetAsync(address, 0, nbytes, self.stream.ptr)

    def _copy(self, target: int, source: int, nbytes: int, kind: int) -> None:
        self._api.memcpyAsync(target, source, nbytes, kind, self.stream.ptr)

    # --- order -----------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait until all that was launched has finished."""
        self.loans.settle()
        with self._order, self._device:
            # No event of `_recorded`: the host is about to use the result, and does not sleep.
            event = self.stream.record(self._cupy.cuda.Event(disable_timing=True))
        event.synchronize()
        self.loans.settle()  # what the first call marked is done now

    def wait_for_stream(self, pointer: int) -> None:
        """What is launched from now on waits for what another library's stream holds now."""
        with self._order, self._device:
            event = self._cupy.cuda.Event(disable_timing=True)
            self._api.eventRecord(event.ptr, pointer)
            self.stream.wait_event(event)

    def hold_stream(self, pointer: int) -> None:
        """Another library's stream waits for what was launched up to now."""
        event = self.record()
        with self._device:
            self._api.streamWaitEvent(pointer, event.ptr)

    def record(self) -> Any:
        """An event that is `done` when all that was launched up to now has finished."""
        with self._order, self._device:
            return self._recorded(self.stream)

    # --- kernels ---------------------------------------------------------------------------------

    def load(self, kernels: Iterable[Kernel]) -> None:
        """Compile what is missing, side by side."""
        missing = [k for k in dict.fromkeys(kernels) if k.entry not in self._functions]
        if not missing:
            return
        with ThreadPoolExecutor(max_workers=8) as pool:
            compiled = list(pool.map(self._compiled, missing))
        for kernel, function in zip(missing, compiled, strict=True):
            self._functions[kernel.entry] = function

    def _compiled(self, kernel: Kernel) -> Any:
        started = time.perf_counter()
        with self._device:
            function = native.load(kernel, self._device.compute_capability)
        announce("compiled or loaded", kernel.name, kernel.source, started)
        return function

    def launch(self, kernel: Kernel, blocks: int, threads: int, table: int) -> None:
        """Run a loaded kernel on the table at a device address."""
        with self._order, self._device:
            self._functions[kernel.entry]((blocks,), (threads,), (table,), stream=self.stream)

    def captured(self, run: Callable[[], None]) -> Any:
        """A graph of everything that `run` launches, which is not run: see `replay`."""
        with self.loans.paused, self._order, self._device:
            self.stream.begin_capture()
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # of the broken capture: `run` says what broke it
                    self.stream.end_capture()
                raise
            return self.stream.end_capture()

    def replay(self, graph: Any) -> None:
        """Run a graph, by one launch."""
        with self._order, self._device:
            graph.launch(stream=self.stream)

    # --- libraries -------------------------------------------------------------------------------

    def run_library(self, name: str, launch: Callable[[], None]) -> None:
        """Call `launch`, which launches something on the stream, with this GPU as the current."""
        with self._order, self._device:
            launch()

    def matrix_product(self, dtype: str, tf32: bool, a: Any, b: Any, c: Any, batch: int) -> None:
        """C = A @ B for `batch` row-major products by cuBLAS.

        Each operand is (address, rows, columns, leading stride, is transposed, batch stride) with
        strides in elements; C is not transposed. Transposed means that columns, not rows, are
        contiguous.
        """
        with self._order, self._device:
            if self._cublas is None:
                self._workspace = self._allocated(cublas.WORKSPACE, "cuBLAS", self.stream)
                self._cublas = cublas.CublasHandle(self.stream.ptr, self._workspace.address)
            self._cublas.multiply(dtype, tf32, a, b, c, batch)


@cache
def _runtime(index: int) -> Runtime:
    count = device_count()
    if index >= count:
        raise DeviceError(
            f"cuda:{index}: expected a GPU below {count}, got {index}. "
            "Check mg.devices() and CUDA_VISIBLE_DEVICES."
        )
    return Runtime(index)


# How a GPU's runtime is found. The tests put one of their own here.
runtimes: Callable[[int], Any] = _runtime
