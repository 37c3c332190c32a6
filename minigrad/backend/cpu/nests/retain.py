"""Which inner values a kernel of several passes keeps for its later passes.

A pass computes what it needs from the nest's arrays, again if an earlier pass did. Where that costs
more, a value is retained: the first pass that has it writes it to scratch memory, one slice (all
reduced points of one kept point) for each task, and later passes read it there.

[Note: cost of a pass] In cycles for one vector of elements, on one core; only their order of size
matters. An array whose slice stays in the second cache from pass to pass is near, else it is far. A
slice that is no larger than the cache may still be far: a channel of an NCHW batch whose C * H * W
is a large power of two falls into a few of the cache's sets, and throws itself out. That is the
usual case of a BatchNorm; x and the cotangent are then retained as dense slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from minigrad.backend.cpu.machine import LINE, Cache
from minigrad.backend.loopnest import LEAVES, Access, LoopNest
from minigrad.backend.recompute import worth_keeping

NEAR, FAR, WRITE = 1.0, 4.0, 2.0
ADDITION = 0.5


def retained(
    nest: LoopNest, varies: Sequence[frozenset[int]], far: set[Access], cache: Cache
) -> list[int]:
    """The expressions worth retaining in a nest whose innermost axis is reduced.

    Args:
        varies: the axes along which each expression changes.
        far: see `far_accesses`.
        cache: what the slices of all retained values must fit into half of.
    """
    lane = len(nest.shape) - 1
    points = prod(n for n, kept in zip(nest.shape, nest.kept, strict=True) if not kept)
    if nest.passes == 1 or not points:
        return []

    def arguments(k: int) -> list[int]:
        e = nest.expressions[k]
        return [] if e[0] in LEAVES else [a for a in e[2:] if lane in varies[a]]

    def cost(k: int) -> float:
        e = nest.expressions[k]
        if e[0] == "load":
            return FAR if e[1] in far else NEAR
        return 0.0 if e[0] in LEAVES else ADDITION * nest.costs[e[0]]

    def fits(kept: list[int]) -> bool:
        return points * sum(nest.types[k].itemsize for k in kept) <= cache.nbytes // 2

    passes = [[k for k in nest.roots(level) if lane in varies[k]] for level in range(nest.passes)]
    return worth_keeping(passes, arguments, cost, lambda k: NEAR, lambda k: WRITE, fits)


def far_accesses(nest: LoopNest, cache: Cache) -> set[Access]:
    """The accesses whose slice does not stay in the cache from one pass to the next."""
    slices = [_Slice(nest, access) for access in nest.accesses()]
    crowded = sum(s.lines for s in slices) * LINE > cache.nbytes
    return {s.access for s in slices if crowded or s.lines > s.capacity(cache)}


class _Slice:
    """What one kept point touches of an array: runs of consecutive bytes at some strides."""

    def __init__(self, nest: LoopNest, access: Access):
        self.access = access
        self.run = access.dtype.itemsize
        self.steps: list[tuple[int, int]] = []  # (extent, stride in bytes), outermost last
        for axis in reversed(range(len(nest.shape))):
            step = abs(access.strides[axis]) * access.dtype.itemsize
            if nest.kept[axis] or step == 0:
                continue
            if step == self.run and not self.steps:
                self.run *= nest.shape[axis]
            else:
                self.steps.append((nest.shape[axis], step))

    @property
    def run_lines(self) -> int:
        return -(-self.run // LINE)

    @property
    def lines(self) -> int:
        """Cache lines of the slice."""
        return prod(n for n, _ in self.steps) * self.run_lines

    def capacity(self, cache: Cache) -> int:
        """How many lines of the slice the cache can hold, given the sets they fall into."""
        period = cache.sets * LINE
        starts = prod(min(n, period // gcd(step, period)) for n, step in self.steps)
        return cache.ways * min(cache.sets, starts * self.run_lines)
