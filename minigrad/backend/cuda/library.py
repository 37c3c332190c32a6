"""The kernels of one GPU by the names the compiler lowers to."""

from __future__ import annotations

from typing import Any

from minigrad.backend.cuda import gather
from minigrad.backend.cuda.contract import conv, gemm
from minigrad.backend.cuda.nests.loops import emit
from minigrad.backend.cuda.random_bits import random_bits
from minigrad.backend.cuda.scatter_add import scatter_add
from minigrad.backend.cuda.window import window
from minigrad.backend.launch import Operand, Program
from minigrad.backend.loopnest import LoopNest


class Library:
    """What the compiler lowers to, for a chip of so many multiprocessors."""

    random_bits = staticmethod(random_bits)
    take = staticmethod(gather.take)
    window_max = staticmethod(window.window_max)
    window_scatter = staticmethod(window.window_scatter)
    window_select = staticmethod(window.window_select)
    window_sum = staticmethod(window.window_sum)

    def __init__(self, processors: int):
        self.processors = processors

    def loop_nest(self, program: Program, nest: LoopNest) -> None:
        """A loop nest: see `nests.loops`."""
        emit(program, nest, self.processors)

    def conv2d(
        self, program: Program, x: Operand, w: Operand, out: Operand, **parameters: Any
    ) -> None:
        """A convolution: see `conv`."""
        conv.conv2d(program, x, w, out, **parameters, processors=self.processors)

    def dot(self, program: Program, a: Operand, b: Operand, out: Operand) -> None:
        """A matrix product: see `gemm`."""
        gemm.dot(program, a, b, out, self.processors)

    def argmax(self, program: Program, x: Operand, out: Operand) -> None:
        """The place of a maximum: see `gather`."""
        gather.argmax(program, x, out, self.processors)

    def scatter_add(
        self, program: Program, indices: Operand, updates: Operand, out: Operand
    ) -> None:
        """Sums over equal indices: see `scatter_add`."""
        scatter_add(program, indices, updates, out, self.processors)
