"""Runs a list of kernels: one native call for a whole program, parallel where a launch asks for it.

Only this driver pays for Numba's parfors machinery. Each row of the list is four int64 words:
kernel address, table address, extent, tasks.
"""

from __future__ import annotations

import os
from functools import cache

from minigrad.config import config

# Without binding both OpenMP threads sometimes wake on one core and every region costs
# milliseconds. Set before the first parallel call; a value of the user's own is respected.
os.environ.setdefault("OMP_PROC_BIND", "true")

SOURCE = """
from numba import prange


@njit(types.void(types.intp, types.intp, types.intp, types.intp), parallel=True, nogil=True,
      cache=OPTIONS["cache"])
def parallel_for(address, table, extent, tasks):
    for task in prange(tasks):
        j = types.int64(task)
        call_kernel(address, table, extent * j // tasks, extent * (j + 1) // tasks)


def kernel(rows, begin, end):
    for i in range(begin, end):
        address = load_int64(rows, 4 * i)
        table = load_int64(rows, 4 * i + 1)
        extent = load_int64(rows, 4 * i + 2)
        tasks = load_int64(rows, 4 * i + 3)
        if tasks <= 1:
            call_kernel(address, table, 0, extent)
        else:
            parallel_for(address, table, extent, tasks)
"""


@cache
def num_threads() -> int:
    """Threads of a parallel launch: MINIGRAD_NUM_THREADS, or the cores this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return config.num_threads or available or 1


@cache
def _driver():
    import ctypes

    import numba

    from minigrad.backend.cpu.jit import compile_kernel

    if num_threads() <= numba.config.NUMBA_NUM_THREADS:
        numba.set_num_threads(num_threads())
    kernel = compile_kernel("driver", SOURCE)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return prototype(kernel.address), kernel


def run(rows: int, count: int) -> None:
    """Run `count` launches whose rows start at address `rows`. The GIL is released meanwhile."""
    _driver()[0](rows, 0, count)
