"""Nests whose innermost axis is kept, or that reduce nothing: lanes run along that axis.

A block of it is worked on at a time. Each reduction has accumulators over the block in scratch
memory: float32 sums are collected in float32 over some rows, then added to float64 ones.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod

from minigrad.backend.cpu.expressions import cast
from minigrad.backend.cpu.nests.writer import NumbaWriter, accumulated, initial, wide
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.launch import Pointer, Program
from minigrad.backend.loopnest import LEAST_RUN, LEAVES, LoopNest, Reduction
from minigrad.dtype import DType

LANE_BLOCK = 8192  # elements of the innermost axis that one iteration handles
# Rows that are summed in float32 before they are added up in float64: as many as a lane of a row in
# rows.py adds up. Updating a float64 sum for each element takes three times as long.
ROWS = 64
LANES = "for i in range(start, stop):"  # the loop over the block


class LaneLoops(NumbaWriter):
    """See the module's docstring."""

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        length = nest.shape[self.lane]
        self.outer_axes = [a for a in self.kept if a != self.lane]
        self.rows = prod(nest.shape[a] for a in self.outer_axes)
        self.block_length = min(length, LANE_BLOCK)
        if self.rows < num_threads():  # leave something for every thread
            run = max(-(-length // num_threads()), LEAST_RUN)
            self.block_length = min(self.block_length, run)
        self.blocks = -(-length // self.block_length)
        self.outer = self.rows * self.blocks
        self.arrays: dict[object, int] = {}  # accumulator or lane value -> scratch array number

    def body(self) -> None:
        """One iteration for each block of the innermost axis, in it the passes."""
        nest = self.nest
        self.word(self.block_length, "block")
        self.word(self.blocks, "blocks")
        if nest.reductions:
            kept_size = self.rows * nest.shape[self.lane]
            self.word(kept_size, "kept_size")
            scratch = self.program.scratch_slot(8 * kept_size * self._count_arrays())
            self.word(Pointer(scratch), "scratch")
        with self.block("for flat in range(begin, end):"):
            self.line("rest = flat // blocks")
            self.line("start = (flat % blocks) * block")
            self.line(f"stop = min(start + block, n{self.lane})")
            if nest.reductions:
                self.line(f"origin = scratch + 8 * rest * n{self.lane}")
            self.decode(self.outer_axes, "rest")
            self.start(self.outer_axes)
            base = dict(self.here)
            known: set[int] = set()
            for level in range(nest.passes):
                self.assign_fixed(level, self.outer_axes, known)
                if nest.reductions:
                    self._lane_values(level, known)
                # Arguments of values held in scratch are not needed again.
                held = nest.cone(nest.roots(level), lambda k: ("value", k) in self.arrays)
                self._pass(level, [k for k in held if k not in known])
                self.here = dict(base)
                self._results(level)

    # --- scratch arrays over the kept points -----------------------------------------------------

    def _array(self, key: object) -> tuple[str, int]:
        """Address and alias scope of a scratch array over the kept points."""
        number = self.arrays.setdefault(key, len(self.arrays))
        return f"origin + 8 * {number} * kept_size", self.scope(("scratch", number))

    def _read(self, key: object, dtype: DType) -> str:
        address, scope = self._array(key)
        return f"reread_{dtype.name}_{scope}({address}, i)"

    def _write(self, key: object, dtype: DType, value: str) -> None:
        address, scope = self._array(key)
        self.line(f"write_{dtype.name}_{scope}({address}, i, {value})")

    def _count_arrays(self) -> int:
        """Upper bound: two accumulators a reduction, one value for each lane-only expression."""
        lane_only = [k for k in range(len(self.nest.expressions)) if self._is_lane_value(k)]
        return 2 * len(self.nest.reductions) + len(lane_only)

    def _is_lane_value(self, k: int) -> bool:
        """Varies along the lanes but not along the reduction: worth computing once a block."""
        simple = self.nest.expressions[k][0] in LEAVES
        axes = self.varies[k]
        return not simple and self.lane in axes and not axes & set(self.reduced)

    def _lane_values(self, level: int, known: set[int]) -> None:
        """Compute the lane-only expressions of a pass into scratch arrays."""
        cone = self.nest.cone(self.nest.roots(level))
        fresh = [k for k in cone if self._is_lane_value(k) and ("value", k) not in self.arrays]
        if not fresh:
            return
        with self.block(LANES):
            for k in self.nest.cone(fresh):
                if k not in known and not self.varies[k] & set(self.reduced):
                    self._have(k, k not in fresh)
            for k in fresh:
                self._write(("value", k), self.nest.types[k], f"e{k}")

    def _have(self, k: int, may_recall: bool = True) -> None:
        """Compute expression k into e{k}, or read it if a scratch array holds it."""
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if may_recall and e[0] == "reduction":
            total = self._read(("sum", e[1]), wide(self.nest.reductions[e[1]]))
            self.define(k, cast(dtype, total))
        elif may_recall and ("value", k) in self.arrays:
            self.define(k, self._read(("value", k), dtype))
        else:
            self.assign(k)

    # --- passes ----------------------------------------------------------------------------------

    def _pass(self, level: int, inner: list[int]) -> None:
        """Run over the reduced points, computing `inner` at each for a block of lanes."""
        reductions = self.nest.reductions_of(level)
        by_parts = [(q, r) for q, r in reductions if wide(r) != r.dtype]
        if reductions:
            with self.block(LANES):
                for q, r in reductions:
                    self._write(("sum", q), wide(r), initial(r.kind, wide(r)))
                for q, r in by_parts:
                    self._write(("part", q), r.dtype, initial(r.kind, r.dtype))
        if by_parts:
            self.line("rows = 0")
        used = self.used_in(level, inner)
        pending = inner
        with ExitStack() as loops:
            for axis in self.reduced:
                loops.enter_context(self.block(f"for i{axis} in range(n{axis}):"))
                self.move(axis, used)
                pending = self.settle(axis, pending)
            with self.block(LANES):
                self._point(level, pending)
            if by_parts:
                self.line("rows += 1")
                with self.block(f"if rows == {ROWS}:"):
                    self.line("rows = 0")
                    self._collect(by_parts)
        if by_parts:
            self._collect(by_parts)

    def _point(self, level: int, pending: list[int]) -> None:
        """One lane of one reduced point: compute, accumulate, store."""
        for k in pending:
            self._have(k)
        for q, r in self.nest.reductions_of(level):
            key = ("part" if wide(r) != r.dtype else "sum", q)
            total = accumulated(r.kind, r.dtype, self._read(key, r.dtype), f"e{r.expression}")
            self._write(key, r.dtype, total)
        self.store(level)

    def _collect(self, by_parts: list[tuple[int, Reduction]]) -> None:
        """Add the sums over some rows to the totals, and clear them."""
        with self.block(LANES):
            for q, r in by_parts:
                total, part = self._read(("sum", q), wide(r)), self._read(("part", q), r.dtype)
                self._write(("sum", q), wide(r), accumulated(r.kind, wide(r), total, part))
                self._write(("part", q), r.dtype, initial(r.kind, r.dtype))

    def _results(self, level: int) -> None:
        """Store the totals of a pass."""
        reductions = self.nest.reductions_of(level)
        if reductions:
            with self.block(LANES):
                for q, r in reductions:
                    self.write(r.access, cast(r.dtype, self._read(("sum", q), wide(r))))
