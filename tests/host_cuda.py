"""A GPU made of this machine's CPU: generated CUDA kernels compiled by g++, threads as fibers.

It stands in for `minigrad.backend.cuda.runtime.runtime`, so that everything above runs as it does
on a GPU: the same sources, tables, launches, graphs. It is strict where hardware is lenient: new
memory holds NaN, threads run to the next barrier one after the other, in both directions (a value
read too early is the poison or another's), a barrier that not every thread reaches is an error, and
so is an access of an unaligned pack. Copies of batches happen as late as they may. Every source is
compiled by NVRTC, too, where that is installed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import nvrtc

from minigrad.backend.cache_directory import private_directory
from minigrad.backend.cuda import prelude
from minigrad.backend.cuda.contract import cudnn
from minigrad.backend.cuda.runtime import runtime
from minigrad.backend.cuda.runtime.jit import Kernel
from minigrad.backend.cuda.runtime.loans import Loans
from minigrad.backend.cuda.runtime.pinned import PinnedPool
from minigrad.backend.debug import for_purpose
from minigrad.errors import DeviceError

PROCESSORS = 4
MEMORY_LIMIT = 1 << 33

HOST_ONLY = r"""
#define __restrict__ __restrict
#define __shared__ static
#define __device__
#define __forceinline__ inline
#define DEVICE inline
#define __launch_bounds__(n)
#define __ldg(p) (*(p))
extern "C" {
float expf(float); double exp(double); float expm1f(float); double expm1(double);
float logf(float); double log(double); float log1pf(float); double log1p(double);
float sqrtf(float); double sqrt(double); float sinf(float); double sin(double);
float cosf(float); double cos(double); float tanhf(float); double tanh(double);
float erff(float); double erf(double); float erfcf(float); double erfc(double);
float powf(float, float); double pow(double, double); float floorf(float); double floor(double);
float fabsf(float); double fabs(double); float fmaxf(float, float); float fminf(float, float);
float fmaf(float, float, float); double fma(double, double, double);
double fmax(double, double); double fmin(double, double);
inline double __dmul_rn(double a, double b) { return a * b; }  // never a part of an fma here
void* memcpy(void*, const void*, unsigned long);
int printf(const char*, ...); void abort();
}
struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
template <class T> DEVICE T* array_at(i64 word) { return (T*)word; }
template <class T> DEVICE T read_only(const T* p) { return *p; }
DEVICE double normcdf(double x) { return 0.5 * erfc(x * -0.70710678118654752440); }
DEVICE float normcdff(float x) { return (float)normcdf((double)x); }
DEVICE double as_double(i64 bits) { double x; memcpy(&x, &bits, 8); return x; }
DEVICE float as_float(u32 bits) { float x; memcpy(&x, &bits, 4); return x; }
DEVICE u32 bits_of(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }
DEVICE u32 high_product(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
DEVICE float float_of_half(u16 bits) {
    const u32 sign = (u32)(bits >> 15) << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return as_float(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) { const float x = fraction * as_float(0x33800000); return sign ? -x : x; }
    return as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
DEVICE u16 half_of_float(float x) {
    const u32 bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    if (size > 0x7F800000) return sign | 0x7FFF;
    if (size >= 0x477FF000) return sign | 0x7C00;
    if (size < 0x38800000) {  // subnormal: let the addition round
        return sign | (bits_of(as_float(size) + as_float(0x3F000000)) - 0x3F000000);
    }
    return sign | (u16)((size + 0xC8000FFF + (size >> 13 & 1)) >> 13);
}
struct Index { u32 x, y, z; };
extern Index threadIdx, blockIdx, blockDim, gridDim;
extern "C" void wait_for_block();
extern "C" void wait_for_warp(u32 mask);
extern "C" void* lane_box(int lane);
#define __syncthreads() wait_for_block()
DEVICE void __syncwarp(u32 mask = 0xFFFFFFFFu) { wait_for_warp(mask); }
template <class T> DEVICE T exchanged(u32 mask, T x, int from) {
    memcpy(lane_box(threadIdx.x % 32), &x, sizeof(T));
    wait_for_warp(mask);
    memcpy(&x, lane_box(from & 31), sizeof(T));
    wait_for_warp(mask);
    return x;
}
template <class T> DEVICE T __shfl_xor_sync(u32 mask, T x, int d) { return exchanged(mask, x, (threadIdx.x % 32) ^ d); }
template <class T> DEVICE T __shfl_sync(u32 mask, T x, int from) { return exchanged(mask, x, from); }
DEVICE u32 __ballot_sync(u32 mask, bool x) {
    u32 votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) votes |= (u32)exchanged(mask, (int)x, lane) << lane;
    return votes;
}
DEVICE u32 __match_any_sync(u32 mask, int x) {
    u32 equal = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) equal |= (u32)(exchanged(mask, x, lane) == x) << lane;
    return equal;
}
DEVICE int __ffs(u32 x) { return __builtin_ffs((int)x); }
DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
DEVICE u32 __umulhi(u32 a, u32 b) { return high_product(a, b); }
template <class T> DEVICE T atomicAdd(T* p, T x) { const T old = *p; *p = old + x; return old; }
template <class T> DEVICE T atomicMax(T* p, T x) { const T old = *p; if (x > old) *p = x; return old; }
template <class T> DEVICE T atomicExch(T* p, T x) { const T old = *p; *p = x; return old; }
"""  # noqa: E501

# Runs the blocks of a kernel one after the other, the threads of a block as fibers.
SCHEDULER = r"""
Index threadIdx, blockIdx, blockDim, gridDim;
namespace fibers {
enum State { READY, BLOCK, WARP, DONE };
const int MOST = 1024;
const long STACK = 1 << 15;
struct Fiber { void* sp; State state; u32 mask; };
Fiber all[MOST];
alignas(16) char boxes[MOST][16];
char* stacks = 0;
void* scheduler;
int current;
void (*body)(const i64*);
const i64* argument;
extern "C" void switch_stack(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
switch_stack:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
const int SAVED = 6;
#else
asm(R"(
.text
switch_stack:
    stp x19, x20, [sp, #-160]!
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x19, x20, [sp], #160
    ret
)");
#endif
void pause(State state) {
    all[current].state = state;
    switch_stack(&all[current].sp, scheduler);
}
void start() { body(argument); pause(DONE); abort(); }
extern "C" void* malloc(unsigned long);
void prepare(int t) {
    char* top = stacks + (t + 1) * STACK;
#if defined(__x86_64__)
    void** sp = (void**)top - 2;  // a function starts with its stack 8 bytes off a multiple of 16
    *sp = (void*)start;
    sp -= SAVED;
#else
    void** sp = (void**)(top - 160);
    sp[11] = (void*)start;
#endif
    all[t].sp = sp;
    all[t].state = READY;
}
bool release(int threads) {
    bool any = false;
    for (int w = 0; w < threads; w += 32) {
        int waiting = 0, alive = 0;
        for (int t = w; t < w + 32 && t < threads; ++t) {
            alive += all[t].state != DONE;
            waiting += all[t].state == WARP;
        }
        if (waiting && waiting == alive) {
            for (int t = w; t < w + 32 && t < threads; ++t)
                if (all[t].state == WARP) all[t].state = READY;
            any = true;
        }
    }
    if (any) return true;
    int waiting = 0, alive = 0;
    for (int t = 0; t < threads; ++t) {
        alive += all[t].state != DONE;
        waiting += all[t].state == BLOCK;
    }
    if (!waiting || waiting != alive) return false;
    for (int t = 0; t < threads; ++t)
        if (all[t].state == BLOCK) all[t].state = READY;
    return true;
}
// False for a deadlock: some threads wait where others do not come.
bool run_block(int threads, bool backwards) {
    for (int t = 0; t < threads; ++t) prepare(t);
    for (;;) {
        for (int i = 0; i < threads; ++i) {
            const int t = backwards ? threads - 1 - i : i;
            if (all[t].state != READY) continue;
            current = t;
            threadIdx.x = t;
            switch_stack(&scheduler, all[t].sp);
        }
        bool done = true;
        for (int t = 0; t < threads; ++t) done = done && all[t].state == DONE;
        if (done) return true;
        if (!release(threads)) return false;
    }
}
}
extern "C" void wait_for_block() { fibers::pause(fibers::BLOCK); }
extern "C" void wait_for_warp(u32) { fibers::pause(fibers::WARP); }
extern "C" void* lane_box(int lane) { return fibers::boxes[fibers::current / 32 * 32 + lane]; }
extern "C" int run_kernel(void (*body)(const i64*), const i64* table, i64 blocks, int threads, int waits) {
    blockDim.x = threads;
    gridDim.x = blocks;
    if (!fibers::stacks) fibers::stacks = (char*)fibers::malloc(fibers::MOST * fibers::STACK);
    fibers::body = body;
    fibers::argument = table;
    for (i64 b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        if (waits) {
            if (!fibers::run_block(threads, b % 2 == 0)) return 1;
        } else {
            for (int t = threads - 1; t >= 0; --t) { threadIdx.x = t; body(table); }
        }
    }
    return 0;
}
template <class T> static void product(const i64* w) {
    // a, b, c: address, rows, columns, leading stride, is transposed, batch stride; batch
    const i64 *a = w, *b = w + 6, *c = w + 12;
    for (i64 z = 0; z < w[18]; ++z)
        for (i64 i = 0; i < c[1]; ++i)
            for (i64 j = 0; j < c[2]; ++j) {
                double sum = 0;
                for (i64 k = 0; k < a[2]; ++k) {
                    const T* p = (const T*)a[0] + z * a[5] + (a[4] ? k * a[3] + i : i * a[3] + k);
                    const T* q = (const T*)b[0] + z * b[5] + (b[4] ? j * b[3] + k : k * b[3] + j);
                    sum += (double)load(p) * (double)load(q);
                }
                store((T*)c[0] + z * c[5] + i * c[3] + j, (decltype(load((T*)0)))sum);
            }
}
extern "C" void product_float32(const i64* w) { product<float>(w); }
extern "C" void product_float64(const i64* w) { product<double>(w); }
extern "C" void product_float16(const i64* w) { product<float16>(w); }
extern "C" void product_bfloat16(const i64* w) { product<bfloat16>(w); }
"""  # noqa: E501


def why_unusable() -> str | None:
    """None when kernels can be compiled for the CPU."""
    return None if shutil.which("g++") else "no GPU, and no g++ to stand in for one"


@cache
def _folder() -> Path:
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return private_directory(f"host_cuda_{digest}") or Path(tempfile.mkdtemp())


def _shared_object(text: str, *options: str) -> ctypes.CDLL:
    """The text compiled, from the cache if it was before."""
    digest = hashlib.sha256("\0".join([text, *options]).encode()).hexdigest()[:24]
    path = _folder() / f"{digest}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            source, made = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
            source.write_text(text)
            command = ["g++", "-std=c++17", "-w", "-fPIC", "-shared", "-fwrapv", *options]
            command += ["-fvisibility-inlines-hidden", "-fno-gnu-unique"]
            command += ["-fno-strict-aliasing", "-o", str(made), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise AssertionError(f"generated kernels do not compile:\n{done.stderr[:4000]}")
            os.replace(made, path)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@cache
def scheduler() -> ctypes.CDLL:
    """What runs blocks and threads."""
    text = "\n".join([prelude.TYPES, HOST_ONLY, prelude.COMMON, SCHEDULER])
    return _shared_object(text, "-O2")


class Memory:
    """Host memory that plays device memory, poisoned with NaN."""

    def __init__(self, owner: HostRuntime, nbytes: int):
        self.nbytes, self._owner = nbytes, owner
        self._block = ctypes.create_string_buffer(b"\xff" * (nbytes + 256)) if nbytes else None
        at = ctypes.addressof(self._block) if self._block is not None else 0
        self.address = at + -at % 256
        with owner.lock:
            owner.held += nbytes

    def __del__(self) -> None:
        with self._owner.lock:
            self._owner.held -= self.nbytes


class CopyMemory(Memory):
    """Memory of the copy stream. On a GPU only a later copy can get it; here it is gone."""

    def __del__(self) -> None:
        with self._owner.lock:
            late = self._owner.late
            for copy in [c for c in late if c.memory == self.address]:
                copy.done = True
                late.remove(copy)
        super().__del__()


class Pinned:
    """Host memory."""

    def __init__(self, nbytes: int):
        self._block = ctypes.create_string_buffer(max(nbytes, 1))
        self.address, self.nbytes = ctypes.addressof(self._block), max(nbytes, 1)
        self.view = memoryview(self._block).cast("B")


class LateCopy:
    """A copy from pinned memory, which is its own event: it happens when somebody waits for it."""

    def __init__(self, owner: HostRuntime, memory: int, block: Pinned, nbytes: int):
        self._owner, self.memory, self._block, self._nbytes = owner, memory, block, nbytes
        self.done = False

    def synchronize(self) -> None:
        """It and those before it."""
        with self._owner.lock:
            while not self.done:
                copy = self._owner.late.popleft()
                ctypes.memmove(copy.memory, copy._block.address, copy._nbytes)
                copy.done = True


class Now:
    """The event after something that has happened."""

    done = True


class HostRuntime:
    """The interface of `runtime.Runtime`, computed here, at once."""

    processors = PROCESSORS
    stream_pointer = 0x5EA

    def __init__(self, index: int = 0):
        self.index, self.held = index, 0
        self._functions: dict[str, tuple[Any, bool]] = {}
        self._recording: list[Callable[[], None]] | None = None
        self.log: list[str] = []  # "launch NAME", "replay", "upload", "download", "synchronize"
        self.lock = threading.RLock()
        self.late: deque[LateCopy] = deque()
        self._blocks = PinnedPool(Pinned)
        self.loans = Loans(self)
        scheduler()

    def allocate(self, nbytes: int, purpose: str = "") -> Memory:
        self.loans.settle()
        self._check_room(nbytes, purpose)
        return Memory(self, nbytes)

    def _check_room(self, nbytes: int, purpose: str) -> None:
        if self.held + nbytes > MEMORY_LIMIT:
            raise DeviceError(
                f"cuda:{self.index}: out of memory: asked for {nbytes} bytes{for_purpose(purpose)} "
                f"while minigrad holds {self.held}. Use a smaller batch, or drop tensors that are "
                "no longer needed."
            )

    def allocate_for_copies(self, nbytes: int, purpose: str = "") -> Memory:
        self._check_room(nbytes, purpose)
        return CopyMemory(self, nbytes)

    def pinned(self, nbytes: int) -> Pinned:
        return self._blocks.take(nbytes)

    def upload(self, address: int, data: memoryview) -> None:
        if not data.nbytes:
            return
        block = self._blocks.take(data.nbytes)
        block.view[: data.nbytes] = data.cast("B")
        move = lambda: ctypes.memmove(address, block.address, data.nbytes)  # noqa: E731
        self._do(f"upload {data.nbytes}", move)
        self._blocks.give(block, Now())

    def upload_pinned(self, address: int, block: Pinned, nbytes: int) -> LateCopy:
        self.log.append(f"upload {nbytes}")
        copy = LateCopy(self, address, block, nbytes)
        with self.lock:
            self.late.append(copy)
        self._blocks.give(block, copy)
        return copy

    def ready(self, event: LateCopy) -> None:
        assert self._recording is None, "a wait for the copy stream inside a graph"
        self.log.append("ready")
        event.synchronize()

    def consumed(self) -> None:
        assert self._recording is None, "a wait of the copy stream inside a graph"
        self.log.append("consumed")

    def download(self, address: int, nbytes: int) -> memoryview:
        self.synchronize()
        self.log.append(f"download {nbytes}")
        return memoryview(bytearray(ctypes.string_at(address, nbytes)))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        if nbytes:
            self._do("copy", lambda: ctypes.memmove(target, source, nbytes))

    def clear(self, address: int, nbytes: int) -> None:
        if nbytes:
            self._do("clear", lambda: ctypes.memset(address, 0, nbytes))

    def synchronize(self) -> None:
        assert self._recording is None, "the host waits for the device inside a graph"
        self.log.append("synchronize")
        self.loans.settle()

    def wait_for_stream(self, pointer: int) -> None:
        self.log.append(f"wait for {pointer}")

    def hold_stream(self, pointer: int) -> None:
        self.log.append(f"hold {pointer}")

    def record(self) -> Now:
        return Now()

    def load(self, kernels: Iterable[Kernel]) -> None:
        missing = [k for k in dict.fromkeys(kernels) if k.entry not in self._functions]
        if not missing:
            return
        text = [prelude.TYPES, HOST_ONLY, prelude.COMMON]
        for i, kernel in enumerate(missing):
            text.append(
                f'#undef KERNEL\n#define KERNEL extern "C" void kernel_{i}(const i64* table)'
            )
            text.append(f"namespace kernel_space_{i} {{\n{kernel.source}\n}}")
            nvrtc.check(kernel)
        library = _shared_object("\n".join(text), "-O1")
        for i, kernel in enumerate(missing):
            waits = any(w in kernel.source for w in ("sync", "across_"))
            address = ctypes.cast(getattr(library, f"kernel_{i}"), ctypes.c_void_p)
            self._functions[kernel.entry] = (address, waits)
        self._libraries = [*getattr(self, "_libraries", []), library]

    def launch(self, kernel: Kernel, blocks: int, threads: int, table: int) -> None:
        bound = re.search(r"#define BOUNDS __launch_bounds__\((\d+)", kernel.source)
        assert 0 < threads <= (int(bound[1]) if bound else prelude.THREADS), threads
        assert threads % 32 == 0, f"{kernel}: {threads} threads are no whole warps"
        assert 0 < blocks < 1 << 31, blocks
        address, waits = self._functions[kernel.entry]

        def run() -> None:
            failed = scheduler().run_kernel(
                address, ctypes.c_void_p(table), ctypes.c_longlong(blocks), threads, waits
            )
            assert not failed, f"{kernel}: a barrier that not every thread reaches\n{kernel.source}"

        self._do(f"launch {kernel.name}", run)

    def captured(self, run: Callable[[], None]) -> Any:
        assert self._recording is None
        self._recording = []
        try:
            with self.loans.paused:
                run()
            return self._recording
        finally:
            self._recording = None

    def replay(self, graph: Any) -> None:
        self.log.append("replay")
        for step in graph:
            step()

    def matrix_product(self, dtype: str, tf32: bool, a: Any, b: Any, c: Any, batch: int) -> None:
        words = array("q", [*a, *b, *c, batch])
        function = getattr(scheduler(), f"product_{dtype}")
        self._do(
            f"launch cublas{' tf32' if tf32 else ''}",
            lambda: function(ctypes.c_void_p(words.buffer_info()[0])),
        )

    def run_library(self, name: str, launch: Callable[[], None]) -> None:
        self._do(f"launch {name}", launch)

    def _do(self, what: str, run: Callable[[], Any]) -> None:
        if self._recording is not None:
            assert not what.startswith("upload"), "a copy from the host inside a graph"
            self._recording.append(run)
        else:
            self.log.append(what)
            run()


def install() -> None:
    """Make `device="cuda"` this stand-in. For a whole process, before the first use."""
    host = cache(HostRuntime)

    def only(index: int) -> HostRuntime:
        if index:
            raise DeviceError(f"cuda:{index}: expected a GPU below 1, got {index}.")
        return host(0)

    cudnn.module = lambda: None  # it would take host memory for a GPU's
    runtime.why_unusable = why_unusable
    runtime.device_count = lambda: 1
    runtime.device_of = lambda address: 0
    runtime.runtimes = only
