"""Writes vector code: the instructions that the micro-kernels are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minigrad.backend.cpu import machine

ITEMSIZE = {"float32": 4, "float64": 8}
_WORD, _INT32, _BIT = ir.IntType(64), ir.IntType(32), ir.IntType(1)


def lanes(dtype: str) -> int:
    """Elements of `dtype` in one vector."""
    return machine.vector_bytes() // ITEMSIZE[dtype]


def word(n: int) -> ir.Constant:
    """A constant of 64 bits."""
    return ir.Constant(_WORD, n)


class VectorBuilder:
    """Writes vector instructions of one dtype with an IR builder."""

    def __init__(self, builder: ir.IRBuilder, dtype: str):
        self.builder, self.dtype = builder, dtype
        self.itemsize, self.lanes = ITEMSIZE[dtype], lanes(dtype)
        self.scalar = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.itemsize}"
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.mask = ir.VectorType(_BIT, self.lanes)
        self.align = ir.Constant(_INT32, self.itemsize)

    def add(self, address: Any, *terms: Any) -> Any:
        """The address moved on by terms in bytes."""
        for term in terms:
            address = self.builder.add(address, word(term) if isinstance(term, int) else term)
        return address

    def times(self, a: Any, n: int) -> Any:
        """The product with a constant."""
        return self.builder.mul(a, word(n))

    def least(self, a: Any, n: int) -> Any:
        """The smaller of a value and a constant."""
        return self.builder.select(self.builder.icmp_signed("<", a, word(n)), a, word(n))

    def vector_bytes(self, index: int) -> int:
        """Bytes of `index` vectors."""
        return index * self.lanes * self.itemsize

    def load(self, address: Any) -> Any:
        """The vector at an address of any alignment."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        return self.builder.load(pointer, align=self.itemsize)

    def store(self, value: Any, address: Any) -> None:
        """Store a whole vector at an address of any alignment."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        self.builder.store(value, pointer, align=self.itemsize)

    def scalar_pointer(self, address: Any) -> Any:
        """The pointer to an element at an address."""
        return self.builder.inttoptr(address, self.scalar.as_pointer())

    def load_word(self, address: Any, index: int) -> Any:
        """Word number `index` of a table."""
        pointer = self.builder.inttoptr(self.add(address, 8 * index), _WORD.as_pointer())
        return self.builder.load(pointer, align=8)

    def load_broadcast(self, address: Any) -> Any:
        """One element in every lane."""
        value = self.builder.load(self.scalar_pointer(address), align=self.itemsize)
        return self.splat(value, self.vector)

    def splat(self, value: Any, vector: ir.VectorType) -> Any:
        """A scalar in every lane of a vector of the type `vector`."""
        undefined = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
        return self.shuffle(one, undefined, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, picks: list[int]) -> Any:
        """The lanes `picks` of a followed by b."""
        indices = ir.Constant(ir.VectorType(_INT32, self.lanes), picks)
        return self.builder.shuffle_vector(a, b, indices)

    def lanes_below(self, limit: Any, first: int = 0, step: int = 1) -> Any:
        """The mask of lanes l with first + l*step < limit."""
        # i32 lanes: i64 lanes would need two compares a vector.
        vector = ir.VectorType(_INT32, self.lanes)
        positions = ir.Constant(vector, [first + step * lane for lane in range(self.lanes)])
        bound = self.splat(self.builder.trunc(limit, _INT32), vector)
        return self.builder.icmp_signed("<", positions, bound)

    def masked_load(self, address: Any, mask: Any) -> Any:
        """The lanes under `mask`, zeros elsewhere."""
        pointer = self.vector.as_pointer()
        arguments = [self.builder.inttoptr(address, pointer), self.align, mask, self.zero]
        return call_llvm(self.builder, f"masked.load.{self.suffix}.p0", self.vector, arguments)

    def spill(self, values: list[Any]) -> Any:
        """The address of the vectors, one after the other, in memory of the function's own."""
        array = ir.ArrayType(self.vector, len(values))
        address = self.builder.ptrtoint(cgutils.alloca_once(self.builder, array), _WORD)
        for index, value in enumerate(values):
            self.store(value, self.add(address, self.vector_bytes(index)))
        return address

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """The value of a * b + c, rounded once where the host can."""
        # fmuladd, not fma: without the instruction fma would be a call into libm for each lane.
        return call_llvm(self.builder, f"fmuladd.{self.suffix}", self.vector, [a, b, c])

    def add_products(self, sums: list[Any], left: list[Any], right: list[Any]) -> None:
        """Add the product of each element at the addresses `left` with each vector of `right`."""
        for i, address in enumerate(left):
            value = self.load_broadcast(address)
            for at, other in enumerate(right, i * len(right)):
                sums[at] = self.multiply_add(value, other, sums[at])

    def transposed(self, block: list[Any]) -> list[Any]:
        """The columns of a block of as many vectors as lanes."""
        n, block = self.lanes, list(block)
        distance = n // 2
        while distance:  # swap the off-diagonal quarters of ever smaller blocks
            low = [lane if not lane & distance else n + lane - distance for lane in range(n)]
            high = [lane + distance if not lane & distance else n + lane for lane in range(n)]
            for r in range(n):
                if not r & distance:
                    pair = block[r], block[r + distance]
                    block[r], block[r + distance] = (
                        self.shuffle(*pair, low),
                        self.shuffle(*pair, high),
                    )
            distance //= 2
        return block

    def horizontal_sum(self, value: Any) -> Any:
        """The sum of the lanes, in any order."""
        name, arguments = f"vector.reduce.fadd.{self.suffix}", [self.scalar(0.0), value]
        return call_llvm(self.builder, name, self.scalar, arguments, fastmath=("reassoc",))

    def accumulate(
        self,
        sums: list[Any],
        nonempty: Any,
        walkers: list[Any],
        step: Callable[[list[Any], list[Any]], tuple[list[Any], Any]],
    ) -> list[Any]:
        """A loop over accumulators in registers, from `sums` on; returns their final values.

        `step(walkers, sums)` emits one iteration, which may hold a loop of this kind: it replaces
        entries of `sums` in place and returns the walkers' next values and the condition to go on.
        """
        b = self.builder
        entry = b.block
        loop, done = b.append_basic_block("sum"), b.append_basic_block("summed")
        b.cbranch(nonempty, loop, done)
        b.position_at_end(loop)
        moving = [b.phi(_WORD) for _ in walkers]
        phis = [b.phi(self.vector) for _ in sums]
        values = list(phis)
        following, more = step(moving, values)
        end = b.block
        for phi, start, after in zip(
            moving + phis, walkers + sums, following + values, strict=True
        ):
            phi.add_incoming(start, entry)
            phi.add_incoming(after, end)
        b.cbranch(more, loop, done)
        b.position_at_end(done)
        result = []
        for start, value in zip(sums, values, strict=True):
            last = b.phi(self.vector)
            last.add_incoming(start, entry)
            last.add_incoming(value, end)
            result.append(last)
        return result

    def store_tile(
        self,
        sums: list[Any],
        vectors: int,
        c: Any,
        row_bytes: Any,
        columns: Any,
        rows: Any,
        beta: Any,
    ) -> None:
        """Store (beta == 0) or add the rows < `rows` and columns < `columns` of a tile.

        `sums` are the tile's rows one after the other, of `vectors` vectors each.
        """
        b = self.builder
        whole = b.and_(
            b.icmp_signed(">=", rows, word(len(sums) // vectors)),
            b.icmp_signed(">=", columns, word(vectors * self.lanes)),
        )
        with b.if_else(whole) as (inside, edge):
            with inside:
                adds = b.icmp_signed("!=", beta, word(0))
                for index, value in enumerate(sums):
                    i, j = divmod(index, vectors)
                    address = self.add(c, self.times(row_bytes, i), self.vector_bytes(j))
                    old = b.select(adds, self.load(address), self.zero)
                    self.store(b.fadd(value, old), address)
            with edge:
                rows = self.least(rows, len(sums) // vectors)
                columns = self.least(columns, vectors * self.lanes)
                kept, kept_bytes = self.spill(sums), word(self.vector_bytes(vectors))
                arguments = [c, row_bytes, kept, kept_bytes, columns, rows, beta]
                call_apart(b, f"minigrad.store_edge.{self.suffix}", arguments, self._store_edge)

    def _store_edge(self, builder: ir.IRBuilder, *arguments: Any) -> None:
        """Store or add a tile that lies in memory, at `kept`; all of its rows and columns."""
        c, row_bytes, kept, kept_bytes, columns, rows, beta = arguments
        e = VectorBuilder(builder, self.dtype)
        vectors = builder.sdiv(e.add(columns, e.lanes - 1), word(e.lanes))
        with (
            cgutils.for_range(builder, rows, intp=_WORD) as row,
            cgutils.for_range(builder, vectors, intp=_WORD) as vector,
        ):
            place = e.times(vector.index, e.vector_bytes(1))
            dst = e.add(c, builder.mul(row_bytes, row.index), place)
            src = e.add(kept, builder.mul(kept_bytes, row.index), place)
            left = builder.sub(columns, e.times(vector.index, e.lanes))
            with builder.if_then(builder.icmp_signed("!=", beta, word(0))):
                old = e.masked_load(dst, e.lanes_below(left))
                e.store(builder.fadd(e.load(src), old), src)
            copy_first(builder, dst, src, left, e.vector, e.itemsize)


def copy_first(
    builder: ir.IRBuilder, dst: Any, src: Any, count: Any, vector: ir.VectorType, itemsize: int
) -> None:
    """Copy the first min(count, lanes) elements from src, where a whole vector is readable.

    Not by a masked store: for one of AVX2, AMD's cores take ten times as long as for a whole one.
    """

    def copy(builder: ir.IRBuilder, dst: Any, src: Any, lanes: int) -> None:
        piece = ir.VectorType(vector.element, lanes).as_pointer()
        value = builder.load(builder.inttoptr(src, piece), align=itemsize)
        builder.store(value, builder.inttoptr(dst, piece), align=itemsize)

    def copy_digits(builder: ir.IRBuilder, dst: Any, src: Any, count: Any) -> None:
        width = vector.count // 2
        while width:  # the binary digits of the count
            digit = builder.and_(count, word(width))
            with builder.if_then(builder.icmp_signed("!=", digit, word(0))):
                done = builder.mul(builder.and_(count, word(-2 * width)), word(itemsize))
                copy(builder, builder.add(dst, done), builder.add(src, done), width)
            width //= 2

    is_whole = builder.icmp_signed(">=", count, word(vector.count))
    with builder.if_else(is_whole) as (whole, part):
        with whole:
            copy(builder, dst, src, vector.count)
        with part, builder.if_then(builder.icmp_signed(">", count, word(0))):
            name = f"minigrad.copy_first.{vector.count}x{itemsize}"
            call_apart(builder, name, [dst, src, count], copy_digits)


def call_llvm(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[Any], **flags: Any
) -> Any:
    """Call LLVM's intrinsic `name`, spelled with the types that it is for."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}")
    return builder.call(function, arguments, **flags)


def call_apart(
    builder: ir.IRBuilder, name: str, arguments: list[Any], emit: Callable[..., None]
) -> None:
    """Call a function of the module's own on words; `emit(builder, *arguments)` is its body.

    For code at edges: in line it would be compiled at every call, and again in every loop that LLVM
    unrolls.
    """
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [_WORD] * len(arguments))
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        emit(inner, *function.args)
        inner.ret_void()
    builder.call(function, arguments)


def word_intrinsic(emit: Callable[..., None]) -> Any:
    """The Numba intrinsic, without a result, of the words that `emit(builder, *words)` takes."""
    names = list(inspect.signature(emit).parameters)[1:]

    def codegen(context, builder, signature, args):
        emit(builder, *args)
        return context.get_dummy_value()

    def typed(typingctx, *words):
        return types.void(*[types.intp] * len(names)), codegen

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("typingctx", *names)]
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(typed)
