"""Fixtures that every test shares: devices, and a guard against leaked modes."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from minigrad import device as devices
from minigrad import graph
from minigrad.compiler import run
from minigrad.config import config
from minigrad.context import context
from minigrad.device import Device, as_device

# Tests of the CPU's kernels need Numba, which a machine with a GPU may do without.
if not importlib.util.find_spec("numba"):
    collect_ignore_glob = ["test_cpu_*.py", "test_elementary.py", "test_kernel_*.py"]
    collect_ignore_glob += ["test_scheduling.py"]

# Test modules import their neighbours (`reference`, `cases`, ...) by name, from any folder.
sys.path.insert(0, str(Path(__file__).parent))

import host_cuda
from observing import fresh_plans, poisoned, watch  # noqa: F401 (fixtures for every test)

# Without a GPU, "cuda" is a stand-in that runs the generated kernels on the CPU.
if devices.why_unusable("cuda"):
    host_cuda.install()
    if config.device is None:
        devices.set_default_device("cpu")

# With pytest-xdist every core has a worker. Threads that spin while they wait would hold up others.
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
if SIDE_BY_SIDE:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when the threads are started

# Random programs are compiled, so an example can take seconds on a cold cache: no deadline, and no
# shrinking, which compiles hundreds more. The same examples every time, so that a failure is one of
# the change. HYPOTHESIS_PROFILE=thorough searches for new ones and shrinks what it finds.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "default", max_examples=25, deadline=None, derandomize=True, suppress_health_check=_SLOW,
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
settings.register_profile("thorough", max_examples=500, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def no_helpers_beside_other_workers() -> None:
    """Helpers that compile would only start Numba once more where each core compiles already."""
    if SIDE_BY_SIDE and importlib.util.find_spec("numba"):
        from minigrad.backend.cpu.runtime import compile_workers

        compile_workers.most = 0


# Twice the kernels to compile: those of the GPU are slow tests. `.ci/run` runs them, too.
@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def device(request: Any) -> Device:
    """Each kind of device that this machine can use."""
    reason = devices.devices()[request.param]
    if reason != "usable":
        pytest.skip(f"{request.param}: {reason}")
    return as_device(request.param)


@pytest.fixture
def cpu_too() -> None:
    """The CPU can compute, so that something may be compared with it."""
    reason = devices.devices()["cpu"]
    if reason != "usable":
        pytest.skip(f"cpu: {reason}")


@pytest.fixture
def on_cpu(cpu_too: None) -> Iterator[None]:
    """The CPU is the default device, whatever it was: for tests of what is the CPU's own."""
    before = devices.default_device()
    devices.set_default_device("cpu")
    yield
    devices.set_default_device(before)


def _modes() -> dict[str, Any]:
    """Everything of a thread or process that a test could leave changed."""
    return {
        **vars(context),
        "default device": devices.default_device(),
        "what computes": run.run_graph,
        "config": copy.copy(config),
        "primitives": list(graph.PRIMITIVES),
    }


def _forget_what_nobody_looked_at() -> None:
    """An index out of range on a GPU is an error where a value is next looked at: in this test."""
    from minigrad.backend.cuda import backend

    if backend.device.cache_info().currsize:
        with contextlib.suppress(IndexError):
            backend.device(0).synchronize()


@pytest.fixture(autouse=True)
def no_leaked_modes() -> Iterator[None]:
    """Fail the test that leaves a mode or flag as others do not expect it, and put it back."""
    before = _modes()
    yield
    after = _modes()
    changed = [n for n, x in before.items() if after[n] is not x and after[n] != x]
    vars(context).update((name, before[name]) for name in vars(context))
    devices._default = before["default device"]
    run.run_graph = before["what computes"]
    config.__dict__.update(before["config"].__dict__)
    _forget_what_nobody_looked_at()
    for name in set(graph.PRIMITIVES) - set(before["primitives"]):
        del graph.PRIMITIVES[name]
    assert not changed, f"this test leaked: {', '.join(changed)}"
