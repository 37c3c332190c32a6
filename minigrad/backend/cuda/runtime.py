"""What the backend asks of CUDA, through CuPy: memory, kernels, streams, graphs, matrix products.

Nothing outside this file imports CuPy. The tests replace `runtimes` by a runtime that does the same
with host memory and kernels compiled for the CPU.

[Note: one stream] Everything a device computes is launched on one stream of ours, in the order of
the program. Copies from the host take a second stream, so that a batch arrives while a step runs;
`ready` makes the first wait for it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from minigrad.backend.cuda import compiler
from minigrad.backend.cuda.kernel import Kernel
from minigrad.backend.debug import announce, for_purpose
from minigrad.errors import DeviceError

_LEAST_PINNED = 1 << 16  # bytes of a staging block
INSTALL = "pip install 'minigrad[cuda13]' (or cuda12, to match the driver)"


def why_unusable() -> str | None:
    """None when there is a GPU that CuPy can use, else the reason and the cure."""
    if importlib.util.find_spec("cupy") is None:
        return f"the package cupy is not installed; {INSTALL}"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        return f"cupy does not import ({error}); {INSTALL}"
    except Exception as error:  # CuPy's own: no driver, an older one, no device
        return f"cupy finds no usable GPU ({error}); check the driver with nvidia-smi"
    return None if count else "this machine has no GPU"


def device_count() -> int:
    """GPUs that this process sees."""
    import cupy

    return cupy.cuda.runtime.getDeviceCount()


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
        array._owner = self  # type: ignore[attr-defined]
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
            self.processors = int(self._device.attributes["MultiProcessorCount"])
        self._functions: dict[str, Any] = {}
        # Pinned blocks whose copy may not have happened yet, oldest first: (event, block).
        self._in_flight: deque[tuple[Any, Pinned]] = deque()
        self.synchronizations = 0  # times the host waited for the device; tests read it

    @property
    def stream_pointer(self) -> int:
        """The stream's handle, for other libraries."""
        return int(self.stream.ptr)

    # --- memory ----------------------------------------------------------------------------------

    def allocate(self, nbytes: int, purpose: str = "") -> Memory:
        """Uninitialised memory, 512-byte aligned, for use in the order of the stream.

        Raises:
            DeviceError: there is not enough.
        """
        if not nbytes:
            return Memory(None, 0)
        try:
            with self._device, self.stream:
                return Memory(self._pool.malloc(nbytes), nbytes)
        except self._cupy.cuda.memory.OutOfMemoryError:
            free, total = self._device.mem_info
            raise DeviceError(
                f"cuda:{self.index}: out of memory: asked for {nbytes} bytes{for_purpose(purpose)} "
                f"while minigrad holds {self._pool.used_bytes()} (and {self._pool.free_bytes()} "
                f"for reuse), with {free} of the card's {total} free. Use a smaller batch, or drop "
                "tensors that are no longer needed."
            ) from None

    def held_bytes(self) -> int:
        """Bytes in use by live memory."""
        return self._pool.used_bytes()

    def pinned(self, nbytes: int) -> Pinned:
        """Page-locked host memory."""
        with self._device:
            return Pinned(self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1)), max(nbytes, 1))

    def upload(self, address: int, data: memoryview) -> None:
        """Copy host bytes to the device, in the stream's order; `data` may change at once."""
        if data.nbytes:
            block = self._staging(data.nbytes)
            block.view[: data.nbytes] = data.cast("B")
            with self._device:
                self._copy(address, block.address, data.nbytes, self._api.memcpyHostToDevice)
                self._in_flight.append((self.stream.record(), block))

    def upload_pinned(self, address: int, block: Pinned, nbytes: int) -> Any:
        """Copy from pinned memory on the copy stream; gives what `ready` waits for.

        The memory at `address` is not in use any more when the stream gets here, or new. The block
        must not change before the copy is done: see `finished`.
        """
        with self._device:
            self.copy_stream.wait_event(self.stream.record())
            self._api.memcpyAsync(
                address, block.address, nbytes, self._api.memcpyHostToDevice, self.copy_stream.ptr
            )
            return self.copy_stream.record()

    def ready(self, event: Any) -> None:
        """What is launched from now on waits for the event. The host does not."""
        self.stream.wait_event(event)

    def finished(self, event: Any) -> None:
        """Wait, on the host, for a copy from pinned memory. The device goes on."""
        event.synchronize()

    def download(self, address: int, nbytes: int) -> memoryview:
        """A copy of device memory, when all that was launched before has finished."""
        if not nbytes:
            self.synchronize()
            return memoryview(bytearray())
        block = self.pinned(nbytes)
        with self._device:
            self._copy(block.address, address, nbytes, self._api.memcpyDeviceToHost)
        self.synchronize()
        return block.view[:nbytes]

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the device, or from another one."""
        if nbytes:
            with self._device:
                self._copy(target, source, nbytes, self._api.memcpyDefault)

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zero bytes."""
        if nbytes:
            with self._device:
                self._api.memsetAsync(address, 0, nbytes, self.stream.ptr)

    def _copy(self, target: int, source: int, nbytes: int, kind: int) -> None:
        self._api.memcpyAsync(target, source, nbytes, kind, self.stream.ptr)

    def _staging(self, nbytes: int) -> Pinned:
        """A pinned block that no copy reads any more."""
        if self._in_flight:
            event, block = self._in_flight[0]
            if event.done and block.nbytes >= nbytes:
                self._in_flight.popleft()
                return block
            while len(self._in_flight) > 1 and self._in_flight[0][0].done:
                self._in_flight.popleft()
        return self.pinned(max(nbytes, _LEAST_PINNED))

    # --- order -----------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait until all that was launched has finished."""
        self.synchronizations += 1
        self.stream.synchronize()

    def wait_for_stream(self, pointer: int) -> None:
        """What is launched from now on waits for what another library's stream holds now."""
        with self._device:
            event = self._cupy.cuda.ExternalStream(pointer).record()
            self.stream.wait_event(event)

    def hold_stream(self, pointer: int) -> None:
        """Another library's stream waits for what was launched up to now."""
        with self._device:
            self._cupy.cuda.ExternalStream(pointer).wait_event(self.stream.record())

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
            function = compiler.load(kernel, self._device.compute_capability)
        announce("compiled or loaded", kernel.name, kernel.source, started)
        return function

    def launch(self, kernel: Kernel, blocks: int, threads: int, table: int) -> None:
        """Run a loaded kernel on the table at a device address."""
        with self._device, self.stream:
            self._functions[kernel.entry]((blocks,), (threads,), (table,))

    def captured(self, run: Callable[[], None]) -> Any:
        """A graph of everything that `run` launches, which is not run: see `replay`."""
        with self._device, self.stream:
            self.stream.begin_capture()
            try:
                run()
            finally:
                graph = self.stream.end_capture()
            return graph

    def replay(self, graph: Any) -> None:
        """Run a graph, by one launch."""
        with self._device:
            graph.launch(stream=self.stream)

    # --- libraries -------------------------------------------------------------------------------

    def run_library(self, name: str, launch: Callable[[], None]) -> None:
        """Call `launch`, which launches something on the stream, with this GPU as the current."""
        with self._device, self.stream:
            launch()

    def matrix_product(self, dtype: str, tf32: bool, a: Any, b: Any, c: Any, batch: int) -> None:
        """C = A @ B for `batch` row-major products by cuBLAS.

        Each operand is (address, rows, columns, leading stride, is transposed, batch stride) with
        strides in elements; C is not transposed. Transposed means that columns, not rows, are
        contiguous.
        """
        from cupy_backends.cuda.libs import cublas

        kind, compute, scalar = {
            "float16": (2, cublas.CUBLAS_COMPUTE_32F, ctypes.c_float),
            "bfloat16": (14, cublas.CUBLAS_COMPUTE_32F, ctypes.c_float),
            "float32": (0, cublas.CUBLAS_COMPUTE_32F, ctypes.c_float),
            "float64": (1, cublas.CUBLAS_COMPUTE_64F, ctypes.c_double),
        }[dtype]
        if tf32 and dtype == "float32":
            compute = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
        one, zero = scalar(1.0), scalar(0.0)
        operations = (cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T)
        with self._device, self.stream:
            handle = self._cupy.cuda.get_cublas_handle()
            cublas.setStream(handle, self.stream.ptr)
            # cuBLAS is column-major: a row-major C is C^T there, and C^T = B^T A^T.
            cublas.gemmStridedBatchedEx(
                handle, operations[b[4]], operations[a[4]], c[2], c[1], a[2],
                ctypes.addressof(one), b[0], kind, b[3], b[5], a[0], kind, a[3], a[5],
                ctypes.addressof(zero), c[0], kind, c[3], c[5], batch, compute,
                cublas.CUBLAS_GEMM_DEFAULT,
            )  # fmt: skip


@cache
def _runtime(index: int) -> Runtime:
    count = device_count()
    if index >= count:
        raise DeviceError(
            f"cuda:{index}: expected a GPU below {count}, got {index}. "
            "Check mg.devices() and CUDA_VISIBLE_DEVICES."
        )
    return Runtime(index)


# The tests put theirs in place of these.
runtimes: Callable[[int], Any] = _runtime
