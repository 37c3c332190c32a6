"""Runs a list of kernels: one native call for a whole program, parallel where a launch asks for it.

Only this driver pays for Numba's parfors machinery. Each row of the list is four int64 words:
kernel address, table address, extent, tasks.

[Note: threads and cores] Left alone, the scheduler sometimes wakes two OpenMP threads on one core,
and a parallel region of microseconds takes milliseconds. OMP_PROC_BIND cures that, but it ties the
*main* thread of every process to the same core for good: two test runs side by side, or PyTorch in
the same process, then crawl on one core. So each worker thread is tied to a core of its own once,
and the main thread only while a parallel program runs.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any, cast

from minigrad.config import config

MASK_BYTES = 128  # room for 1024 cores, as the C library's cpu_set_t

_AFFINITY = f"""
MASK_BYTES = {MASK_BYTES}
set_affinity = types.ExternalFunction(
    "sched_setaffinity", types.int32(types.int32, types.intp, types.intp))
"""

_DRIVER = """
from numba import prange


@njit(types.void(types.intp, types.intp, types.intp, types.intp), parallel=True, nogil=True)
def parallel_for(address, table, extent, tasks):
    for task in prange(tasks):
        j = types.int64(task)
        call_kernel(address, table, extent * j // tasks, extent * (j + 1) // tasks)


def kernel(rows, masks, count):
    if masks != 0:
        set_affinity(types.int32(0), MASK_BYTES, masks)
    for i in range(count):
        address = load_int64(rows, 4 * i)
        table = load_int64(rows, 4 * i + 1)
        extent = load_int64(rows, 4 * i + 2)
        tasks = load_int64(rows, 4 * i + 3)
        if tasks <= 1:
            call_kernel(address, table, 0, extent)
        else:
            parallel_for(address, table, extent, tasks)
    if masks != 0:
        set_affinity(types.int32(0), MASK_BYTES, masks + MASK_BYTES)
"""

# Run once with one task a thread: task j runs on thread j, and 0 is the main thread.
_BIND = """

def kernel(table, begin, end):
    for j in range(begin, end):
        if j > 0:
            set_affinity(types.int32(0), MASK_BYTES, load_int64(table, 0) + j * MASK_BYTES)
"""


def _usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


# Looked up at import: later a library may have tied this thread to one core.
_CORES = _usable_cores()
_THREADS = config.num_threads or len(_CORES)


def num_threads() -> int:
    """Threads of a parallel launch: MINIGRAD_NUM_THREADS, or the cores this process may use."""
    return _THREADS


def _mask(cores: list[int]) -> bytes:
    return sum(1 << core for core in cores).to_bytes(MASK_BYTES, "little")


@cache
def kernels() -> tuple[Any, Any]:
    """The driver and what ties its threads to cores, for the first plan to compile with its own."""
    import numba
    from numba.core import config as limits

    from minigrad.backend.cpu.runtime.jit import compile_kernel

    most = cast("Any", limits).NUMBA_NUM_THREADS  # set at import, unseen by type checkers
    numba.set_num_threads(min(_THREADS, most))  # starts them: the driver is linked with their code
    sources = {"driver": _DRIVER, "driver_bind": _BIND}
    driver, bind = (compile_kernel(name, _AFFINITY + text) for name, text in sources.items())
    return driver, bind


class _Driver:
    """The compiled driver, its worker threads tied to cores where the system lets us."""

    def __init__(self) -> None:
        driver, bind = kernels()
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self.call = prototype(driver.address)
        self.masks = 0
        can_bind = hasattr(os, "sched_setaffinity") and 1 < _THREADS <= len(_CORES)
        if can_bind and not os.environ.get("OMP_PROC_BIND"):  # a user's own choice is respected
            self._bind(bind)

    def _bind(self, kernel: Any) -> None:
        # Processes start at different cores, so that several at once spread their main threads.
        first = os.getpid() % len(_CORES)
        order = _CORES[first:] + _CORES[:first]
        each = b"".join(_mask([core]) for core in order[:_THREADS])
        self._each = ctypes.create_string_buffer(each, len(each))
        self._main = ctypes.create_string_buffer(_mask(order[:1]) + _mask(_CORES), 2 * MASK_BYTES)
        table = (ctypes.c_int64 * 1)(ctypes.addressof(self._each))
        words = (kernel.address, ctypes.addressof(table), _THREADS, _THREADS)
        row = (ctypes.c_int64 * 4)(*words)
        self.call(ctypes.addressof(row), 0, 1)
        self.masks = ctypes.addressof(self._main)


_driver = cache(_Driver)


def run(rows: int, count: int, parallel: bool = True) -> None:
    """Run `count` launches whose rows start at address `rows`. The GIL is released meanwhile.

    `parallel` says whether any of them has more than one task.
    """
    driver = _driver()
    driver.call(rows, driver.masks if parallel else 0, count)
