"""A program bound to memory: its tables are filled once, and a run patches only what changes.

[Note: one arena] Programs never run at the same time, and what lies in an arena is of no use after
a run: so all share one, as large as the largest needs. When it grows, it is another block, and each
program moves its tables over at its next run.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from typing import cast

from minigrad.backend.cpu.runtime import driver, jit
from minigrad.backend.cpu.runtime.memory import DeviceBuffer, release_free_blocks
from minigrad.backend.launch import Program
from minigrad.backend.tables import Tables
from minigrad.dtype import DType


class _Arena:
    """Memory for the temporaries of whichever program runs. See [Note: one arena]."""

    def __init__(self) -> None:
        self.buffer = DeviceBuffer(0)

    def reserve(self, nbytes: int) -> None:
        """Have at least this many bytes; what they held is lost."""
        if nbytes > self.buffer.nbytes:
            self.buffer = DeviceBuffer(0)  # the old block goes before the new one comes
            release_free_blocks()
            self.buffer = DeviceBuffer(nbytes, "temporaries")


arena = _Arena()


class Executable:
    """Runs a program's launches with one native call; arguments as `Backend.executable`'s."""

    def __init__(
        self,
        program: Program,
        offsets: Mapping[int, int],
        arena_bytes: int,
        bound: Sequence[int],
        constants: Sequence[DType],
    ):
        self.program = program  # keeps kernels and constant tables alive
        self._arena_bytes = arena_bytes
        self._base = 0  # the arena's address that the tables hold
        self._tables = Tables(program, offsets, bound, constants)
        table = self._tables.words.buffer_info()[0]
        kernels = [cast("jit.Kernel", launch.kernel) for launch in program.launches]
        jit.compile_all([*driver.kernels(), *kernels])
        rows = []
        for kernel, launch, start in zip(
            kernels, program.launches, self._tables.starts, strict=True
        ):
            rows += [kernel.address, table + 8 * start, launch.extent, launch.tasks]
        self._rows = array("q", rows)
        self._row_address = self._rows.buffer_info()[0]
        self._count = len(program.launches)
        self._parallel = any(launch.tasks > 1 for launch in program.launches)
        self._checks = [(offsets[slot], text) for slot, text in program.checks if slot in offsets]
        self._statuses: list[tuple[ctypes.c_int64, str]] = []

    def _move(self, base: int) -> None:
        at = ctypes.c_int64.from_address
        self._statuses = [(at(base + offset), message) for offset, message in self._checks]
        self._base = base

    def run(self, buffers: Sequence[DeviceBuffer], constants: Sequence[float]) -> None:
        """Run all launches: see `minigrad.backend.interface.Executable`."""
        arena.reserve(self._arena_bytes)
        base = arena.buffer.address
        if base != self._base:
            self._move(base)
        buffers = [b if b.has_slack else b.copied() for b in buffers]
        self._tables.bind(base, [b.address for b in buffers], constants)
        for status, _ in self._statuses:
            status.value = 0
        driver.run(self._row_address, self._count, self._parallel)
        for status, message in self._statuses:
            if status.value:
                raise IndexError(message.format(value=status.value - 1))
