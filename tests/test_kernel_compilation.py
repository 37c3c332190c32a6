"""Compiling several kernels at once, with the help of other processes or without."""

from __future__ import annotations

import ctypes
import sys
import time
import uuid
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from minigrad.backend import cache_directory  # noqa: E402
from minigrad.backend.cpu.runtime import (  # noqa: E402
    compile_workers,
    driver,
    jit,
    kernel_cache,
)

NUMBERS = range(8)


@pytest.fixture
def kernels() -> list[jit.Kernel]:
    """Kernels that no cache has; number n stores n into the first word of its table."""
    unique = uuid.uuid4().hex
    return [
        jit.compile_kernel("stores", f"def kernel(table, begin, end):\n"
                                     f"    store_int64(table, 0, {n})  # {unique}\n")
        for n in NUMBERS
    ]  # fmt: skip


def stored(kernel: jit.Kernel) -> int:
    word = ctypes.c_int64(-1)
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    prototype(kernel.address)(ctypes.addressof(word), 0, 0)
    return word.value


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list]:
    """The helpers of each batch."""
    seen = []
    start = compile_workers._start

    def remember(*args):
        seen.append(start(*args))
        return seen[-1]

    monkeypatch.setattr(compile_workers, "_start", remember)
    monkeypatch.setattr(compile_workers, "most", None)
    monkeypatch.setattr(driver, "num_threads", lambda: 2)
    return seen


def test_a_batch_with_a_helper(kernels, started, monkeypatch):
    batches = []
    at_work = compile_workers.at_work

    def watched(entries):
        batches.append(entries)
        return at_work(entries)

    monkeypatch.setattr(compile_workers, "at_work", watched)
    jit.compile_all(kernels)
    assert [stored(kernel) for kernel in kernels] == list(NUMBERS)
    assert [len(entries) for entries in batches] == [len(kernels)]
    ((helper,),) = started
    assert helper.returncode is not None  # it is gone, and reaped


def test_a_helper_compiles_what_it_is_given(kernels, started):
    given = kernels[:4]
    for kernel in given:
        kernel_cache.store_source(kernel.entry, kernel.text)
    until = time.monotonic() + 120
    with compile_workers.at_work([kernel.entry for kernel in given]):
        while not all(kernel_cache.load(kernel.entry) for kernel in given):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert [stored(kernel) for kernel in given] == [0, 1, 2, 3]
    assert kernel_cache.load(kernels[4].entry) is None


@pytest.mark.parametrize("failure", ["dies at once", "is no program"])
def test_a_batch_without_the_help_it_asked_for(
    kernels, started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: str
):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n" if failure == "dies at once" else "")
    broken.chmod(0o755 if failure == "dies at once" else 0o644)
    monkeypatch.setattr(sys, "executable", str(broken))
    jit.compile_all(kernels)
    assert [stored(kernel) for kernel in kernels] == list(NUMBERS)
    assert all(helper.returncode is not None for helper in started[0])


@pytest.mark.parametrize("reason", ["one thread", "few kernels", "no cache", "another program"])
def test_no_helper(kernels, started, monkeypatch: pytest.MonkeyPatch, reason: str):
    if reason == "one thread":
        monkeypatch.setattr(driver, "num_threads", lambda: 1)
    elif reason == "few kernels":
        kernels = kernels[:2]
    elif reason == "no cache":
        monkeypatch.setattr(cache_directory, "_disabled", ["a reason"])
    else:
        monkeypatch.setattr(sys, "executable", "/usr/bin/some-application")
    jit.compile_all(kernels)
    assert [stored(kernel) for kernel in kernels] == list(range(len(kernels)))
    assert started == [[]]


def test_an_entry_is_compiled_by_one_process_at_a_time(kernels):
    kernel = kernels[0]
    kernel_cache.store_source(kernel.entry, kernel.text)
    with kernel_cache.locked(kernel.entry, wait=True) as ours:
        assert ours
        assert compile_workers.object_code(kernel.entry, kernel.text, wait=False) == (None, False)
    code, here = compile_workers.object_code(kernel.entry, kernel.text, wait=False)
    assert here
    assert compile_workers.object_code(kernel.entry, kernel.text) == (code, False)


def test_an_error_in_a_kernel_shows_its_line():
    kernel = jit.compile_kernel("wrong", "def kernel(table, begin, end):\n    table + None\n")
    with pytest.raises(numba.TypingError, match=r'File ".*wrong_\w+\.py", line \d+'):
        _ = kernel.address
