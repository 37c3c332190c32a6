"""Loop nests as Numba kernels.

Kernels are generic in sizes and strides, which come from the table, and specialised in structure:
rank, which axes are kept, which strides are 0 or 1 along the innermost axis, dtypes, expressions.

Two shapes of code, by what the innermost axis is:
* reduced: each point of the kept axes is one scalar iteration; the vector lanes run along the
  reduction. A row of float32 is summed in blocks of float32 lanes, and the blocks in float64.
* kept (or there is no reduction): the lanes run along the kept axis, a block of it at a time, and
  each reduction has an array of float64 accumulators.
"""

from __future__ import annotations

from math import prod

from minigrad.backend.cpu.driver import num_threads
from minigrad.backend.cpu.expressions import cast, constant, render
from minigrad.backend.cpu.intrinsics import SCOPES
from minigrad.backend.cpu.jit import compile_kernel
from minigrad.backend.launch import Constant, Pointer, Program
from minigrad.backend.loopnest import LEAVES, Access, LoopNest

ROW_BLOCK = 2048  # elements summed in float32 before they are added up in float64
LANE_BLOCK = 8192  # elements of the innermost kept axis that one iteration handles
PARALLEL_FROM = 1 << 15  # operations below which a parallel region costs more than it saves


class _Source:
    """Lines of a kernel at a current depth, and the words of its table."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.words: list[object] = []

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def loop(self, header: str) -> None:
        self.line(header)
        self.depth += 1

    def word(self, value: object, name: str, kind: str = "int64") -> None:
        """A table entry, read into the local `name` at the top of the kernel."""
        self.line(f"{name} = load_{kind}(table, {len(self.words)})")
        self.words.append(value)


def emit(program: Program, nest: LoopNest) -> None:
    """Append the launch of one loop nest."""
    if prod(nest.shape[a] for a in range(len(nest.shape)) if nest.kept[a]) == 0:
        return  # nothing to write
    if prod(nest.shape) == 0 and not nest.reductions:
        return
    _Emitter(program, nest).emit()


class _Emitter:
    def __init__(self, program: Program, nest: LoopNest):
        self.program, self.nest = program, nest
        self.out = _Source()
        self.rank = len(nest.shape)
        self.lane = self.rank - 1
        self.by_row = not nest.kept[self.lane]
        self.kept = [a for a in range(self.rank) if nest.kept[a]]
        self.reduced = [a for a in range(self.rank) if not nest.kept[a]]
        self.accesses = {a: j for j, a in enumerate(nest.accesses())}
        self.varies = self._dependencies()
        self.scratch: dict[object, int] = {}  # accumulator or lane value -> array number
        self.scopes = {}

    # --- structure -------------------------------------------------------------------------------

    def _dependencies(self) -> list[frozenset[int]]:
        """For each expression, the axes along which its value changes."""
        result: list[frozenset[int]] = []
        for e in self.nest.expressions:
            if e[0] == "load":
                axes = frozenset(a for a, s in enumerate(e[1].strides) if s)
            elif e[0] == "index":
                axes = frozenset(a for a, c in enumerate(e[1].coefficients) if c)
            elif e[0] == "reduction":
                axes = frozenset(self.kept)
            elif e[0] == "const":
                axes = frozenset()
            else:
                axes = frozenset().union(*(result[k] for k in e[2:]))
            result.append(axes)
        return result

    def _cone(self, roots: list[int]) -> list[int]:
        """The expressions that `roots` need, arguments first (numbers grow from arguments up)."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            k = stack.pop()
            if k not in seen:
                seen.add(k)
                if self.nest.expressions[k][0] not in LEAVES:
                    stack.extend(self.nest.expressions[k][2:])
        return sorted(seen)

    def _roots(self, level: int) -> list[int]:
        roots = [r.expression for r in self.nest.reductions if r.level == level]
        return roots + [s.expression for s in self.nest.stores if s.level == level]

    # --- table -----------------------------------------------------------------------------------

    def _declare(self) -> None:
        out, nest = self.out, self.nest
        for a, n in enumerate(nest.shape):
            out.word(n, f"n{a}")
        for access, j in self.accesses.items():
            offset = access.offset * access.dtype.itemsize
            out.word(Pointer(access.slot, offset), f"p{j}")
            for a, s in enumerate(access.strides):
                if s and not (a == self.lane and s == 1):
                    out.word(s, f"s{j}_{a}")
        for k, e in enumerate(nest.expressions):
            if e[0] == "const":
                kind, text = constant(nest.types[k])
                out.word(Constant(e[1]), f"w{k}", kind)
                out.line(f"e{k} = {text.format(f'w{k}')}")
            elif e[0] == "index":
                out.word(e[1].offset, f"x{k}")
                for a, c in enumerate(e[1].coefficients):
                    if c:
                        out.word(c, f"x{k}_{a}")

    def _address(self, name: str, j: int, access: Access, axes: list[int], start: str) -> None:
        """A local `name`: the address `start` moved along `axes`."""
        terms = [f"i{a} * s{j}_{a}" for a in axes if access.strides[a]]
        size = access.dtype.itemsize
        moved = f" + {size} * ({' + '.join(terms)})" if terms else ""
        self.out.line(f"{name} = {start}{moved}")

    def _lane_index(self, access: Access, j: int) -> str:
        stride = access.strides[self.lane]
        if stride == 0:
            return "0"
        return "i" if stride == 1 else f"i * s{j}_{self.lane}"

    def _scope(self, key: object) -> int:
        return self.scopes.setdefault(key, min(len(self.scopes), SCOPES - 1))

    # --- expressions -----------------------------------------------------------------------------

    def _assign(self, k: int, addresses: dict[int, str]) -> None:
        """Compute expression k into the local e{k}."""
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "load":
            j = self.accesses[e[1]]
            at_lane = self._lane_index(e[1], j)
            self.out.line(f"e{k} = read_{dtype.name}({addresses[j]}, {at_lane})")
        elif e[0] == "index":
            terms = [f"x{k}"]
            for a, c in enumerate(e[1].coefficients):
                if c:
                    terms.append(f"x{k}_{a} * {'i' if a == self.lane else f'i{a}'}")
            self.out.line(f"e{k} = {cast(dtype, ' + '.join(terms))}")
        elif e[0] not in ("const", "reduction"):
            arguments = [f"e{a}" for a in e[2:]]
            argument_type = self.nest.types[e[-1]]
            self.out.line(f"e{k} = {render(e[0], dtype, argument_type, arguments)}")

    def emit(self) -> None:
        self._declare()
        if self.by_row:
            outer = prod(self.nest.shape[a] for a in self.kept)
            self._by_row()
        else:
            outer = self._by_lane()
        header = ["def kernel(table, begin, end):"]
        source = "\n".join(header + self.out.lines) + "\n"
        kernel = compile_kernel(self._name(), source)
        work = prod(self.nest.shape) * max(len(self.nest.expressions), 4) // 4
        tasks = min(num_threads(), outer) if work >= PARALLEL_FROM else 1
        self.program.launch(kernel, tuple(self.out.words), outer, tasks)

    def _name(self) -> str:
        """Reductions, then the ops in order: a name a profile can be read by."""
        ops = [r.kind for r in self.nest.reductions]
        ops += [e[0] for e in self.nest.expressions if e[0] not in LEAVES]
        return "_".join(dict.fromkeys(ops))[:60] or "copy"

    def _decode(self, axes: list[int], flat: str) -> None:
        """Positions along the kept `axes` from one flat position."""
        for position, a in enumerate(reversed(axes)):
            if position == len(axes) - 1:
                self.out.line(f"i{a} = {flat}")
            else:
                self.out.line(f"i{a} = {flat} % n{a}")
                self.out.line(f"{flat} = {flat} // n{a}")

    # --- the innermost axis is reduced -----------------------------------------------------------

    def _by_row(self) -> None:
        out, nest = self.out, self.nest
        out.loop("for flat in range(begin, end):")
        if self.kept:
            out.line("rest = flat")
            self._decode(self.kept, "rest")
        for access, j in self.accesses.items():
            self._address(f"a{j}", j, access, self.kept, f"p{j}")
        base = {j: f"a{j}" for j in self.accesses.values()}
        done: set[int] = set()
        for level in range(nest.passes):
            cone = self._cone(self._roots(level))
            for k in cone:
                if k not in done and not self.varies[k] - set(self.kept):
                    self._assign(k, base)
                    done.add(k)
            self._row_pass(level, [k for k in cone if k not in done])
            for number, r in enumerate(nest.reductions):
                if r.level == level:
                    self._row_result(number, base)
                    done.update(
                        k for k, e in enumerate(nest.expressions) if e == ("reduction", number)
                    )

    def _row_pass(self, level: int, inner: list[int]) -> None:
        out, nest = self.out, self.nest
        reductions = [(q, r) for q, r in enumerate(nest.reductions) if r.level == level]
        stores = [s for s in nest.stores if s.level == level]
        for q, r in reductions:
            out.line(f"t{q} = {_initial(r.kind, r.dtype, wide=True)}")
        depth = out.depth
        here = {j: f"a{j}" for j in self.accesses.values()}
        used = {nest.expressions[k][1] for k in inner if nest.expressions[k][0] == "load"}
        used |= {s.access for s in stores}
        pending = list(inner)
        for axis in self.reduced[:-1]:
            out.loop(f"for i{axis} in range(n{axis}):")
            for access, j in self.accesses.items():
                if access in used and access.strides[axis]:
                    name = f"b{j}_{axis}"
                    self._address(name, j, access, [axis], here[j])
                    here[j] = name
            settled = [
                k for k in pending
                if max(self.varies[k] - set(self.kept)) <= axis
            ]  # fmt: skip
            for k in settled:
                self._assign(k, here)
            pending = [k for k in pending if k not in settled]
        lane = self.lane
        if reductions:
            out.loop(f"for start in range(0, n{lane}, {ROW_BLOCK}):")
            out.line(f"stop = min(start + {ROW_BLOCK}, n{lane})")
            for q, r in reductions:
                out.line(f"u{q} = {_initial(r.kind, r.dtype, wide=False)}")
            out.loop("for i in range(start, stop):")
        else:
            out.loop(f"for i in range(n{lane}):")
        for k in pending:
            self._assign(k, here)
        for q, r in reductions:
            out.line(f"u{q} = {_accumulated(r.kind, r.dtype, f'u{q}', f'e{r.expression}')}")
        for s in stores:
            j = self.accesses[s.access]
            at = self._lane_index(s.access, j)
            scope = self._scope(s.access)
            name = s.access.dtype.name
            out.line(f"write_{name}_{scope}({here[j]}, {at}, e{s.expression})")
        if reductions:
            out.depth -= 1
            for q, r in reductions:
                out.line(f"t{q} = {_accumulated(r.kind, r.dtype, f't{q}', f'u{q}', wide=True)}")
        out.depth = depth

    def _row_result(self, number: int, base: dict[int, str]) -> None:
        r = self.nest.reductions[number]
        j = self.accesses[r.access]
        result = f"r{number}"
        self.out.line(f"{result} = {cast(r.dtype, f't{number}')}")
        scope = self._scope(r.access)
        self.out.line(f"write_{r.dtype.name}_{scope}({base[j]}, 0, {result})")
        for k, e in enumerate(self.nest.expressions):
            if e == ("reduction", number):
                self.out.line(f"e{k} = {result}")

    # --- the innermost axis is kept --------------------------------------------------------------

    def _by_lane(self) -> int:
        out, nest = self.out, self.nest
        length = nest.shape[self.lane]
        rows = prod(nest.shape[a] for a in self.kept if a != self.lane)
        block = min(length, LANE_BLOCK)
        if rows < num_threads():  # leave something for every thread
            block = min(block, max(-(-length // num_threads()), 64))
        blocks = -(-length // block)
        out.word(block, "block")
        out.word(blocks, "blocks")
        if nest.reductions:
            out.word(rows * length, "kept_size")
            scratch = self.program.scratch_slot(8 * rows * length * self._count_arrays())
            out.word(Pointer(scratch), "scratch")
        out.loop("for flat in range(begin, end):")
        out.line("rest = flat // blocks")
        out.line("start = (flat % blocks) * block")
        out.line(f"stop = min(start + block, n{self.lane})")
        if nest.reductions:
            out.line(f"origin = scratch + 8 * rest * n{self.lane}")
        axes = [a for a in self.kept if a != self.lane]
        self._decode(axes, "rest")
        for access, j in self.accesses.items():
            self._address(f"a{j}", j, access, axes, f"p{j}")
        base = {j: f"a{j}" for j in self.accesses.values()}
        done: set[int] = set()
        for level in range(nest.passes):
            cone = self._cone(self._roots(level))
            for k in cone:
                if k not in done and not self.varies[k] - set(axes):
                    self._assign(k, base)
                    done.add(k)
            if nest.reductions:
                self._lane_values(cone, done, base)
            self._lane_pass(level, [k for k in cone if k not in done], base)
        return rows * blocks

    def _array(self, key: object) -> tuple[str, int]:
        """Address and alias scope of a scratch array over the kept points."""
        number = self.scratch.setdefault(key, len(self.scratch))
        return f"origin + 8 * {number} * kept_size", self._scope(("scratch", number))

    def _count_arrays(self) -> int:
        """Upper bound: one accumulator a reduction and one value for each lane-only expression."""
        lane_only = [k for k in range(len(self.nest.expressions)) if self._is_lane_value(k)]
        return len(self.nest.reductions) + len(lane_only)

    def _is_lane_value(self, k: int) -> bool:
        """Varies along the lanes but not along the reduction: worth computing once a block."""
        simple = self.nest.expressions[k][0] in LEAVES
        axes = self.varies[k]
        return not simple and self.lane in axes and not axes & set(self.reduced)

    def _lane_values(self, cone: list[int], done: set[int], base: dict[int, str]) -> None:
        """Compute the lane-only expressions of a pass into scratch arrays."""
        fresh = [k for k in cone if self._is_lane_value(k) and ("value", k) not in self.scratch]
        if not fresh:
            return
        needed = [
            k for k in self._cone(fresh)
            if k not in done and not (self.varies[k] & set(self.reduced))
        ]  # fmt: skip
        depth = self.out.depth
        self.out.loop("for i in range(start, stop):")
        for k in needed:
            if k in fresh or not self._recall(k):
                self._assign(k, base)
        for k in fresh:
            name = self.nest.types[k].name
            address, scope = self._array(("value", k))
            self.out.line(f"write_{name}_{scope}({address}, i, e{k})")
        self.out.depth = depth

    def _recall(self, k: int) -> bool:
        """Read a value that a scratch array holds into e{k}; False when none does."""
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "reduction":
            r = self.nest.reductions[e[1]]
            address, scope = self._array(("sum", e[1]))
            wide = _wide(r.dtype)
            self.out.line(f"e{k} = {cast(dtype, f'reread_{wide}_{scope}({address}, i)')}")
            return True
        if ("value", k) in self.scratch:
            address, scope = self._array(("value", k))
            self.out.line(f"e{k} = reread_{dtype.name}_{scope}({address}, i)")
            return True
        return False

    def _lane_pass(self, level: int, inner: list[int], base: dict[int, str]) -> None:
        out, nest = self.out, self.nest
        reductions = [(q, r) for q, r in enumerate(nest.reductions) if r.level == level]
        stores = [s for s in nest.stores if s.level == level]
        depth = out.depth
        if reductions:
            out.loop("for i in range(start, stop):")
            for q, r in reductions:
                address, scope = self._array(("sum", q))
                initial = _initial(r.kind, r.dtype, wide=True)
                out.line(f"write_{_wide(r.dtype)}_{scope}({address}, i, {initial})")
            out.depth = depth
        # Arguments of values held in scratch are not needed again.
        inner = [k for k in self._needed(level) if k in set(inner)]
        here = dict(base)
        used = {nest.expressions[k][1] for k in inner if nest.expressions[k][0] == "load"}
        used |= {s.access for s in stores}
        pending = list(inner)
        for axis in self.reduced:
            out.loop(f"for i{axis} in range(n{axis}):")
            for access, j in self.accesses.items():
                if access in used and access.strides[axis]:
                    name = f"b{j}_{axis}"
                    self._address(name, j, access, [axis], here[j])
                    here[j] = name
            settled = [
                k for k in pending
                if self.lane not in self.varies[k]
                and max(self.varies[k] & set(self.reduced), default=-1) <= axis
            ]  # fmt: skip
            for k in settled:
                self._assign(k, here)
            pending = [k for k in pending if k not in settled]
        out.loop("for i in range(start, stop):")
        for k in pending:
            if not self._recall(k):
                self._assign(k, here)
        for q, r in reductions:
            address, scope = self._array(("sum", q))
            name = _wide(r.dtype)
            total = f"reread_{name}_{scope}({address}, i)"
            value = _accumulated(r.kind, r.dtype, total, f"e{r.expression}", wide=True)
            out.line(f"write_{name}_{scope}({address}, i, {value})")
        for s in stores:
            j = self.accesses[s.access]
            at = self._lane_index(s.access, j)
            scope = self._scope(s.access)
            out.line(f"write_{s.access.dtype.name}_{scope}({here[j]}, {at}, e{s.expression})")
        out.depth = depth
        if reductions:
            out.loop("for i in range(start, stop):")
            for q, r in reductions:
                j = self.accesses[r.access]
                address, scope = self._array(("sum", q))
                total = cast(r.dtype, f"reread_{_wide(r.dtype)}_{scope}({address}, i)")
                at = self._lane_index(r.access, j)
                to = self._scope(r.access)
                out.line(f"write_{r.dtype.name}_{to}({base[j]}, {at}, {total})")
            out.depth = depth

    def _needed(self, level: int) -> list[int]:
        """The cone of a pass, not looking behind values that scratch arrays hold."""
        seen: set[int] = set()
        stack = self._roots(level)
        while stack:
            k = stack.pop()
            if k in seen:
                continue
            seen.add(k)
            e = self.nest.expressions[k]
            held = ("value", k) in self.scratch
            if e[0] not in LEAVES and not held:
                stack.extend(e[2:])
        return sorted(seen)


def _wide(dtype) -> str:
    """The type an accumulator array has."""
    return "float64" if dtype.is_floating else "bool" if dtype.kind == "bool" else "int64"


def _initial(kind: str, dtype, wide: bool) -> str:
    name = _wide(dtype) if wide else dtype.name
    if name == "bool":
        return "False"
    if kind == "sum":
        return f"types.{name}(0)"
    if dtype.is_floating:
        return f"types.{name}(-math.inf)"
    low = 0 if dtype.kind == "uint" else -(1 << (8 * dtype.itemsize - 1))
    return f"types.{name}({low})"


def _accumulated(kind: str, dtype, total: str, value: str, wide: bool = False) -> str:
    name = _wide(dtype) if wide else dtype.name
    if name == "bool":
        return f"({total} | {value})"
    if kind == "sum" and name.startswith("float"):
        return f"accumulate(types.{name}({total}), types.{name}({value}))"
    if kind == "sum":
        return f"types.{name}({total} + {value})"
    larger = f"take_maximum(types.{name}({value}), {total})"
    return larger
