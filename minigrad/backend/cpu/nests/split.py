"""Two-level reductions: few results from many elements, each core reducing a part.

A nest's cores share its kept points. If there are too few of those, a reduced axis is cut into as
many parts as there are cores: see `backend/nests/parts.py`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from minigrad.backend.launch import Program
from minigrad.backend.loopnest import LoopNest, independent_points, relaid, simplified
from minigrad.backend.nests.parts import combination, partial_results

# Below this many points one core is as fast.
SMALL = 1 << 15
# Of an innermost kept axis a core should have a run that is long in memory: cores that take turns
# on short pieces of a row fetch each other's lines (column sums of 2048 x 768: 2.2 ms against 0.4).
LONG_RUN = 4096


def split(nest: LoopNest, program: Program, threads: int) -> list[LoopNest]:
    """The nests to run in place of `nest`, in order: itself, or parts and their combination."""
    enough = independent_points(nest.shape, nest.kept, LONG_RUN) >= threads
    if not nest.reductions or nest.passes > 1 or prod(nest.shape) < SMALL or enough:
        return [nest]
    reduced = [a for a, kept in enumerate(nest.kept) if not kept]
    axis = max(reduced, key=lambda a: nest.shape[a])
    parts = min(threads, nest.shape[axis])
    length, rest = divmod(nest.shape[axis], parts)
    rows = parts + (rest > 0)
    partial = partial_results(program, nest, rows, [r.dtype for r in nest.reductions])

    def part(first: int, length: int, count: int, row: int) -> LoopNest:
        """`count` runs of `length` along the axis from `first` on, to the rows from `row` on."""
        cut = _cut(nest, axis, first, length, count)
        results = []
        for r, p in zip(cut.reductions, partial, strict=True):
            steps = iter(p.strides)
            strides = tuple(next(steps) if kept else 0 for kept in cut.kept)
            access = replace(p, strides=strides, offset=row * p.strides[0])
            results.append(replace(r, access=access))
        return simplified(replace(cut, reductions=results))

    nests = [part(0, length, parts, 0)]
    if rest:
        nests.append(part(parts * length, rest, 1, parts))
    return [*nests, combination(nest, partial, rows)]


def _cut(nest: LoopNest, axis: int, first: int, length: int, count: int) -> LoopNest:
    """The nest over `count` runs of `length` points of an axis, the runs as a first, kept axis."""
    shape = (count, *nest.shape[:axis], length, *nest.shape[axis + 1 :])
    kept = (True, *nest.kept)
    return relaid(nest, shape, kept, lambda v: (v[axis] * length, *v), lambda v: v[axis] * first)
