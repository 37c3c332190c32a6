"""Timing two libraries in one process without either disturbing the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# Both libraries' worker threads spin for a while after their last parallel region.
SETTLE = 0.03  # seconds


@dataclass(frozen=True)
class Ratio:
    """Milliseconds of ours and theirs, and the median and spread of theirs / ours."""

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.name:44} {self.ours:9.3f} {self.theirs:9.3f} {self.ratio:7.2f}x"
            f"   {self.low:.2f} .. {self.high:.2f}"
        )


HEADER = f"{'':44} {'minigrad':>9} {'PyTorch':>9} {'ratio':>8}   quartiles   (ms, medians)"


def median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def paired(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 11
) -> Ratio:
    """Alternate rounds of the two; each round's ratio compares neighbours in time."""
    for _ in range(3):
        ours()
        theirs()
    started = time.perf_counter()
    ours()
    repeats = max(2, min(50, int(0.03 / max(time.perf_counter() - started, 1e-6))))
    mine, other, ratios = [], [], []
    for _ in range(rounds):
        mine.append(_round(ours, repeats))
        other.append(_round(theirs, repeats))
        ratios.append(other[-1] / mine[-1])
    ordered = sorted(ratios)
    quarter = len(ordered) // 4
    return Ratio(
        name, median(mine), median(other), median(ratios), ordered[quarter], ordered[-1 - quarter]
    )


def _round(function: Callable[[], object], repeats: int) -> float:
    time.sleep(SETTLE)
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)
