"""Which inner values a kernel of several passes keeps for its later passes.

A pass computes what it needs from the nest's arrays, again if an earlier pass did. Where that costs
more, a value is retained: the first pass that has it writes it to scratch memory, one slice (all
reduced points of one kept point) for each task, and later passes read it there.

[Note: cost of a pass] In cycles for one vector of elements, on one core; only their order of size
matters. An array whose slice stays in the second cache from pass to pass is near, else it is far. A
slice that is no larger than the cache may still be far: a channel of an NCHW batch whose C * H * W
is a large power of two falls into a few of the cache's sets, and throws itself out. That is the
usual case of a BatchNorm, and retaining x and the cotangent, as dense slices, halves its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod

from minigrad.backend.cpu.machine import LINE, Cache
from minigrad.backend.loopnest import LEAVES, Access, LoopNest

NEAR, FAR, WRITE = 1.0, 4.0, 2.0
ARITHMETIC, DIVISION, FUNCTION = 0.5, 5.0, 15.0
_DIVISIONS = frozenset({"div", "floor_divide", "sqrt", "rsqrt"})
_FUNCTIONS = frozenset({"exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "erfc", "pow"})


def operation_cost(name: str) -> float:
    """Cycles that an elementwise op takes for one vector. See [Note: cost of a pass]."""
    return FUNCTION if name in _FUNCTIONS else DIVISION if name in _DIVISIONS else ARITHMETIC


def retained(nest: LoopNest, varies: Sequence[frozenset[int]], cache: Cache) -> list[int]:
    """The expressions worth retaining in a nest whose innermost axis is reduced.

    Args:
        varies: the axes along which each expression changes.
        cache: what the slices of all retained values must fit into half of.
    """
    reduced = [a for a, kept in enumerate(nest.kept) if not kept]
    points = prod(nest.shape[a] for a in reduced)
    if nest.passes == 1 or not points:
        return []
    inner = {k for k, axes in enumerate(varies) if reduced[-1] in axes}
    far = far_accesses(nest, cache)

    def cost(k: int) -> float:
        e = nest.expressions[k]
        if e[0] == "load":
            return FAR if e[1] in far else NEAR
        return 0.0 if e[0] in LEAVES else operation_cost(e[0])

    passes = [_Pass(nest, level, inner, cost) for level in range(nest.passes)]
    chosen: dict[int, int] = {}  # expression -> the pass that writes it
    space = cache.nbytes // 2
    while True:
        best, saved = -1, 0.0
        for k, first in _candidates(passes, chosen).items():
            if nest.types[k].itemsize * points > space:
                continue
            gain = _total(passes, chosen) - _total(passes, {**chosen, k: first}) - WRITE
            if gain > saved:
                best, saved = k, gain
        if best < 0:
            read = set().union(*(p.needs(chosen)[1] for p in passes))
            return [k for k in chosen if k in read]
        chosen[best] = _candidates(passes, chosen)[best]
        space -= nest.types[best].itemsize * points


def far_accesses(nest: LoopNest, cache: Cache) -> set[Access]:
    """The accesses whose slice does not stay in the cache from one pass to the next."""
    slices = [_Slice(nest, access) for access in nest.accesses()]
    crowded = sum(s.lines for s in slices) * LINE > cache.nbytes
    return {s.access for s in slices if crowded or s.lines > s.capacity(cache)}


class _Pass:
    """What one pass evaluates at every reduced point."""

    def __init__(self, nest: LoopNest, level: int, inner: set[int], cost: Callable[[int], float]):
        self.nest, self.level, self.inner, self.cost_of = nest, level, inner, cost
        self.roots = nest.roots(level)

    def needs(self, chosen: dict[int, int]) -> tuple[set[int], set[int]]:
        """The expressions it computes, and those it reads from scratch."""
        computed: set[int] = set()
        read: set[int] = set()
        stack = list(self.roots)
        while stack:
            k = stack.pop()
            if k in computed or k in read or k not in self.inner:
                continue
            if chosen.get(k, self.level) < self.level:
                read.add(k)
                continue
            computed.add(k)
            e = self.nest.expressions[k]
            if e[0] not in LEAVES:
                stack.extend(e[2:])
        return computed, read

    def cost(self, chosen: dict[int, int]) -> float:
        computed, read = self.needs(chosen)
        return sum(map(self.cost_of, computed)) + NEAR * len(read)


def _total(passes: list[_Pass], chosen: dict[int, int]) -> float:
    return sum(p.cost(chosen) for p in passes)


def _candidates(passes: list[_Pass], chosen: dict[int, int]) -> dict[int, int]:
    """What several passes compute now -> the first of them."""
    first: dict[int, int] = {}
    again: dict[int, int] = {}
    for p in passes:
        for k in p.needs(chosen)[0]:
            if k in first and k not in chosen:
                again[k] = first[k]
            first.setdefault(k, p.level)
    return again


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
