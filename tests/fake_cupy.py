"""What `minigrad.backend.cuda` uses of CuPy, with CuPy's signatures, on host memory.

The real `Runtime` runs on it, so a wrong name or order of arguments shows without a GPU;
`test_cuda_names.py` compares the signatures with CuPy's where that is installed. Work is done at
once, except that what is launched on a stream that is captured goes into the graph. Work for a
stream of another device than the current one is an error, and so is what breaks a capture.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import host_cuda

from minigrad.backend.cuda import prelude

DEVICES, PROCESSORS, ROOM = 2, 132, 1 << 26
_here = threading.local()
_numbers = itertools.count(1000)
_streams: dict[int, Stream] = {}
_events: dict[int, Event] = {}
_kept: list[Any] = []
compiled: list[str] = []  # the options of every compilation


class CUDARuntimeError(RuntimeError):
    pass


class NVRTCError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


def _do(stream: int, work: Any) -> None:
    """Now, or in the graph that is captured."""
    found = _streams[stream]
    if found.device_id != getDevice():
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: the stream of another device")
    if found.graph is None:
        work()
    else:
        found.graph.append(work)


# cupy.cuda.runtime


def getDeviceCount():
    return DEVICES


def getDevice():
    return getattr(_here, "device", 0)


def setDevice(device):
    _here.device = device


def deviceGetAttribute(attrib, device):
    assert 0 <= device < DEVICES
    return {16: PROCESSORS, 75: 9, 76: 0}[attrib]


def pointerGetAttributes(ptr):
    return SimpleNamespace(device=getDevice() if ptr else -2)


def memcpyAsync(dst, src, size, kind, stream):
    assert kind in (1, 2, 4)
    _do(stream, lambda: ctypes.memmove(dst, src, size))


def memsetAsync(ptr, value, size, stream):
    _do(stream, lambda: ctypes.memset(ptr, value, size))


def eventRecord(event, stream):
    if stream not in (1, 2):  # the default streams
        _do(stream, lambda: None)
        _events[event].captured = _streams[stream].graph is not None


def streamWaitEvent(stream, event, flags=0):
    assert event in _events
    if stream not in (1, 2) and _streams[stream].graph is not None:
        raise CUDARuntimeError("cudaErrorStreamCaptureIsolation")


# cupy.cuda


class Device:
    def __init__(self, device=None):
        self.id = getDevice() if device is None else int(device)

    def __enter__(self):
        _here.__dict__.setdefault("stack", []).append(getDevice())
        setDevice(self.id)
        return self

    def __exit__(self, *args):
        setDevice(_here.stack.pop())

    @property
    def compute_capability(self):
        return "90"

    @property
    def mem_info(self):
        return 5, 7


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        assert disable_timing
        self.ptr, self.captured = next(_numbers), False
        _events[self.ptr] = self

    @property
    def done(self):
        assert not self.captured
        return True

    def synchronize(self):
        if self.captured:
            raise CUDARuntimeError("cudaErrorCapturedEvent")


class Stream:
    def __init__(self, null=False, non_blocking=False, ptds=False):
        assert non_blocking
        self.ptr, self.device_id, self.graph = next(_numbers), getDevice(), None
        _streams[self.ptr] = self

    def __enter__(self):
        assert self.device_id == getDevice()
        _here.__dict__.setdefault("streams", []).append(self)

    def __exit__(self, *args):
        _here.streams.pop()

    def record(self, event=None):
        eventRecord(event.ptr, self.ptr)
        return event

    def wait_event(self, event):
        streamWaitEvent(self.ptr, event.ptr)

    def begin_capture(self, mode=None):
        assert self.graph is None
        self.graph = []

    def end_capture(self):
        assert self.graph is not None
        found, self.graph = self.graph, None
        return Graph(found)


class Graph:
    def __init__(self, works):
        self.works = works

    def launch(self, stream=None):
        for work in self.works:
            _do(stream.ptr, work)


class MemoryPool:
    def __init__(self, allocator=None):
        self.used = [0] * DEVICES

    def malloc(self, size):
        assert _here.streams[-1].graph is None, "memory of a graph"
        device = getDevice()
        if self.used[device] + size > ROOM:
            raise OutOfMemoryError(size)
        self.used[device] += size
        return Block(size)

    def used_bytes(self):
        return self.used[getDevice()]

    def free_bytes(self):
        return 0


class Block:
    """Memory at `ptr`."""

    def __init__(self, size):
        self._bytes = ctypes.create_string_buffer(b"\xff" * (size + 512))
        at = ctypes.addressof(self._bytes)
        self.ptr = at + -at % 512


def alloc_pinned_memory(size):
    return Block(size)


class Module:
    """A "cubin" here is the text that NVRTC was given."""

    def load(self, cubin):
        host_cuda.scheduler()  # what kernels are linked with
        text = cubin.decode()
        assert text.startswith("cubin "), "not an image of a kernel"
        text = text.removeprefix("cubin ").replace(prelude.DEVICE_ONLY, host_cuda.HOST_ONLY)
        head = '#undef KERNEL\n#define KERNEL extern "C" void kernel(const i64* table)\n'
        self._library = host_cuda._shared_object(text.replace("KERNEL {", head + "KERNEL {"), "-O1")

    def get_function(self, name):
        return Function(self, name)


class Function:
    def __init__(self, module, funcname):
        self._address = ctypes.cast(getattr(module._library, funcname), ctypes.c_void_p)

    def __call__(
        self, grid, block, args, shared_mem=0, stream=None, enable_cooperative_groups=False
    ):
        (table,) = args
        assert type(table) is int  # CuPy passes it as 64 bits
        run = host_cuda.scheduler().run_kernel
        _do(
            stream.ptr,
            lambda: run(self._address, ctypes.c_void_p(table), ctypes.c_longlong(*grid), *block, 1),
        )


# cupy.cuda.nvrtc

_programs: dict[int, str] = {}


def getVersion():
    return 13, 0


def getSupportedArchs():
    return 75, 90, 120


def createProgram(src, name, headers, include_names):
    number = next(_numbers)
    _programs[number] = src
    return number


def compileProgram(prog, options):
    compiled.append(" ".join(options))
    if "#error" in _programs[prog]:
        raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")


def getCUBIN(prog):
    return ("cubin " + _programs[prog]).encode()


def getPTX(prog):
    return getCUBIN(prog)


def getProgramLog(prog):
    return "kernel.cu(1): error: #error directive"


def destroyProgram(prog):
    del _programs[prog]


RUNTIME = (
    getDeviceCount, deviceGetAttribute, pointerGetAttributes, memcpyAsync, memsetAsync, eventRecord,
    streamWaitEvent,
)  # fmt: skip
NVRTC = (
    getVersion, getSupportedArchs, createProgram, compileProgram, getCUBIN, getPTX, getProgramLog,
    destroyProgram,
)  # fmt: skip
CONSTANTS = {
    "cudaDevAttrMultiProcessorCount": 16,
    "memcpyHostToDevice": 1,
    "memcpyDeviceToHost": 2,
    "memcpyDefault": 4,
}
# What of each class is used.
CLASSES: dict[Any, tuple[str, ...]] = {
    Device: ("__init__", "compute_capability", "mem_info"),
    Event: ("__init__", "done", "synchronize"),
    Stream: ("__init__", "record", "wait_event", "begin_capture", "end_capture"),
    Graph: ("launch",),
    MemoryPool: ("__init__", "malloc", "used_bytes", "free_bytes"),
    Module: ("load", "get_function"),
    Function: ("__init__",),
}

# cuBLAS by its header, cublas_api.h: column-major, computed as it is defined.
CUBLAS = r"""
#include <cstdint>
#include <cstddef>
#include <functional>
#include <vector>
static void* workspace; static void* current;
static std::vector<std::function<void()>> works;
template <class T> static void product(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha,
    const void* A, int64_t lda, long long sa, const void* B, int64_t ldb, long long sb,
    T beta, void* C, int64_t ldc, long long sc, int64_t batch) {
    for (int64_t z = 0; z < batch; ++z) for (int64_t i = 0; i < m; ++i) for (int64_t j = 0; j < n; ++j) {
        T sum = 0;
        for (int64_t l = 0; l < k; ++l)
            sum += ((const T*)A)[z * sa + (ta ? l + i * lda : i + l * lda)]
                 * ((const T*)B)[z * sb + (tb ? j + l * ldb : l + j * ldb)];
        T* c = (T*)C + z * sc + i + j * ldc;
        *c = alpha * sum + (beta != 0 ? beta * *c : 0);
    }
}
extern "C" {
void (*fake_launch)(void* stream, int work);
void fake_work(int number) { works[number](); }
int cublasCreate_v2(void** handle) { *handle = &workspace; return 0; }
int cublasSetStream_v2(void* handle, void* stream) { current = stream; workspace = 0; return handle != &workspace; }
int cublasSetWorkspace_v2(void* handle, void* at, size_t n) { workspace = at; return n == 0 || (uintptr_t)at % 256 != 0; }
int cublasSetMathMode(void* handle, int m) { return m != 16; }
const char* cublasGetStatusString(int status) { return status == 7 ? "an unsupported value" : "another"; }
int cublasGemmStridedBatchedEx_64(void* handle, int ta, int tb, int64_t m, int64_t n, int64_t k,
    const void* alpha, const void* A, int at, int64_t lda, long long sa,
    const void* B, int bt, int64_t ldb, long long sb,
    const void* beta, void* C, int ct, int64_t ldc, long long sc, int64_t batch, int compute, int algo) {
    if (handle != &workspace || !workspace || !current || algo != -1 || at != bt || bt != ct) return 7;
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    if (at == 0 && (compute == 68 || compute == 77))
        works.push_back([=, one = *(const float*)alpha, zero = *(const float*)beta] {
            product<float>(ta, tb, m, n, k, one, A, lda, sa, B, ldb, sb, zero, C, ldc, sc, batch); });
    else if (at == 1 && compute == 70)
        works.push_back([=, one = *(const double*)alpha, zero = *(const double*)beta] {
            product<double>(ta, tb, m, n, k, one, A, lda, sa, B, ldb, sb, zero, C, ldc, sc, batch); });
    else return 7;
    fake_launch(current, works.size() - 1);
    return 0;
}
}
"""  # noqa: E501


def install(monkeypatch: Any) -> None:
    """Make it what `import cupy` gives."""

    def module(name: str, **names: Any) -> ModuleType:
        made = ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        made.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    runtime = module("cupy.cuda.runtime", **{f.__name__: f for f in RUNTIME}, **CONSTANTS)
    nvrtc = module("cupy.cuda.nvrtc", **{f.__name__: f for f in NVRTC}, NVRTCError=NVRTCError)
    memory = module("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError)
    cuda = module(
        "cupy.cuda", runtime=runtime, nvrtc=nvrtc, memory=memory,
        alloc_pinned_memory=alloc_pinned_memory, **{c.__name__: c for c in CLASSES},
    )  # fmt: skip
    module("cupy", cuda=cuda)
    library = host_cuda._shared_object(CUBLAS, "-O1")

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
    def launch(stream: int, work: int) -> None:
        _do(stream, lambda: library.fake_work(work))

    ctypes.c_void_p.in_dll(library, "fake_launch").value = ctypes.cast(
        launch, ctypes.c_void_p
    ).value
    _kept.append((library, launch))
    cublas = module("cupy_backends.cuda.libs.cublas", __file__=library._name)
    module("cupy_backends")
    module("cupy_backends.cuda")
    module("cupy_backends.cuda.libs", cublas=cublas)
