"""What Python adds to a replayed step: all but the one native call."""

from __future__ import annotations

import time
from typing import Any

import layers
import minigrad as mg
from minigrad.backend.cpu.runtime import driver
from minigrad.execution.capture import recorded_plan
from tests.bench.timing import median

STEPS = 200


def replay_overhead() -> str:
    """Microseconds around the native call of a LeNet-5+BN step, beside it and without it.

    Beside the native call Python finds its own data thrown out of the caches.
    """
    model = layers.models.LeNet5(norm=layers.BatchNorm2d)
    optimizer = mg.optim.SGD(
        model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    x, y = mg.random.normal((128, 3, 32, 32)), mg.random.randint(0, 10, (128,))
    mg.evaluate(x, y)

    @mg.compile
    def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        loss = mg.nn.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(5):
        step(x, y)
    plan = recorded_plan(step)
    assert plan is not None
    kernels = len(plan.program.launches)
    run, native = driver.run, [0.0]

    def timed(*args: Any) -> None:
        started = time.perf_counter()
        run(*args)
        native[0] += time.perf_counter() - started

    def around(call: Any) -> float:
        driver.run = call
        times = []
        for _ in range(STEPS):
            native[0] = 0.0
            started = time.perf_counter()
            step(x, y)
            times.append(time.perf_counter() - started - native[0])
        return 1e6 * median(times)

    try:
        beside, alone = around(timed), around(lambda *args: None)
    finally:
        driver.run = run
    return (
        f"replayed LeNet-5+BN step: Python takes {beside:.0f} us, {alone:.0f} us where no kernel "
        f"runs ({kernels} kernels: 100 + 2 a kernel are {100 + 2 * kernels} us)"
    )
