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
from minigrad.backend.loopnest import LoopNest, Reduction, copying, reordered, simplified
from minigrad.backend.nests.parts import combination, partial_results
from minigrad.dtype import DType, float32, float64, int64


def emit(program: Program, nest: LoopNest, processors: int) -> None:
    """Append the launches of one loop nest on a chip of so many multiprocessors."""
    if nest.is_empty:
        return
    nest = _along_memory(nest)
    if not nest.reductions:
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
    types = [partial_type(r) for r in nest.reductions]
    partial = partial_results(program, nest, kernel.parts, types)
    kernel.emit(partial)
    emit(program, combination(nest, partial, kernel.parts), processors)


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
    copy = replace(operand, slot=slot, strides=strides, offset=0)
    emit(program, copying(operand, copy), processors)
    return copy


def partial_type(r: Reduction) -> DType:
    """What partial results are kept in: sums with more digits than the result."""
    if r.kind == "sum":
        return float64 if r.dtype.is_floating else int64
    return float32 if r.dtype.is_floating and r.dtype.itemsize < 4 else r.dtype
