"""Seconds until a first training step is done, with an empty and with a full kernel cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

START = """
import time
started = time.perf_counter()
import minigrad as mg, layers
mg.random.seed(0)
model = layers.models.LeNet5(norm=layers.BatchNorm2d)
optimizer = mg.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
x, y = mg.random.normal((128, 3, 32, 32)), mg.random.randint(0, 10, (128,))
loss = mg.nn.cross_entropy(model(x), y)
loss.backward()
optimizer.step()
loss.item()
print(time.perf_counter() - started)
"""


def start_times() -> None:
    """From import to the end of the first LeNet-5+BN step, cold and warm."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "MINIGRAD_CACHE_DIR": cache}
        for label in ("cold (empty kernel cache)", "warm"):
            began = time.perf_counter()
            run = subprocess.run(
                [sys.executable, "-c", START], env=environment, text=True, stdout=subprocess.PIPE,
                check=True,
            )  # fmt: skip
            total = time.perf_counter() - began
            name = f"first LeNet-5+BN step, {label}"
            print(f"{name:52} {float(run.stdout):9.2f} s   (process {total:.2f} s)", flush=True)
