"""Two-level reductions: few results from many elements, each core reducing a part.

A nest's cores share its kept points. If there are too few of those, a reduced axis is cut into as
many parts as there are cores: one nest reduces each part, another the partial results. This is for
nests of one pass; passes that depend on each other become nests of their own (`fuse.py`).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from minigrad.backend.launch import Program, contiguous_strides
from minigrad.backend.loopnest import (
    Access,
    Affine,
    LoopNest,
    Reduction,
    Store,
    independent_points,
    simplified,
)

# Below this many points one core is as fast.
SMALL = 1 << 15
# Of an innermost kept axis a core should have a run that is long in memory: cores that take turns
# on short pieces of a row fetch each other's lines (column sums of 2048 x 768: 2.2 ms against 0.4).
LONG_RUN = 4096


def split(nest: LoopNest, program: Program, threads: int) -> list[LoopNest]:
    """The nests to run in place of `nest`, in order: itself, or parts and their combination."""
    points = prod(nest.shape)
    enough = independent_points(nest.shape, nest.kept, LONG_RUN) >= threads
    if not nest.reductions or nest.passes > 1 or points < SMALL or enough:
        return [nest]
    reduced = [a for a, kept in enumerate(nest.kept) if not kept]
    axis = max(reduced, key=lambda a: nest.shape[a])
    extent = nest.shape[axis]
    parts = min(threads, extent)
    length = extent // parts
    rest = extent - parts * length
    rows = parts + (rest > 0)
    kept = [a for a, is_kept in enumerate(nest.kept) if is_kept]
    kept_shape = tuple(nest.shape[a] for a in kept)
    strides = dict(zip(kept, contiguous_strides(kept_shape), strict=True))
    size = prod(kept_shape)
    partial = [
        Access(program.scratch_slot(rows * size * r.dtype.itemsize), r.dtype, (), 0)
        for r in nest.reductions
    ]
    per_point = tuple(strides.get(a, 0) for a in range(len(nest.shape)))

    def piece(first: int, length: int, count: int, row: int) -> LoopNest:
        """`count` runs of `length` along the axis from `first` on, to the rows from `row` on."""
        cut = _cut(nest, axis, first, length, count)
        results = [
            replace(r, access=replace(p, strides=(size, *per_point), offset=row * size))
            for r, p in zip(cut.reductions, partial, strict=True)
        ]
        return simplified(replace(cut, reductions=results))

    combined = LoopNest(
        (rows, *kept_shape),
        (False, *(True for _ in kept)),
        [("load", replace(p, strides=(size, *contiguous_strides(kept_shape)))) for p in partial],
        [r.dtype for r in nest.reductions],
        [
            Reduction(r.kind, k, r.dtype, _along(r.access, kept), 0)
            for k, r in enumerate(nest.reductions)
        ],
    )
    nests = [piece(0, length, parts, 0)]
    if rest:
        nests.append(piece(parts * length, rest, 1, parts))
    return [*nests, simplified(combined)]


def _along(access: Access, kept: list[int]) -> Access:
    """The access over the rows of partial results, then the kept axes."""
    return replace(access, strides=(0, *(access.strides[a] for a in kept)))


def _cut(nest: LoopNest, axis: int, first: int, length: int, count: int) -> LoopNest:
    """The nest over `count` runs of `length` points of an axis, the runs as a first, kept axis."""

    def access(a: Access) -> Access:
        stride = a.strides[axis]
        return replace(a, strides=(stride * length, *a.strides), offset=a.offset + stride * first)

    def affine(i: Affine) -> Affine:
        c = i.coefficients[axis]
        return Affine(i.offset + c * first, (c * length, *i.coefficients))

    def expression(e: tuple) -> tuple:
        if e[0] == "load":
            return ("load", access(e[1]))
        return ("index", affine(e[1]), e[2]) if e[0] == "index" else e

    shape = (*nest.shape[:axis], length, *nest.shape[axis + 1 :])
    return LoopNest(
        (count, *shape),
        (True, *nest.kept),
        [expression(e) for e in nest.expressions],
        nest.types,
        nest.reductions,
        [Store(s.expression, access(s.access), s.level) for s in nest.stores],
    )
