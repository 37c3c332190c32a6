"""Nests whose innermost axis is kept, or that reduce nothing: lanes run along that axis.

A block of it is worked on at a time. Each reduction has accumulators over the block in scratch
memory: float32 sums are collected in float32 over some rows, then added to float64 ones.
"""

from __future__ import annotations

from math import prod

from minigrad.backend.cpu.expressions import cast
from minigrad.backend.cpu.nests.writer import NestWriter, accumulated, initial, wide
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.launch import Pointer, Program
from minigrad.backend.loopnest import LEAST_RUN, LEAVES, LoopNest, Reduction
from minigrad.dtype import DType

LANE_BLOCK = 8192  # elements of the innermost axis that one iteration handles
# Rows that are summed in float32 before they are added up in float64: as many as a lane of a row in
# row_loops.py adds up. Updating a float64 sum for each element takes three times as long.
ROWS = 64


class LaneLoops(NestWriter):
    """See the module's docstring."""

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        length = nest.shape[self.lane]
        self.rows = prod(nest.shape[a] for a in self.kept if a != self.lane)
        self.block = min(length, LANE_BLOCK)
        if self.rows < num_threads():  # leave something for every thread
            self.block = min(self.block, max(-(-length // num_threads()), LEAST_RUN))
        self.blocks = -(-length // self.block)
        self.outer = self.rows * self.blocks
        self.arrays: dict[object, int] = {}  # accumulator or lane value -> scratch array number

    def body(self) -> None:
        """One iteration for each block of the innermost axis, in it the passes."""
        out, nest = self.out, self.nest
        out.word(self.block, "block")
        out.word(self.blocks, "blocks")
        if nest.reductions:
            kept_size = self.rows * nest.shape[self.lane]
            out.word(kept_size, "kept_size")
            scratch = self.program.scratch_slot(8 * kept_size * self._count_arrays())
            out.word(Pointer(scratch), "scratch")
        out.loop("for flat in range(begin, end):")
        out.line("rest = flat // blocks")
        out.line("start = (flat % blocks) * block")
        out.line(f"stop = min(start + block, n{self.lane})")
        if nest.reductions:
            out.line(f"origin = scratch + 8 * rest * n{self.lane}")
        axes = [a for a in self.kept if a != self.lane]
        self.decode(axes, "rest")
        for access, j in self.accesses.items():
            self.address(f"a{j}", j, access, axes, f"p{j}")
        base = {j: f"a{j}" for j in self.accesses.values()}
        done: set[int] = set()
        for level in range(nest.passes):
            cone = nest.cone(nest.roots(level))
            for k in cone:
                if k not in done and not self.varies[k] - set(axes):
                    self.assign(k, base)
                    done.add(k)
            if nest.reductions:
                self._lane_values(cone, done, base)
            # Arguments of values held in scratch are not needed again.
            held = nest.cone(nest.roots(level), lambda k: ("value", k) in self.arrays)
            self._pass(level, [k for k in held if k not in done], base)

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
        self.out.line(f"write_{dtype.name}_{scope}({address}, i, {value})")

    def _count_arrays(self) -> int:
        """Upper bound: two accumulators a reduction, one value for each lane-only expression."""
        lane_only = [k for k in range(len(self.nest.expressions)) if self._is_lane_value(k)]
        return 2 * len(self.nest.reductions) + len(lane_only)

    def _is_lane_value(self, k: int) -> bool:
        """Varies along the lanes but not along the reduction: worth computing once a block."""
        simple = self.nest.expressions[k][0] in LEAVES
        axes = self.varies[k]
        return not simple and self.lane in axes and not axes & set(self.reduced)

    def _lane_values(self, cone: list[int], done: set[int], base: dict[int, str]) -> None:
        """Compute the lane-only expressions of a pass into scratch arrays."""
        fresh = [k for k in cone if self._is_lane_value(k) and ("value", k) not in self.arrays]
        if not fresh:
            return
        needed = [
            k for k in self.nest.cone(fresh)
            if k not in done and not (self.varies[k] & set(self.reduced))
        ]  # fmt: skip
        depth = self.out.depth
        self.out.loop("for i in range(start, stop):")
        for k in needed:
            if k in fresh or not self._recall(k):
                self.assign(k, base)
        for k in fresh:
            self._write(("value", k), self.nest.types[k], f"e{k}")
        self.out.depth = depth

    def _recall(self, k: int) -> bool:
        """Read a value that a scratch array holds into e{k}; False when none does."""
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "reduction":
            total = self._read(("sum", e[1]), wide(self.nest.reductions[e[1]]))
            self.out.line(f"e{k} = {cast(dtype, total)}")
            return True
        if ("value", k) in self.arrays:
            self.out.line(f"e{k} = {self._read(('value', k), dtype)}")
            return True
        return False

    # --- passes ----------------------------------------------------------------------------------

    def _pass(self, level: int, inner: list[int], base: dict[int, str]) -> None:
        """Run over the reduced points, computing `inner` at each for a block of lanes."""
        out, nest = self.out, self.nest
        reductions = [(q, r) for q, r in enumerate(nest.reductions) if r.level == level]
        by_parts = [(q, r) for q, r in reductions if wide(r) != r.dtype]
        depth = out.depth
        if reductions:
            out.loop("for i in range(start, stop):")
            for q, r in reductions:
                self._write(("sum", q), wide(r), initial(r.kind, wide(r)))
            for q, r in by_parts:
                self._write(("part", q), r.dtype, initial(r.kind, r.dtype))
            out.depth = depth
        if by_parts:
            out.line("rows = 0")
        here = dict(base)
        used = self.used_in(level, inner)
        pending = list(inner)
        for axis in self.reduced:
            out.loop(f"for i{axis} in range(n{axis}):")
            self.move(axis, used, here)
            pending = self.settle(axis, pending, here)
        inside = out.depth
        out.loop("for i in range(start, stop):")
        for k in pending:
            if not self._recall(k):
                self.assign(k, here)
        for q, r in reductions:
            key = ("part" if (q, r) in by_parts else "sum", q)
            total = accumulated(r.kind, r.dtype, self._read(key, r.dtype), f"e{r.expression}")
            self._write(key, r.dtype, total)
        self.store(level, here)
        if by_parts:
            out.depth = inside
            out.line("rows += 1")
            out.loop(f"if rows == {ROWS}:")
            out.line("rows = 0")
            self._collect(by_parts)
        out.depth = depth
        if by_parts:
            self._collect(by_parts)
        if reductions:
            out.loop("for i in range(start, stop):")
            for q, r in reductions:
                j = self.accesses[r.access]
                total = cast(r.dtype, self._read(("sum", q), wide(r)))
                at, scope = self.lane_index(r.access, j), self.scope(r.access)
                out.line(f"write_{r.dtype.name}_{scope}({base[j]}, {at}, {total})")
            out.depth = depth

    def _collect(self, by_parts: list[tuple[int, Reduction]]) -> None:
        """Add the sums over some rows to the totals, and clear them."""
        depth = self.out.depth
        self.out.loop("for i in range(start, stop):")
        for q, r in by_parts:
            total, part = self._read(("sum", q), wide(r)), self._read(("part", q), r.dtype)
            self._write(("sum", q), wide(r), accumulated(r.kind, wide(r), total, part))
            self._write(("part", q), r.dtype, initial(r.kind, r.dtype))
        self.out.depth = depth
