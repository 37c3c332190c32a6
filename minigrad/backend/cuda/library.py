"""The kernels of one GPU by the names the compiler lowers to."""

from __future__ import annotations

from typing import Any

from minigrad.backend.cuda import conv
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

    def conv2d(
        self, program: Program, x: Operand, w: Operand, out: Operand, **parameters: Any
    ) -> None:
        """A convolution: see `conv`."""
        conv.conv2d(program, x, w, out, **parameters, processors=self.processors)
