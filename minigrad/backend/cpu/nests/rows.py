"""Nests whose innermost axis is reduced: lanes run along the reduction.

Each kept point is one iteration. A row of float32 is summed in blocks of float32 lanes, and the
blocks in float64. Besides the names that `NumbaWriter` lists, a kernel has t0 and u0, the totals of
reduction 0 over all blocks and over this one; k0, the address of the slice that retains expression
0; and h0, that of its row.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod

from minigrad.backend.cpu.expressions import cast
from minigrad.backend.cpu.machine import second_cache
from minigrad.backend.cpu.nests.retain import far_accesses, retained
from minigrad.backend.cpu.nests.writer import NumbaWriter, accumulated, initial, wide
from minigrad.backend.launch import Pointer, Program
from minigrad.backend.loopnest import Access, LoopNest, Reduction

BLOCK = 2048  # elements summed in float32 before they are added up in float64
# Bytes: rows longer than LONG_ROW keep the hardware's prefetcher busy; for shorter ones, kernels
# ask for what lies AHEAD.
LONG_ROW, AHEAD = 2048, 2048


class RowLoops(NumbaWriter):
    """See the module's docstring."""

    row_points = 16

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        self.outer = prod(nest.shape[a] for a in self.kept)
        self.far = far_accesses(nest, second_cache())
        self.retained = retained(nest, self.varies, self.far, second_cache())
        self.written: set[int] = set()  # the retained values that an earlier pass has written

    def body(self) -> None:
        """One iteration for each kept point, in it the passes."""
        nest = self.nest
        if self.retained:
            self._declare_scratch()
        with self.block("for flat in range(begin, end):"):
            if self.kept:
                self.line("rest = flat")
                self.decode(self.kept, "rest")
            self.start(self.kept)
            base = dict(self.here)
            known: set[int] = set()
            for level in range(nest.passes):
                cone = nest.cone(nest.roots(level), lambda k: k in self.written)
                self.assign_fixed(level, self.kept, known)
                self._pass(level, [k for k in cone if k not in known])
                self.written.update(k for k in self.retained if k in cone)
                self.here = dict(base)
                for number, r in nest.reductions_of(level):
                    known |= self._result(number, r)

    def _declare_scratch(self) -> None:
        """A slice of scratch for each retained value and task. See retain.py."""
        points = prod(self.nest.shape[a] for a in self.reduced)
        sizes = [-(-self.nest.types[k].itemsize * points // 64) * 64 for k in self.retained]
        slot = self.program.scratch_slot(self.tasks * sum(sizes))
        self.word(Pointer(slot), "scratch")
        self.word(sum(sizes), "task_bytes")
        self.word(self.outer, "outer")
        self.word(self.tasks, "tasks")
        self.line("task = (begin * tasks + outer - 1) // outer")  # begin is outer * task // tasks
        for position, k in enumerate(self.retained):
            self.word(sum(sizes[:position]), f"k{k}")
            self.line(f"k{k} += scratch + task * task_bytes")

    def _pass(self, level: int, inner: list[int]) -> None:
        """Run over the reduced points, computing `inner` at each."""
        reductions = self.nest.reductions_of(level)
        for q, r in reductions:
            self.line(f"t{q} = {initial(r.kind, wide(r))}")
        slices = {k: f"k{k}" for k in inner if k in self.retained}
        with ExitStack() as loops:
            length, pending = self._enter_rows(loops, level, inner, slices)
            if not reductions:
                loops.enter_context(self.block(f"for i in range({length}):"))
                self._point(level, pending, slices)
                return
            self.line(f"last = {length}")
            loops.enter_context(self.block(f"for start in range(0, last, {BLOCK}):"))
            self.line(f"stop = min(start + {BLOCK}, last)")
            for q, r in reductions:
                self.line(f"u{q} = {initial(r.kind, r.dtype)}")
            with self.block("for i in range(start, stop):"):
                self._point(level, pending, slices)
            for q, r in reductions:
                self.line(f"t{q} = {accumulated(r.kind, wide(r), f't{q}', f'u{q}')}")

    def _enter_rows(
        self, loops: ExitStack, level: int, inner: list[int], slices: dict[int, str]
    ) -> tuple[str, list[int]]:
        """Open the loops over rows, which may change `slices` to the addresses of a row.

        Gives how long a row is, and what is left to compute at each of its points.
        """
        nest, outer_axes = self.nest, self.reduced[:-1]
        used = self.used_in(level, [k for k in inner if k not in self.written])
        length = f"n{self.lane}"
        if not used and all(nest.expressions[k][0] != "index" for k in inner):
            # It reads and writes dense slices alone: one long row.
            return " * ".join([length, *(f"n{axis}" for axis in outer_axes)]), inner
        pending = inner
        for axis in outer_axes:
            loops.enter_context(self.block(f"for i{axis} in range(n{axis}):"))
            self.move(axis, used)
            pending = self.settle(axis, pending)
        self._prefetch(used)
        if slices and outer_axes:
            self.line(f"row = {self._row()}")
            for k in slices:
                slices[k] = f"h{k}"
                self.line(f"h{k} = k{k} + {nest.types[k].itemsize} * row")
        return length, pending

    def _point(self, level: int, pending: list[int], slices: dict[int, str]) -> None:
        """One point: compute, retain, accumulate, store."""
        for k in pending:
            name, scope = self.nest.types[k].name, self.scope(("slice", k)) if k in slices else 0
            if k in self.written:
                self.line(f"e{k} = reread_{name}_{scope}({slices[k]}, i)")
                continue
            self.assign(k)
            if k in slices:
                self.line(f"write_{name}_{scope}({slices[k]}, i, e{k})")
        for q, r in self.nest.reductions_of(level):
            self.line(f"u{q} = {accumulated(r.kind, r.dtype, f'u{q}', f'e{r.expression}')}")
        self.store(level)

    def _prefetch(self, used: set[Access]) -> None:
        """Ask for a row to come: the hardware's own prefetching starts anew with each short row."""
        if len(self.reduced) < 2:
            return
        axis = self.reduced[-2]
        stores = {s.access for s in self.nest.stores}
        for access, j in self.accesses.items():
            row = self.nest.shape[self.lane] * access.dtype.itemsize
            dense = access.strides[self.lane] == 1 and access.strides[axis]
            if access in used & self.far and dense and row <= LONG_ROW:
                kind = "write" if access in stores else "read"
                rows = max(1, AHEAD // row)
                self.word(rows * access.strides[axis] * access.dtype.itemsize, f"d{j}")
                self.line(f"for line in range(0, {access.dtype.itemsize} * n{self.lane}, 64):")
                self.line(f"    prefetch_to_{kind}({self.here[access]} + d{j} + line)")

    def _row(self) -> str:
        """The first point of the row that the loops over the outer reduced axes stand at."""
        first, *others = self.reduced[:-1]
        text = f"i{first}"
        for axis in others:
            text = f"({text} * n{axis} + i{axis})"
        return f"{text} * n{self.lane}"

    def _result(self, number: int, r: Reduction) -> set[int]:
        """Store a reduction and make it a scalar of the passes to come, which read it as these."""
        self.line(f"r{number} = {cast(r.dtype, f't{number}')}")
        self.write(r.access, f"r{number}")
        known = {k for k, e in enumerate(self.nest.expressions) if e == ("reduction", number)}
        for k in known:
            self.define(k, f"r{number}")
        return known
