"""Kernels: source text that becomes native code when first needed, from the cache or compiled.

A plan's kernels are compiled together, the longest first, by this process and by helper processes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from functools import cache

from minigrad.backend.cpu.runtime import compile_workers, kernel_cache, native
from minigrad.backend.debug import announce

HEADER = """\
import math
from numba import njit, types
from minigrad.backend.cpu.vector.elementary import *
from minigrad.backend.cpu.vector.tails import *
from minigrad.backend.cpu.vector.intrinsics import *
from minigrad.backend.cpu.runtime.native import kernel_options

OPTIONS = kernel_options()
"""


class Kernel:
    """A kernel `void(table, begin, end)`, compiled when its address is asked for, or before."""

    def __init__(self, name: str, source: str):
        self.name = name
        self.source = source
        self.text = HEADER + source
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        self.entry = f"{name}_{digest}"  # its name in the cache, and of the native function
        self._address = 0

    @property
    def address(self) -> int:
        """Of the native code."""
        if not self._address:
            compile_all([self])
        return self._address

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


@cache
def compile_kernel(name: str, source: str) -> Kernel:
    """The kernel of this source, which defines `kernel(table, begin, end)`.

    The source starts after HEADER: `njit`, `types` and every intrinsic are in scope, and so is
    `OPTIONS`, for the `@njit(..., **OPTIONS)` of its inner functions. `kernel` itself is left
    undecorated. Nothing is compiled yet: see `compile_all`.
    """
    return Kernel(name, source)


def compile_all(kernels: Iterable[Kernel]) -> None:
    """Give each kernel its native code."""
    missing = []
    for kernel in dict.fromkeys(kernels):
        if not kernel._address:
            started = time.perf_counter()
            code = kernel_cache.load(kernel.entry)
            if code is None:
                missing.append(kernel)
            else:
                _link(kernel, code, "loaded", started)
    for kernel in missing:
        kernel_cache.store_source(kernel.entry, kernel.text)
    missing.sort(key=lambda kernel: len(kernel.source), reverse=True)
    with compile_workers.at_work([kernel.entry for kernel in missing]):
        for wait in (False, True):  # what a helper has begun is waited for in the end
            for kernel in missing:
                if not kernel._address:
                    started = time.perf_counter()
                    code, here = compile_workers.object_code(kernel.entry, kernel.text, wait)
                    if code is not None:
                        _link(kernel, code, "compiled" if here else "received", started)


def _link(kernel: Kernel, code: bytes, how: str, started: float) -> None:
    kernel._address = native.link(code, kernel.entry)
    announce(how, kernel.name, kernel.source, started)
