"""Loop nests as Numba kernels.

Kernels are generic in sizes and strides, which come from the table, and specialised in structure:
rank, which axes are kept, which strides are 0 or 1 along the innermost axis, dtypes, expressions,
and what is retained between passes. There are two shapes of code, by what the innermost axis is:
reduced (`rows.py`) or kept (`lanes.py`).
"""

from __future__ import annotations

from minigrad.backend.cpu.nests.lanes import LaneLoops
from minigrad.backend.cpu.nests.rows import RowLoops
from minigrad.backend.cpu.nests.split import split
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.launch import Program
from minigrad.backend.loopnest import LoopNest


def emit(program: Program, nest: LoopNest) -> None:
    """Append the launches of one loop nest: itself, or what makes its results in parts."""
    if nest.is_empty:
        return
    for part in split(nest, program, num_threads()):
        loops = LaneLoops if part.kept[-1] else RowLoops
        loops(program, part).emit()
