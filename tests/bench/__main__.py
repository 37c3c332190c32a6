"""Prints ratios of PyTorch's time to ours, measured in one run: `python -m tests.bench [WORD ...]`.

Words select rows by what their names contain. PyTorch runs eager with as many threads as we do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import layers
import minigrad as mg
from minigrad.backend.cpu.driver import num_threads
from tests.bench.timing import HEADER, Ratio, paired


def from_torch(t: torch.Tensor, requires_grad: bool = False) -> mg.Tensor:
    """A copy in our own memory."""
    return mg.tensor(t.detach(), requires_grad=requires_grad)


def batch_norm_relu(shape: tuple[int, ...], together: bool = True) -> Callable[[], Ratio]:
    """Training forward and backward with a given cotangent: input and parameter gradients.

    `together`: in one captured plan. Else the forward is computed before the backward is built,
    as where the cotangent depends on the output, and nothing is captured.
    """

    def run() -> Ratio:
        x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
        theirs = torch.nn.BatchNorm2d(shape[1])
        ours = layers.BatchNorm2d(shape[1])
        mine, cotangent = from_torch(x, True), from_torch(g)

        @mg.compile
        def forward_backward(x: mg.Tensor, g: mg.Tensor) -> list[mg.Tensor]:
            y = mg.nn.relu(ours(x))
            return [y, *mg.gradients([y], [x, ours.weight, ours.bias], [g])]

        def one_after_the_other() -> None:
            y = mg.nn.relu(ours(mine))
            mg.evaluate(y)
            mg.evaluate(*mg.gradients([y], [mine, ours.weight, ours.bias], [cotangent]))

        def their_step() -> None:
            x.grad = None
            theirs.zero_grad()
            torch.relu(theirs(x)).backward(g)

        size = "x".join(map(str, shape))
        if not together:
            return paired(f"BN+ReLU forward, then backward {size}", one_after_the_other, their_step)
        name = f"BN+ReLU forward+backward {size}"
        return paired(name, lambda: forward_backward(mine, cotangent), their_step)

    return run


def their_lenet(norm: bool) -> torch.nn.Module:
    """LeNet-5 as `layers.models.LeNet5` has it."""
    nn = torch.nn

    def block(layer: torch.nn.Module, normalization: torch.nn.Module) -> list[torch.nn.Module]:
        return [layer, *([normalization] if norm else []), nn.ReLU()]

    return nn.Sequential(
        *block(nn.Conv2d(3, 6, 5, bias=not norm), nn.BatchNorm2d(6)),
        nn.MaxPool2d(2),
        *block(nn.Conv2d(6, 16, 5, bias=not norm), nn.BatchNorm2d(16)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *block(nn.Linear(400, 120, bias=not norm), nn.BatchNorm1d(120)),
        *block(nn.Linear(120, 84, bias=not norm), nn.BatchNorm1d(84)),
        nn.Linear(84, 10),
    )


def lenet(norm: bool, captured: bool = True) -> Callable[[], Ratio]:
    """One SGD step at batch 128."""

    def run() -> Ratio:
        x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
        settings = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        theirs = their_lenet(norm)
        their_optimizer = torch.optim.SGD(theirs.parameters(), **settings)
        ours = layers.models.LeNet5(norm=layers.BatchNorm2d if norm else None)
        optimizer = mg.optim.SGD(ours.parameters(), **settings)
        mine, labels = from_torch(x), from_torch(y)

        def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
            optimizer.zero_grad()
            loss = mg.nn.cross_entropy(ours(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def their_step() -> None:
            their_optimizer.zero_grad()
            F.cross_entropy(theirs(x), y).backward()
            their_optimizer.step()

        run_step = mg.compile(step) if captured else step
        name = f"LeNet-5{'+BN' if norm else ''} step, batch 128"
        name += ", compiled" if captured else ", not compiled"
        return paired(name, lambda: run_step(mine, labels), their_step)

    return run


def convolution(ci: int, co: int, side: int, k: int, padding: int) -> Callable[[], Ratio]:
    """Forward and both backwards of one convolution, batch 64."""

    def run() -> Ratio:
        x = torch.randn(64, ci, side, side, requires_grad=True)
        w = (torch.randn(co, ci, k, k) / (ci * k * k) ** 0.5).requires_grad_()
        g = torch.randn_like(F.conv2d(x, w, padding=padding))
        mine, weight, cotangent = from_torch(x, True), from_torch(w, True), from_torch(g)

        @mg.compile
        def all_three(x: mg.Tensor, w: mg.Tensor, g: mg.Tensor) -> list[mg.Tensor]:
            y = mg.nn.conv2d(x, w, padding=padding)
            return [y, *mg.gradients([y], [x, w], [g])]

        def theirs() -> None:
            x.grad = w.grad = None
            F.conv2d(x, w, padding=padding).backward(g)

        name = f"conv {ci}-{co}@{side} k{k} p{padding}, forward+backward"
        return paired(name, lambda: all_three(mine, weight, cotangent), theirs)

    return run


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
    """Seconds from import to the end of the first LeNet-5+BN step, cold and warm."""
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
            print(f"{name:44} {float(run.stdout):9.2f} s   (process {total:.2f} s)", flush=True)


ROWS: dict[str, Callable[[], Ratio]] = {
    "bn 128x6x28x28": batch_norm_relu((128, 6, 28, 28)),
    "bn 128x64x16x16": batch_norm_relu((128, 64, 16, 16)),
    "bn 128x64x32x32": batch_norm_relu((128, 64, 32, 32)),
    "bn apart 128x6x28x28": batch_norm_relu((128, 6, 28, 28), together=False),
    "bn apart 128x64x16x16": batch_norm_relu((128, 64, 16, 16), together=False),
    "bn apart 128x64x32x32": batch_norm_relu((128, 64, 32, 32), together=False),
    "lenet plain": lenet(norm=False),
    "lenet bn": lenet(norm=True),
    "lenet bn lazy": lenet(norm=True, captured=False),
    "conv 3-6": convolution(3, 6, 32, 5, 0),
    "conv 6-16": convolution(6, 16, 14, 5, 0),
    "conv 64-64": convolution(64, 64, 32, 3, 1),
    "conv 128-128": convolution(128, 128, 16, 3, 1),
}


def main(words: list[str]) -> None:
    """Measure the rows that match every word."""
    torch.set_num_threads(num_threads())
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, {num_threads()} threads\n{HEADER}")
    for key, run in ROWS.items():
        if all(word in key for word in words):
            print(run(), flush=True)
    if not words or "start" in words:
        start_times()


if __name__ == "__main__":
    main(sys.argv[1:])
