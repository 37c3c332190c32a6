"""Loop nests without reductions: a thread for each pack of elements."""

from __future__ import annotations

from math import prod

from minigrad.backend.cuda.nest_emitter import NestEmitter
from minigrad.backend.cuda.prelude import THREADS


class Elementwise(NestEmitter):
    """Every axis is kept; threads are numbered along all of them, the innermost in packs."""

    def emit(self) -> None:
        """Append the launch."""
        self.lanes = self.widest()
        axes = list(range(self.rank))
        packs = prod(self.nest.shape) // self.lanes
        kind = self.index
        self.word(packs, "packs")
        self.divisors(axes, self.lanes)
        self.line(f"const {kind} flat = ({kind})blockIdx.x * {THREADS} + threadIdx.x;")
        self.line("if (flat >= packs) return;")
        self.declare()
        self.decode(axes, "flat", self.lanes)
        self.work(0, set(), axes)
        self.launch(-(-packs // THREADS), THREADS)
