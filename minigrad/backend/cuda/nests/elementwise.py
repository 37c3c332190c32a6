"""Loop nests without reductions: threads are numbered along all axes, the innermost in packs.

There are no more blocks than keep the chip busy; each thread takes several packs in turn, so that
what it reads from the table is read once.
"""

from __future__ import annotations

from math import prod

from minigrad.backend.cuda.nests.writer import CudaWriter
from minigrad.backend.cuda.prelude import THREADS

BLOCKS = 16  # of one multiprocessor, twice what can be at work at the same time


class Elementwise(CudaWriter):
    """Every axis is kept."""

    def emit(self, processors: int) -> None:
        """Append the launch on a chip of so many multiprocessors."""
        self.lanes = self.widest()
        packs = prod(self.nest.shape) // self.lanes
        kind = self.index_type
        self.word(packs, "packs")
        self.divisors(self.kept, self.lanes)
        self.declare()
        start, step = f"({kind})blockIdx.x * {THREADS}", f"({kind})gridDim.x * {THREADS}"
        with self.block(f"for ({kind} flat = {start} + threadIdx.x; flat < packs; flat += {step})"):
            self.decode(self.kept, "flat", self.lanes)
            self.work(0, set())
        self.launch(min(-(-packs // THREADS), BLOCKS * processors), THREADS)
