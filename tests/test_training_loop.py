"""A thousand training steps: neither the graph nor the memory grows."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from observing import live_bytes

import layers
import minigrad as mg
from minigrad.graph import Node, topological

STEPS = 1000
WARM = 100  # steps until plans, kernels and pools are all made
RSS_TOLERANCE = 4 << 20  # bytes; the interpreter's own arenas come and go


class MLP(layers.Module):
    def __init__(self) -> None:
        self.body = layers.Sequential(
            layers.Linear(12, 16), layers.BatchNorm(16), layers.ReLU(), layers.Dropout(0.2),
            layers.Linear(16, 4),
        )  # fmt: skip

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return self.body(x)


def mlp() -> tuple[layers.Module, mg.Tensor]:
    return MLP(), mg.random.normal((8, 12))


def lenet() -> tuple[layers.Module, mg.Tensor]:
    model = layers.models.LeNet5(in_channels=1, norm=layers.BatchNorm2d)
    return model, mg.random.normal((4, 1, 32, 32))


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def live_nodes() -> int:
    gc.collect()
    return sum(type(o) is Node for o in gc.get_objects())


class Watchdog:
    """Compares what there is after the loop with what there was after its first steps."""

    def __init__(self, model: layers.Module, optimizer: Any = None):
        self.model, self.optimizer = model, optimizer
        self.before: tuple[int, int, int] | None = None

    def settle(self, step: int) -> None:
        """Halfway to the first look, drop what hangs in cycles: new graphs may share it."""
        if step == WARM // 2:
            gc.collect()

    def look(self) -> None:
        found = live_nodes(), live_bytes(), resident_bytes()
        if self.before is None:
            self.before = found
            return
        nodes, held, resident = self.before
        assert found[0] <= nodes, "the graph grew"
        assert found[1] <= held, "buffers were leaked"
        assert found[2] <= resident + RSS_TOLERANCE, "the process grew"

    def shallow(self) -> None:
        """State depends on nothing once it is computed, or a few nodes if it is not."""
        state = [*self.model.parameters(), *self.model.buffers()]
        if self.optimizer is not None:
            state += [t for s in self.optimizer.state.values() for t in s.values()]
        for tensor in state:
            assert len(topological([tensor.node])) <= 2


def train(
    make: Callable[[], tuple[layers.Module, mg.Tensor]],
    steps: int,
    compiled: bool,
    look_first: bool,
) -> None:
    mg.random.seed(0)
    model, x = make()
    y = mg.tensor([k % 4 for k in range(x.shape[0])])
    optimizer = mg.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = mg.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

    def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        loss = mg.nn.cross_entropy(model(x), y)
        if look_first and not compiled:
            loss.item()
        loss.backward()
        optimizer.step()
        return loss

    run = mg.compile(step) if compiled else step
    watchdog = Watchdog(model, optimizer)
    first = last = 0.0
    for k in range(steps):
        loss = run(x, y)
        schedule.step()
        if k % 10 == 0 or look_first:
            last = loss.item()
        first = first or last
        del loss
        watchdog.settle(k)
        if k % WARM == WARM - 1:
            optimizer.zero_grad()
            watchdog.shallow()
            if k + 1 in (WARM, steps):
                watchdog.look()
    assert last < first


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches this small are no work for threads, which on a busy machine wait for one another."""
    driver = pytest.importorskip("minigrad.backend.cpu.runtime.driver")
    monkeypatch.setattr(driver, "_THREADS", 1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.usefixtures("one_thread", "fresh_plans")
class TestThousandSteps:
    @pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
    def test_mlp(self, compiled: bool):
        train(mlp, STEPS, compiled, look_first=False)

    def test_mlp_with_a_look_at_each_loss(self):
        train(mlp, STEPS, compiled=False, look_first=True)

    @pytest.mark.parametrize(
        "compiled",
        [
            pytest.param(False, marks=pytest.mark.slow, id="plain"),
            pytest.param(True, id="compiled"),
        ],
    )
    def test_lenet(self, compiled: bool):
        train(lenet, STEPS, compiled, look_first=False)

    @pytest.mark.parametrize("grad", [True, False], ids=["with gradient", "no_grad"])
    def test_forward_only(self, grad: bool):
        """Running statistics are updated in each forward: they must not become a chain."""
        mg.random.seed(0)
        model, x = mlp()
        watchdog = Watchdog(model)
        with nullcontext() if grad else mg.no_grad():
            for k in range(STEPS):
                model(x).sum().item()
                watchdog.settle(k)
                if k % WARM == WARM - 1:
                    watchdog.shallow()
                    if k + 1 in (WARM, STEPS):
                        watchdog.look()

    def test_averages_kept_by_hand(self):
        """An exponential average of parameters, assigned outside of no_grad."""
        w = mg.tensor([1.0, 2.0], requires_grad=True)
        average = mg.tensor([0.0, 0.0])
        optimizer = mg.optim.SGD([w], lr=0.01)
        counts = []
        for k in range(300):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
            average.assign(average * 0.9 + w * 0.1)
            mg.evaluate(average)
            if k in (100, 299):
                counts.append(live_nodes())
        assert counts[1] <= counts[0]
