"""Kernels: CUDA C that a runtime compiles when a program first needs it."""

from __future__ import annotations

import hashlib
from functools import cache

from minigrad.backend.cuda import prelude


class Kernel:
    """The source of one kernel, `KERNEL { ... }`, with what it needs before it."""

    def __init__(self, name: str, source: str):
        self.name = name
        self.source = source
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        self.entry = f"{name}_{digest}"

    @property
    def text(self) -> str:
        """The whole translation unit."""
        return "\n".join([prelude.TYPES, prelude.DEVICE_ONLY, prelude.COMMON, self.source])

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


@cache
def compile_kernel(name: str, source: str) -> Kernel:
    """The kernel of this source. Nothing is compiled yet: see `Runtime.load`."""
    return Kernel(name, source)
