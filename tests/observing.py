"""Fixtures that watch the engine: what it launches, compiles and plans, and poisoned memory.

The CPU backend is imported where it is used: a machine with a GPU need not have Numba.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from typing import Any

import pytest

from minigrad.device import default_device


class Watch:
    """Counts what happened since the last `reset`."""

    def __init__(self) -> None:
        self.kernels: list[str] = []  # the name of every kernel that was launched
        self.spaces: list[tuple[int, ...] | None] = []  # what each fused group ranged over
        self.planned = 0  # plans made, not found
        self.missing = 0  # kernels of the CPU that were not in the cache on disk
        self.reset()

    def reset(self) -> None:
        self.kernels.clear()
        self.spaces.clear()
        self.planned = self.missing = 0
        self._known = self.known()

    @property
    def compiled(self) -> int:
        """Kernels compiled. One that a file of the cache gives does not count: see `known`.

        On a GPU any kernel that was not known before counts.
        """
        return self.missing if default_device().type == "cpu" else self.known() - self._known

    def known(self) -> int:
        """Distinct kernels of this process, compiled or loaded."""
        return self._kernels().compile_kernel.cache_info().currsize

    def _kernels(self) -> Any:
        """The module that knows the kernels of the default device."""
        if default_device().type == "cpu":
            from minigrad.backend.cpu.runtime import jit

            return jit
        from minigrad.backend.cuda.runtime import jit

        return jit


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What the engine does during a test, with plans that are made in it."""
    from minigrad.compiler import pipeline, run
    from minigrad.compiler.plan import Plan

    watching = Watch()
    spaces: dict[Plan, list[Any]] = {}
    last: list[Any] = []  # the spaces of the groups that were fused last
    compile_graph, fuse, run_plan = run.compile_graph, pipeline.fuse, Plan.run

    def watched_fuse(*args: Any) -> Any:
        groups = fuse(*args)
        last[:] = [group.space for group in groups]
        return groups

    def watched_compile(*args: Any) -> Plan:
        plan = compile_graph(*args)
        spaces[plan] = list(last)
        watching.planned += 1
        return plan

    def watched_run(self: Plan, *args: Any) -> Any:
        watching.kernels += [launch.kernel.name for launch in self.program.launches]
        watching.spaces += spaces.get(self, [])
        return run_plan(self, *args)

    if default_device().type == "cpu":
        from minigrad.backend.cpu.runtime import compile_workers

        at_work = compile_workers.at_work

        def watched_work(entries: Any) -> Any:
            watching.missing += len(entries)
            return at_work(entries)

        monkeypatch.setattr(compile_workers, "at_work", watched_work)
    run._plans.clear()
    monkeypatch.setattr(pipeline, "fuse", watched_fuse)
    monkeypatch.setattr(run, "compile_graph", watched_compile)
    monkeypatch.setattr(Plan, "run", watched_run)
    return watching


@pytest.fixture
def fresh_plans() -> None:
    """No plan is known: none is found, and none is thrown out with its memory during the test."""
    from minigrad.compiler import run

    run._plans.clear()
    gc.collect()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory that nobody has written yet, arenas and slack included, reads as NaN.

    That of the CPU. The stand-in for a GPU has no other.
    """
    if not importlib.util.find_spec("numba"):
        return
    from minigrad.backend.cpu.runtime import memory
    from minigrad.backend.cpu.runtime.executable import Executable, arena

    allocate, run = memory.DeviceBuffer.__init__, Executable.run

    def poison(buffer: memory.DeviceBuffer) -> None:
        ctypes.memset(buffer.address, 0xFF, buffer.nbytes + memory.SLACK)

    def allocate_poisoned(self: memory.DeviceBuffer, nbytes: int, purpose: str = "") -> None:
        allocate(self, nbytes, purpose)
        poison(self)

    def run_poisoned(self: Executable, *args: Any) -> None:
        arena.reserve(self._arena_bytes)
        poison(arena.buffer)
        run(self, *args)

    monkeypatch.setattr(memory.DeviceBuffer, "__init__", allocate_poisoned)
    monkeypatch.setattr(Executable, "run", run_poisoned)


def live_bytes() -> int:
    """Bytes in the CPU's buffers, after a collection."""
    from minigrad.backend.cpu.runtime import memory

    gc.collect()
    return memory.live_bytes
