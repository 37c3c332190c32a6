"""Fixtures that watch the engine: what it launches, compiles and plans, with poisoned memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator

import pytest

from minigrad.backend.cpu import jit, memory
from minigrad.backend.cpu.executable import Executable
from minigrad.compiler import plan as plans


class Watch:
    """Counts what happened since the last `reset`."""

    def __init__(self) -> None:
        self.kernels: list[str] = []  # the name of every kernel that was launched
        self.reset()

    def reset(self) -> None:
        self.kernels.clear()
        self._compiled, self._planned = jit.compile_count, plans.plan_count

    @property
    def compiled(self) -> int:
        """Kernels compiled. One that a cached file gives does not count: see `known`."""
        return jit.compile_count - self._compiled

    @property
    def planned(self) -> int:
        return plans.plan_count - self._planned

    def known(self) -> int:
        """Distinct kernels of this process, compiled or loaded."""
        return len(jit._kernels)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching = Watch()
    run = plans.Plan.run

    def watched(self, *args):
        watching.kernels += [launch.kernel.name for launch in self.program.launches]
        return run(self, *args)

    monkeypatch.setattr(plans.Plan, "run", watched)
    return watching


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All memory that nobody has written yet, arenas and slack included, reads as NaN."""
    allocate, run = memory.Buffer.__init__, Executable.run

    def poison(buffer: memory.Buffer) -> None:
        ctypes.memset(buffer.address, 0xFF, buffer.nbytes + memory.SLACK)

    def allocate_poisoned(self, nbytes):
        allocate(self, nbytes)
        poison(self)

    def run_poisoned(self, *args):
        if self.arena is not None:
            poison(self.arena)
        run(self, *args)

    monkeypatch.setattr(memory.Buffer, "__init__", allocate_poisoned)
    monkeypatch.setattr(Executable, "run", run_poisoned)
    yield
    gc.collect()


def live_bytes() -> int:
    """Bytes in buffers, after a collection."""
    gc.collect()
    return memory.live_bytes
