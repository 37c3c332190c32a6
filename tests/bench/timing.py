"""Timing two libraries in one process without either disturbing the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log

import torch

import minigrad as mg

# Both libraries' worker threads spin for a while after their last parallel region.
SETTLE = 0.03  # seconds


@dataclass(frozen=True)
class Ratio:
    """Milliseconds of ours and theirs, and the median and spread of theirs / ours.

    `floor` is the median of ours / the time of copying as many bytes as the work must move.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    floor: float | None = None

    def __str__(self) -> str:
        row = (
            f"{self.name:52} {self.ours:9.3f} {self.theirs:9.3f} {self.ratio:7.2f}x"
            f"   {self.low:.2f} .. {self.high:.2f}"
        )
        return row if self.floor is None else f"{row}   {self.floor:.2f} x the copy"


HEADER = f"{'':52} {'minigrad':>9} {'PyTorch':>9} {'ratio':>8}   quartiles   (ms, medians)"


def median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def geometric_mean(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def paired(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int = 11,
    copy: Callable[[], object] | None = None,
) -> Ratio:
    """Alternate rounds of the two; each round's ratio compares neighbours in time.

    `copy` moves the bytes that ours has to move: with it, each round is compared with that, too.
    """
    sides = [ours, theirs, *([copy] if copy else [])]
    for _ in range(3):
        for side in sides:
            side()
    started = time.perf_counter()
    ours()
    mg.synchronize()
    repeats = max(2, min(50, int(0.03 / max(time.perf_counter() - started, 1e-6))))
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, measured in zip(sides, times, strict=True):
            measured.append(_round(side, repeats))
    ratios = sorted(b / a for a, b in zip(times[0], times[1], strict=True))
    quarter = len(ratios) // 4
    floor = median([a / c for a, c in zip(times[0], times[2], strict=True)]) if copy else None
    return Ratio(
        name, median(times[0]), median(times[1]), median(ratios), ratios[quarter],
        ratios[-1 - quarter], floor,
    )  # fmt: skip


def _round(function: Callable[[], object], repeats: int) -> float:
    time.sleep(SETTLE)
    function()
    if torch.cuda.is_initialized():
        return 1e3 * _on_the_gpu(function, repeats)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)


def _on_the_gpu(function: Callable[[], object], repeats: int) -> float:
    """Seconds of one call of many: launches run ahead of the GPU, as in a training loop."""

    def finish() -> None:
        mg.synchronize()
        torch.cuda.synchronize()

    finish()
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    finish()
    return (time.perf_counter() - started) / repeats
