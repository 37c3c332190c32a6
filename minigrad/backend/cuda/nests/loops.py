"""Loop nests as CUDA kernels.

Kernels are generic in sizes and strides, which come from the table, and specialised in structure:
rank, which axes are kept, which strides are 0 or 1 along the innermost axis, how many elements move
at once, dtypes, expressions. There are four shapes of code:

* elementwise: threads for packs of elements;
* transposed: the same where arrays lie across each other, in tiles;
* rows (the innermost axis is reduced): a team of threads side by side for each kept point;
* columns (it is kept): threads side by side for kept points, a team of rows below each other.

A reduction of few kept points over many others is cut into parts to fill the chip, and a second
kernel combines what the parts give.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from minigrad.backend.cuda.nests.elementwise import Elementwise
from minigrad.backend.cuda.nests.reductions import Columns, Rows
from minigrad.backend.cuda.nests.transposed import Transposed
from minigrad.backend.launch import Operand, Program, contiguous_strides
from minigrad.backend.loopnest import Access, LoopNest, Reduction, Store, reordered, simplified
from minigrad.dtype import DType, float32, float64, int64


def emit(program: Program, nest: LoopNest, processors: int) -> None:
    """Append the launches of one loop nest on a chip of so many multiprocessors."""
    if prod(n for n, kept in zip(nest.shape, nest.kept, strict=True) if kept) == 0:
        return  # nothing to write
    nest = _along_memory(nest)
    if not nest.reductions:
        if not prod(nest.shape):
            return
        transposed = Transposed(program, nest)
        if transposed.tiles:
            transposed.emit()
        else:
            Elementwise(program, nest).emit(processors)
        return
    kernel = (Columns if nest.kept[-1] else Rows)(program, nest, processors)
    if kernel.parts == 1:
        kernel.emit()
        return
    kept = tuple(n for n, is_kept in zip(nest.shape, nest.kept, strict=True) if is_kept)
    partial = [
        Access(program.scratch_slot(kernel.parts * prod(kept) * t.itemsize), t, (), 0)
        for t in (partial_type(r) for r in nest.reductions)
    ]
    kernel.emit(partial)
    emit(program, simplified(_combination(nest, partial, kernel.parts, kept)), processors)


def _along_memory(nest: LoopNest) -> LoopNest:
    """The nest with that axis innermost along which most elements lie side by side in memory.

    Without reductions what is written decides: `transposed` reads in tiles what lies across it.
    """
    accesses = nest.accesses()
    written = {s.access for s in nest.stores} if not nest.reductions else set()
    elements = [0] * len(nest.shape)
    for access in accesses:
        shown = prod(n for n, s in zip(nest.shape, access.strides, strict=True) if s)
        weight = len(accesses) if access in written else 1
        for a, s in enumerate(access.strides):
            elements[a] += shown * weight if s == 1 and nest.shape[a] > 1 else 0
    best = max(reversed(range(len(elements))), key=elements.__getitem__)
    if best == len(elements) - 1:
        return nest
    others = [a for a in range(len(elements)) if a != best]
    return simplified(reordered(nest, (*others, best)))


def dense(program: Program, operand: Operand, processors: int) -> Operand:
    """A row-major copy in scratch memory."""
    slot = program.scratch_slot(operand.size * operand.dtype.itemsize)
    strides = contiguous_strides(operand.shape)
    load = ("load", Access(operand.slot, operand.dtype, operand.strides, operand.offset))
    store = Store(0, Access(slot, operand.dtype, strides, 0), 0)
    kept = (True,) * len(operand.shape)
    nest = LoopNest(operand.shape, kept, [load], [operand.dtype], [], [store])
    emit(program, simplified(nest), processors)
    return replace(operand, slot=slot, strides=strides, offset=0)


def partial_type(r: Reduction) -> DType:
    """What partial results are kept in: sums with more digits than the result."""
    if r.kind == "sum":
        return float64 if r.dtype.is_floating else int64
    return float32 if r.dtype.is_floating and r.dtype.itemsize < 4 else r.dtype


def _combination(
    nest: LoopNest, partial: list[Access], parts: int, kept: tuple[int, ...]
) -> LoopNest:
    """The nest that reduces `parts` rows of partial results."""
    steps = (prod(kept), *contiguous_strides(kept))
    axes = [a for a, is_kept in enumerate(nest.kept) if is_kept]
    expressions, reductions = [], []
    for k, (p, r) in enumerate(zip(partial, nest.reductions, strict=True)):
        expressions.append(("load", Access(p.slot, p.dtype, steps, 0)))
        strides = (0, *(r.access.strides[a] for a in axes))
        access = Access(r.access.slot, r.access.dtype, strides, r.access.offset)
        reductions.append(Reduction(r.kind, k, r.dtype, access, 0))
    types = [p.dtype for p in partial]
    return LoopNest((parts, *kept), (False, *(True for _ in kept)), expressions, types, reductions)
