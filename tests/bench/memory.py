"""Peak memory of a LeNet-5+BN training step at batch 128, ours and PyTorch's, each in a process.

What is measured is how far ten steps raise the peak of the resident set (VmHWM). They have run once
before, so that code, kernels, parameters and optimizer state exist, and all free memory was given
back to the system. Linux with glibc only.
"""

from __future__ import annotations

import os
import subprocess
import sys

WATCH = """
import gc
from pathlib import Path

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def measure(run, give_back):
    run()
    gc.collect()
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    print(status("VmHWM") - before)
"""

OURS = """
import layers
import minigrad as mg
from minigrad.backend.cpu.runtime import executable, memory

model = layers.models.LeNet5(norm=layers.BatchNorm2d)
optimizer = mg.optim.SGD(
    model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)

@mg.compile
def step(x, y):
    optimizer.zero_grad()
    loss = mg.nn.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

def run():
    x, y = mg.random.normal((128, 3, 32, 32)), mg.random.randint(0, 10, (128,))
    for _ in range(10):
        step(x, y).item()

def give_back():
    executable.arena.buffer = memory.DeviceBuffer(0)
    memory.release_free_blocks()

measure(run, give_back)
"""

THEIRS = """
import ctypes
import sys
import torch
import torch.nn.functional as F

from tests.bench.models import their_lenet

torch.set_num_threads(int(sys.argv[1]))
model = their_lenet(norm=True)
optimizer = torch.optim.SGD(
    model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)

def run():
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()

measure(run, lambda: ctypes.CDLL(None).malloc_trim(0))
"""


def peak(program: str, threads: int) -> int:
    """Bytes by which the peak of a fresh process rises."""
    run = subprocess.run(
        [sys.executable, "-c", WATCH + program, str(threads)],
        env={**os.environ, "MINIGRAD_NUM_THREADS": str(threads)},
        text=True, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return int(run.stdout)


def compare(threads: int) -> tuple[int, int]:
    """Ours and PyTorch's."""
    return peak(OURS, threads), peak(THEIRS, threads)
