"""Nests whose innermost axis is reduced: lanes run along the reduction.

Each kept point is one iteration. A row of float32 is summed in blocks of float32 lanes, and the
blocks in float64. Beside the names that `NestWriter` lists, a kernel has k0, the address of the
slice that retains expression 0, and h0, its row.
"""

from __future__ import annotations

from math import prod

from minigrad.backend.cpu.expressions import cast
from minigrad.backend.cpu.machine import second_cache
from minigrad.backend.cpu.nests.retain import far_accesses, retained
from minigrad.backend.cpu.nests.writer import NestWriter, accumulated, initial, wide
from minigrad.backend.launch import Pointer, Program
from minigrad.backend.loopnest import Access, LoopNest

BLOCK = 2048  # elements summed in float32 before they are added up in float64
# Bytes: rows longer than this keep the hardware's prefetcher busy; and how far to ask ahead.
LONG_ROW, AHEAD = 2048, 2048


class RowLoops(NestWriter):
    """See the module's docstring."""

    row_points = 16

    def __init__(self, program: Program, nest: LoopNest):
        super().__init__(program, nest)
        self.outer = prod(nest.shape[a] for a in self.kept)
        self.far = far_accesses(nest, second_cache())
        self.retained = retained(nest, self.varies, self.far, second_cache())
        self.written: set[int] = set()  # those that an earlier pass has written

    def body(self) -> None:
        """One iteration for each kept point, in it the passes."""
        out, nest = self.out, self.nest
        if self.retained:
            self._declare_scratch()
        out.loop("for flat in range(begin, end):")
        if self.kept:
            out.line("rest = flat")
            self.decode(self.kept, "rest")
        for access, j in self.accesses.items():
            self.address(f"a{j}", j, access, self.kept, f"p{j}")
        base = {j: f"a{j}" for j in self.accesses.values()}
        done: set[int] = set()
        for level in range(nest.passes):
            cone = nest.cone(nest.roots(level), lambda k: k in self.written)
            for k in nest.cone(nest.roots(level)):
                if k not in done and not self.varies[k] & set(self.reduced):
                    self.assign(k, base)
                    done.add(k)
            self._pass(level, [k for k in cone if k not in done])
            self.written.update(k for k in self.retained if k in cone)
            for number, r in enumerate(nest.reductions):
                if r.level == level:
                    self._result(number, base)
                    done.update(
                        k for k, e in enumerate(nest.expressions) if e == ("reduction", number)
                    )

    def _declare_scratch(self) -> None:
        """A slice of scratch for each retained value and task. See retain.py."""
        out, points = self.out, prod(self.nest.shape[a] for a in self.reduced)
        sizes = [-(-self.nest.types[k].itemsize * points // 64) * 64 for k in self.retained]
        slot = self.program.scratch_slot(self.tasks * sum(sizes))
        out.word(Pointer(slot), "scratch")
        out.word(sum(sizes), "task_bytes")
        out.word(self.outer, "outer")
        out.word(self.tasks, "tasks")
        out.line("task = (begin * tasks + outer - 1) // outer")  # begin is outer * task // tasks
        for position, k in enumerate(self.retained):
            out.word(sum(sizes[:position]), f"k{k}")
            out.line(f"k{k} += scratch + task * task_bytes")

    def _pass(self, level: int, inner: list[int]) -> None:
        """Run over the reduced points, computing `inner` at each."""
        out, nest = self.out, self.nest
        reductions = [(q, r) for q, r in enumerate(nest.reductions) if r.level == level]
        for q, r in reductions:
            out.line(f"t{q} = {initial(r.kind, wide(r))}")
        depth = out.depth
        here = {j: f"a{j}" for j in self.accesses.values()}
        slices = {k: f"k{k}" for k in inner if k in self.retained}
        used = self.used_in(level, [k for k in inner if k not in self.written])
        pending = list(inner)
        last = f"n{self.lane}"
        positions = [k for k in inner if nest.expressions[k][0] == "index"]
        if not used and not positions:  # it reads and writes dense slices alone: one long row
            for axis in self.reduced[:-1]:
                last += f" * n{axis}"
        else:
            for axis in self.reduced[:-1]:
                out.loop(f"for i{axis} in range(n{axis}):")
                self.move(axis, used, here)
                pending = self.settle(axis, pending, here)
            self._prefetch(used, here)
            if slices and len(self.reduced) > 1:
                out.line(f"row = {self._row()}")
                for k in slices:
                    slices[k] = f"h{k}"
                    out.line(f"h{k} = k{k} + {nest.types[k].itemsize} * row")
        if reductions:
            out.line(f"last = {last}")
            out.loop(f"for start in range(0, last, {BLOCK}):")
            out.line(f"stop = min(start + {BLOCK}, last)")
            for q, r in reductions:
                out.line(f"u{q} = {initial(r.kind, r.dtype)}")
            out.loop("for i in range(start, stop):")
        else:
            out.loop(f"for i in range({last}):")
        for k in pending:
            name = nest.types[k].name
            if k in self.written:
                out.line(f"e{k} = reread_{name}_{self.scope(('slice', k))}({slices[k]}, i)")
                continue
            self.assign(k, here)
            if k in slices:
                out.line(f"write_{name}_{self.scope(('slice', k))}({slices[k]}, i, e{k})")
        for q, r in reductions:
            out.line(f"u{q} = {accumulated(r.kind, r.dtype, f'u{q}', f'e{r.expression}')}")
        self.store(level, here)
        if reductions:
            out.depth -= 1
            for q, r in reductions:
                out.line(f"t{q} = {accumulated(r.kind, wide(r), f't{q}', f'u{q}')}")
        out.depth = depth

    def _prefetch(self, used: set[Access], here: dict[int, str]) -> None:
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
                self.out.word(rows * access.strides[axis] * access.dtype.itemsize, f"d{j}")
                self.out.line(f"for line in range(0, {access.dtype.itemsize} * n{self.lane}, 64):")
                self.out.line(f"    prefetch_to_{kind}({here[j]} + d{j} + line)")

    def _row(self) -> str:
        """The number of the row that the loops over the outer reduced axes stand at."""
        first, *others = self.reduced[:-1]
        text = f"i{first}"
        for axis in others:
            text = f"({text} * n{axis} + i{axis})"
        return f"{text} * n{self.lane}"

    def _result(self, number: int, base: dict[int, str]) -> None:
        """Store a reduction and make it a scalar of the passes to come."""
        r = self.nest.reductions[number]
        j = self.accesses[r.access]
        result = f"r{number}"
        self.out.line(f"{result} = {cast(r.dtype, f't{number}')}")
        scope = self.scope(r.access)
        self.out.line(f"write_{r.dtype.name}_{scope}({base[j]}, 0, {result})")
        for k, e in enumerate(self.nest.expressions):
            if e == ("reduction", number):
                self.out.line(f"e{k} = {result}")
