"""Reductions in parts: few results from many elements, which one part of the device cannot fill.

A nest whose kept points do not occupy the device reduces parts of its elements apart. Their results
lie in scratch memory, a row for each part, and a second nest reduces the rows. This is for nests of
one pass; passes that depend on each other become nests of their own (`compiler/fuse.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from minigrad.backend.launch import Program, contiguous_strides
from minigrad.backend.loopnest import Access, LoopNest, Reduction, simplified
from minigrad.dtype import DType


def partial_results(
    program: Program, nest: LoopNest, rows: int, dtypes: Sequence[DType]
) -> list[Access]:
    """Scratch memory for each reduction's results, by row and then along the kept axes."""
    size = prod(nest.kept_shape)
    strides = (size, *contiguous_strides(nest.kept_shape))
    return [
        Access(program.scratch_slot(rows * size * dtype.itemsize), dtype, strides, 0)
        for dtype in dtypes
    ]


def combination(nest: LoopNest, partial: Sequence[Access], rows: int) -> LoopNest:
    """The nest that reduces the rows of partial results to the results of `nest`."""
    kept = [a for a, is_kept in enumerate(nest.kept) if is_kept]

    def result(access: Access) -> Access:
        strides = (0, *(access.strides[a] for a in kept))
        return Access(access.slot, access.dtype, strides, access.offset)

    combined = LoopNest(
        (rows, *nest.kept_shape),
        (False, *(True for _ in kept)),
        [("load", p) for p in partial],
        [p.dtype for p in partial],
        [Reduction(r.kind, k, r.dtype, result(r.access), 0) for k, r in enumerate(nest.reductions)],
    )
    return simplified(combined)
