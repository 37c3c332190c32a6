"""The kernels of one GPU by the names the compiler lowers to."""

from __future__ import annotations

from minigrad.backend.cuda import gemm
from minigrad.backend.cuda.loops import emit
from minigrad.backend.launch import Operand, Program
from minigrad.backend.loopnest import LoopNest


class Library:
    """What the compiler lowers to, for a chip of so many multiprocessors."""

    def __init__(self, processors: int):
        self.processors = processors

    def loop_nest(self, program: Program, nest: LoopNest) -> None:
        """A loop nest: see `loops`."""
        emit(program, nest, self.processors)

    def dot(self, program: Program, a: Operand, b: Operand, out: Operand) -> None:
        """A matrix product: see `gemm`."""
        gemm.dot(program, a, b, out, self.processors)
