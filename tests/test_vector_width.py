"""Kernels whose vectors are not the machine's: MINIGRAD_VECTOR_BYTES, in processes of its own.

`.ci/run` runs all tests of the CPU's kernels with each width; here are the few that see most of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from minigrad.backend.cpu import machine
from minigrad.backend.cpu.runtime import kernel_cache

HERE = Path(__file__).parent
OTHERS = [nbytes for nbytes in (16, 32, 64) if nbytes != machine.vector_bytes()]
PRINTS_THE_CACHE = """
from minigrad.backend.cpu import machine
from minigrad.backend.cpu.runtime import kernel_cache
print(machine.vector_bytes(), kernel_cache.directory().name)
"""
# What a worker is asked for is compiled, since it looks in the folder of its own width.
COMPILES_IN_A_WORKER = """
import time
from minigrad.backend.cpu.runtime import compile_workers, driver, kernel_cache
from minigrad.config import config

config.vector_bytes = 16  # not in the environment
driver.num_threads = lambda: 2
entries = [f"nothing{n}" for n in range(4)]
for entry in entries:
    kernel_cache.store_source(entry, "def kernel(table, begin, end):\\n    pass\\n")
with compile_workers.at_work(entries):
    until = time.monotonic() + 120
    while not all(kernel_cache.load(entry) for entry in entries):
        assert time.monotonic() < until
        time.sleep(0.05)
"""


def run(arguments: list[str], **settings: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=HERE.parent, env={**os.environ, **settings},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("nbytes", OTHERS)
def test_kernels_of_each_width_have_a_folder_of_their_own(nbytes, tmp_path):
    settings = {"MINIGRAD_VECTOR_BYTES": str(nbytes), "MINIGRAD_CACHE_DIR": str(tmp_path)}
    width, folder = run(["-c", PRINTS_THE_CACHE], **settings).split()
    assert int(width) == nbytes
    assert folder != kernel_cache.directory().name


def test_compile_workers_are_told_the_width(tmp_path):
    run(["-c", COMPILES_IN_A_WORKER], MINIGRAD_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("nbytes", OTHERS)
def test_products_convolutions_and_windows(nbytes):
    names = "packing or (layers and float32 and (ragged or lenet or stride)) or pair_kernels"
    files = [str(HERE / f"test_cpu_{what}.py") for what in ("conv", "gemm", "window")]
    options = ["-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", names]
    out = run([*options, *files], MINIGRAD_VECTOR_BYTES=str(nbytes), MINIGRAD_DEVICE="cpu")
    assert "passed" in out
