"""Loop nests with reductions: teams of threads that share a kept point's elements.

[Note: sums] A thread adds up BLOCK packs in the type of the elements, each lane of the packs apart
from the others, and those sums in float64 (int64, for integers). So the error does not grow with
the number of elements, and a chip that is slow at float64 hardly notices. What threads have found
they combine in a fixed order: the same program gives the same bits on the same chip.

[Note: large teams] A nest of several passes reads its slices again, from the nearest cache that
holds those at work, and cannot be cut into parts. The more threads a slice has, the fewer are at
work, and the fewer it takes to fill the chip. But threads wait for each other between passes, so
two slices should be at work on a multiprocessor, unless they are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from minigrad.backend.cuda.expressions import memory_type, register_type
from minigrad.backend.cuda.nests.writer import CudaWriter
from minigrad.backend.cuda.prelude import (
    LEAST,
    MOST_THREADS,
    THREADS,
    WARP,
    floor_power_of_two,
    power_of_two,
    team_size,
)
from minigrad.backend.launch import Pointer, Program
from minigrad.backend.loopnest import Access, LoopNest, Reduction

BLOCK = 32  # packs, see [Note: sums]
LONG = 1 << 15  # elements of a slice for which a team takes a multiprocessor: [Note: large teams]
PART_BLOCKS = 8  # of one multiprocessor, in a kernel that is cut into parts
# What a thread should have under way: bytes, and the most loads for them.
UNDER_WAY = 64
LOADS = 8


class _Reducing(CudaWriter):
    """What rows and columns share: passes of accumulation, combination and result."""

    team: int  # threads of one kept point
    points: int  # kept points of a block

    def __init__(self, program: Program, nest: LoopNest, processors: int):
        super().__init__(program, nest)
        self.processors = processors
        self.walked = self.reduced
        self.outer = prod(nest.kept_shape)
        self.shape()
        self.packs = prod(nest.shape[a] for a in self.reduced) // self.lanes
        self.parts = self._parts()

    def shape(self) -> None:
        """Choose lanes, team and points."""
        raise NotImplementedError

    def combined(self, kind: str, name: str) -> str:
        """The combination of a team's values."""
        raise NotImplementedError

    def locate(self) -> None:
        """Declare `member`, the thread's number in its team, and `point`, its number in a block."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """Blocks of one part."""
        return -(-self.outer // self.points)

    def _parts(self) -> int:
        """How many blocks share a kept point's elements; dependent passes cannot be shared."""
        if self.nest.passes > 1 or self.packs <= BLOCK * self.team:
            return 1  # a second launch would take longer than so few turns
        wanted = PART_BLOCKS * self.processors // self.blocks
        most = self.packs // (LEAST * self.team)
        return max(1, min(wanted, most))

    def emit(self, partial: Sequence[Access] | None = None) -> None:
        """Append the launch; with `partial`, results of each part go there."""
        kind = self.index_type
        self.word(self.outer, "outer")
        self.word(self.packs, "packs")
        self.word(self.team, "team", "int")
        self.word(self.team.bit_length() - 1, "team_log2", "int")
        self.word(self.points, "points", "int")
        self.divisors(self.kept)
        self.divisors(self.reduced, self.lanes)
        if partial is None:
            self.line(f"const {kind} block = blockIdx.x;")
        else:
            self.word(self.blocks, "blocks")
            self.line(f"const {kind} part = ({kind})blockIdx.x / blocks;")
            self.line(f"const {kind} block = ({kind})blockIdx.x - part * blocks;")
        self.declare()
        self.line("__shared__ double shared[256];")
        self.locate()
        self.line(f"const {kind} kept = block * points + point;")
        self.line("const bool inside = kept < outer;")
        # Threads beyond the last point take part in what the block does together, on no element.
        self.line(f"const {kind} flat = inside ? kept : 0;")
        if self.kept:
            self.decode(self.kept, "flat")
        for access, j in self.accesses.items():
            if any(access.strides[a] for a in self.kept):
                self.line(f"const {kind} o{j} = {self.offset(access, self.kept)};")
                self.moved.add(access)
        self.line("const bool writes = inside && member == 0;")
        if partial is None:
            self.line(f"const {kind} first = member, last = packs;")
        else:
            self.word(-(-self.packs // self.parts), "share")
            self.line(f"const {kind} begin = part * share;")
            self.line(f"const {kind} last = begin + share < packs ? begin + share : packs;")
            self.line(f"const {kind} first = begin + member;")
        # Loops count turns, since the compiler does not unroll one whose step it does not know.
        some = "inside && first < last"
        self.line(f"const {kind} turns = {some} ? (last - first + team - 1) >> team_log2 : 0;")
        known: set[int] = set()
        for level in range(self.nest.passes):
            self._pass(level, known, partial)
        self.launch(self.blocks * self.parts, self.team * self.points)

    def _pass(self, level: int, known: set[int], partial: Sequence[Access] | None) -> None:
        reductions = self.nest.reductions_of(level)
        self.line(f"// pass {level}")
        self.assign_fixed(level, self.kept, known)
        for n, r in reductions:
            self.line(f"{_wide(r, self.nest)} t{n} = {_initial(r, self.nest)};")
        kind = self.index_type
        sums = [(n, r) for n, r in reductions if r.kind == "sum"]
        if sums:
            with self.block(f"for ({kind} done = 0; done < turns; done += {BLOCK})"):
                for n, r in sums:
                    self.line(f"{_narrow(r, self.nest)} a{n}[{self.lanes}] = {{}};")
                self.line(f"const {kind} rest = turns - done;")
                self.line(f"const int block_turns = rest < {BLOCK} ? (int)rest : {BLOCK};")
                self._turns(level, known, "int", "block_turns", "(done + t)")
                for n, _ in sums:
                    each = "".join(f" + a{n}[{lane}]" for lane in range(self.lanes))
                    self.line(f"t{n} = t{n}{each};")
        else:
            self._turns(level, known, kind, "turns", "t")
        for n, r in reductions:
            self._result(n, r, known, partial)

    def _turns(self, level: int, known: set[int], kind: str, count: str, turn: str) -> None:
        """The loop over a thread's packs: number `turn` of the pass is the t-th of `count` here."""
        self.unroll(level, known)
        with self.block(f"for ({kind} t = 0; t < {count}; ++t)"):
            self.line(f"const {self.index_type} r = first + {turn} * team;")
            self.decode(self.reduced, "r", self.lanes)
            self.work(level, known)

    def unroll(self, level: int, known: set[int]) -> None:
        """Let a loop with few loads begin those of its next turns, too, if it has these turns."""
        needed = set(self.nest.cone(self.nest.roots(level))) - known
        loads = [self.nest.types[k] for k in needed if self.nest.expressions[k][0] == "load"]
        nbytes = sum(dtype.itemsize for dtype in loads) * self.lanes
        turns = self.packs // (self.team * self.parts)
        if loads:
            turns = min(turns, LOADS // len(loads), UNDER_WAY // nbytes)
        # Registers for more would only leave room for fewer threads.
        self.line(f"#pragma unroll {floor_power_of_two(turns) if loads else 1}")

    def _result(
        self, n: int, r: Reduction, known: set[int], partial: Sequence[Access] | None
    ) -> None:
        self.line(f"const {_wide(r, self.nest)} r{n} = {self.combined(r.kind, f't{n}')};")
        kind = register_type(r.dtype)
        if partial is not None:
            p = partial[n]
            memory = memory_type(p.dtype)
            at = len(self.words)
            self.words.append(Pointer(p.slot, p.offset))
            target = f"array_at<{memory}>(table[{at}]) + (part * outer + kept)"
            self.line(f"if (writes) store({target}, ({register_type(p.dtype)})r{n});")
            return
        self.line(f"if (writes) store({self.place(r.access)}, ({kind})r{n});")
        key = ("reduction", n)
        if key in self.nest.expressions:
            k = self.nest.expressions.index(key)
            self.define(k, f"({kind})r{n}")
            known.add(k)

    def accumulate(self, level: int) -> None:
        """Add one element to the reductions of a pass."""
        for n, r in self.nest.reductions_of(level):
            if r.kind == "sum":
                self.line(f"a{n}[{self.lane_number}] += e{r.expression};")
            else:
                self.line(f"t{n} = maximum_of(t{n}, ({_wide(r, self.nest)})e{r.expression});")


class Rows(_Reducing):
    """The innermost axis is reduced: a team's threads lie side by side along it."""

    def shape(self) -> None:
        """A team large enough to keep the chip busy, or as large as there are packs."""
        self.lanes = self.widest()
        packs = prod(self.nest.shape[a] for a in self.reduced) // self.lanes
        most = THREADS
        if self.nest.passes > 1:
            most = MOST_THREADS if packs * self.lanes >= LONG else 2 * THREADS
        self.team = team = team_size(most, packs, self.outer, self.processors)
        self.points = max(min(THREADS // team, power_of_two(self.outer)), WARP // team, 1)

    def locate(self) -> None:
        """Teams are runs of threads."""
        self.line("const int member = threadIdx.x & (team - 1), point = threadIdx.x / team;")

    def combined(self, kind: str, name: str) -> str:
        """By shuffles within a warp, through shared memory between warps."""
        return f"across_team<{_operation(kind)}>({name}, team, shared)"


class Columns(_Reducing):
    """The innermost axis is kept: a block is `team` rows of `points` threads."""

    def shape(self) -> None:
        """As many columns as there are, up to a warp's; rows until the chip is busy."""
        packs = prod(self.nest.shape[a] for a in self.reduced)
        most = THREADS // min(WARP, power_of_two(self.outer))
        team = team_size(most, packs, self.outer, self.processors)
        self.points = min(THREADS // team, power_of_two(self.outer))
        self.team = max(team, WARP // self.points)

    def locate(self) -> None:
        """Teams are columns of threads."""
        self.line("const int member = threadIdx.x / points, point = threadIdx.x & (points - 1);")

    def combined(self, kind: str, name: str) -> str:
        """Through shared memory."""
        return f"across_rows<{_operation(kind)}>({name}, points, team, shared)"


def _operation(kind: str) -> str:
    return {"sum": "Sum", "max": "Max"}[kind]


def _narrow(r: Reduction, nest: LoopNest) -> str:
    """What a block of elements is added up in."""
    dtype = nest.types[r.expression]
    return register_type(dtype) if dtype.is_floating else "i64"


def _wide(r: Reduction, nest: LoopNest) -> str:
    """What results of blocks and threads are combined in."""
    dtype = nest.types[r.expression]
    if r.kind == "sum":
        return "double" if dtype.is_floating else "i64"
    if dtype.is_floating:
        return register_type(dtype)
    return "i64" if dtype.itemsize == 8 else "int"


def _initial(r: Reduction, nest: LoopNest) -> str:
    dtype = nest.types[r.expression]
    if r.kind == "sum":
        return "0"
    if dtype.is_floating:
        return f"({register_type(dtype)})-as_float(0x7F800000u)"
    if dtype.kind in ("bool", "uint"):
        return "0"
    bits = 8 * dtype.itemsize - 1
    return f"({register_type(dtype)})(-(1ll << {bits - 1}) * 2)"
