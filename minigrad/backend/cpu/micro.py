"""Micro-kernels: register tiles, masked moves and shuffles of the host's widest vectors.

Each function here makes an intrinsic for a dtype ("float32" or "float64") and, for a tile, its
number of accumulators, which stay in registers over the whole sum. A kernel's source makes the ones
it calls at module level:

    tile = offset_tile("float32", 8, 3)

Addresses and offsets are in bytes, counts and leading dimensions in elements unless a name says
otherwise. Masked-off lanes neither fault nor store, so edges need no scalar loops. The unmasked
loads of a tile may read up to `vectors * lanes(dtype)` elements past the last valid column, which
is what the slack behind every buffer is for (memory.SLACK).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ITEMSIZE = {"float32": 4, "float64": 8}
_WORD, _INT32, _BIT = ir.IntType(64), ir.IntType(32), ir.IntType(1)


@cache
def vector_bytes() -> int:
    """Bytes of the widest vector the host computes on."""
    features = llvmlite.binding.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


def lanes(dtype: str) -> int:
    """Elements of `dtype` in one vector."""
    return vector_bytes() // ITEMSIZE[dtype]


def vector_registers() -> int:
    """Vector registers of the host: the bound on a tile's accumulators plus its operands."""
    return 32 if vector_bytes() == 64 else 16


def _word(n: int) -> ir.Constant:
    return ir.Constant(_WORD, n)


class _Emitter:
    """Writes vector instructions of one dtype with an IR builder."""

    def __init__(self, builder: ir.IRBuilder, dtype: str):
        self.builder, self.itemsize, self.lanes = builder, ITEMSIZE[dtype], lanes(dtype)
        self.scalar = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.itemsize}"
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.mask = ir.VectorType(_BIT, self.lanes)
        self.align = ir.Constant(_INT32, self.itemsize)

    def _intrinsic(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        return cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, arguments), f"llvm.{name}"
        )

    def add(self, address: Any, *terms: Any) -> Any:
        for term in terms:
            address = self.builder.add(address, _word(term) if isinstance(term, int) else term)
        return address

    def times(self, a: Any, n: int) -> Any:
        return self.builder.mul(a, _word(n))

    def vector_bytes(self, index: int) -> int:
        return index * self.lanes * self.itemsize

    def load(self, address: Any) -> Any:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        return self.builder.load(pointer, align=self.itemsize)

    def store(self, value: Any, address: Any) -> None:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        self.builder.store(value, pointer, align=self.itemsize)

    def scalar_pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, self.scalar.as_pointer())

    def load_word(self, address: Any, index: int) -> Any:
        pointer = self.builder.inttoptr(self.add(address, 8 * index), _WORD.as_pointer())
        return self.builder.load(pointer, align=8)

    def load_broadcast(self, address: Any) -> Any:
        value = self.builder.load(self.scalar_pointer(address), align=self.itemsize)
        return self.splat(value, self.vector)

    def splat(self, value: Any, vector: ir.VectorType) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
        return self.shuffle(one, undefined, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, picks: list[int]) -> Any:
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
        load = self._intrinsic(
            f"masked.load.{self.suffix}.p0",
            self.vector,
            [pointer, _INT32, self.mask, self.vector],
        )
        arguments = [self.builder.inttoptr(address, pointer), self.align, mask, self.zero]
        return self.builder.call(load, arguments)

    def masked_store(self, value: Any, address: Any, mask: Any) -> None:
        pointer = self.vector.as_pointer()
        store = self._intrinsic(
            f"masked.store.{self.suffix}.p0",
            ir.VoidType(),
            [self.vector, pointer, _INT32, self.mask],
        )
        arguments = [value, self.builder.inttoptr(address, pointer), self.align, mask]
        self.builder.call(store, arguments)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        # fmuladd, not fma: without the instruction fma would be a call into libm for each lane.
        function = self._intrinsic(f"fmuladd.{self.suffix}", self.vector, [self.vector] * 3)
        return self.builder.call(function, [a, b, c])

    def horizontal_sum(self, value: Any) -> Any:
        function = self._intrinsic(
            f"vector.reduce.fadd.{self.suffix}", self.scalar, [self.scalar, self.vector]
        )
        start = ir.Constant(self.scalar, 0.0)
        return self.builder.call(function, [start, value], fastmath=("reassoc",))

    def accumulate(
        self,
        rows: int,
        columns: int,
        nonempty: Any,
        walkers: list[Any],
        step: Callable[[list[Any], list[list[Any]]], tuple[list[Any], Any]],
    ) -> list[list[Any]]:
        """A loop over rows x columns accumulators in registers; returns their final values.

        `step(walkers, sums)` emits one iteration: it replaces entries of `sums` in place and
        returns the walkers' next values and the condition to go on. One basic block, one phi each.
        """
        b = self.builder
        entry = b.block
        loop, done = b.append_basic_block("sum"), b.append_basic_block("summed")
        b.cbranch(nonempty, loop, done)
        b.position_at_end(loop)
        moving = [b.phi(_WORD) for _ in walkers]
        phis = [[b.phi(self.vector) for _ in range(columns)] for _ in range(rows)]
        sums = [list(row) for row in phis]
        following, more = step(moving, sums)
        for phi, start, after in zip(moving, walkers, following, strict=True):
            phi.add_incoming(start, entry)
            phi.add_incoming(after, loop)
        b.cbranch(more, loop, done)
        b.position_at_end(done)
        result = []
        for row, values in zip(phis, sums, strict=True):
            result.append([])
            for phi, value in zip(row, values, strict=True):
                phi.add_incoming(self.zero, entry)
                phi.add_incoming(value, loop)
                last = b.phi(self.vector)
                last.add_incoming(self.zero, entry)
                last.add_incoming(value, loop)
                result[-1].append(last)
        return result

    def store_tile(
        self, sums: list[list[Any]], c: Any, row_bytes: Any, columns: Any, rows: Any, beta: Any
    ) -> None:
        """Store (beta == 0) or add the rows < `rows` and columns < `columns` of a tile."""
        b = self.builder
        adds = self.splat(b.icmp_signed("!=", beta, _word(0)), self.mask)
        for i, row in enumerate(sums):
            inside = b.icmp_signed("<", _word(i), rows)
            limit = b.select(inside, columns, _word(0))
            start = self.add(c, self.times(row_bytes, i))
            for j, value in enumerate(row):
                address = self.add(start, self.vector_bytes(j))
                mask = self.lanes_below(limit, j * self.lanes)
                old = self.masked_load(address, b.and_(mask, adds))
                self.masked_store(b.fadd(value, old), address, mask)


def _instructions(arity: int, emit: Callable[..., None]) -> tuple[Any, Any]:
    """What Numba wants of an intrinsic of `arity` words and no result: `emit(builder, *args)`."""

    def codegen(context, builder, signature, args):
        emit(builder, *args)
        return context.get_dummy_value()

    return types.void(*[types.intp] * arity), codegen


@cache
def offset_tile(dtype: str, rows: int, vectors: int) -> Any:
    """The matrix-product tile whose B rows come from an offset table.

    tile(K, A_packed, B, offsets_bytes, C, ldc, valid_columns, valid_rows, beta)

        C[i*ldc + j] (+)= sum over k < K of A_packed[k*rows + i] * (B + offsets_bytes[k])[j]

    for i < min(rows, valid_rows) and j < min(vectors*lanes, valid_columns). A_packed, B and C are
    byte addresses; `offsets_bytes` is the address of K int64 byte offsets; ldc is in elements.
    beta == 0 stores (whatever C held), any other value adds to C. K == 0 gives zeros. A_packed must
    hold `rows` readable values for every k (those of rows >= valid_rows are never stored), and B
    rows must be readable for vectors*lanes elements.
    """

    def emit(builder, k_extent, a, b, offsets, c, ldc, valid_columns, valid_rows, beta):
        e = _Emitter(builder, dtype)

        def step(walkers, sums):
            k, a_row, offset = walkers
            start = e.add(b, e.load_word(offset, 0))
            b_row = [e.load(e.add(start, e.vector_bytes(j))) for j in range(vectors)]
            for i in range(rows):
                value = e.load_broadcast(e.add(a_row, i * e.itemsize))
                for j in range(vectors):
                    sums[i][j] = e.multiply_add(value, b_row[j], sums[i][j])
            after = e.add(k, 1)
            following = [after, e.add(a_row, rows * e.itemsize), e.add(offset, 8)]
            return following, builder.icmp_signed("<", after, k_extent)

        nonempty = builder.icmp_signed(">", k_extent, _word(0))
        sums = e.accumulate(rows, vectors, nonempty, [_word(0), a, offsets], step)
        e.store_tile(sums, c, e.times(ldc, e.itemsize), valid_columns, valid_rows, beta)

    @intrinsic
    def tile(typingctx, k_extent, a, b, offsets, c, ldc, valid_columns, valid_rows, beta):
        return _instructions(9, emit)

    return tile


@cache
def tap_tile(dtype: str, rows: int, vectors: int) -> Any:
    """The weight-gradient tile with output channels in the lanes and filter taps as the rows.

    tile(count, run, gap_bytes, S, tap_offsets, D, ldd, C, ldc, valid_rows, beta)

        C[i*ldc + j] (+)= sum over t < count of (S + tap_offsets[i])[walk(t)] * D[t*ldd + j]

    for i < min(rows, valid_rows) and every j < vectors*lanes. walk(t) is t elements, plus gap_bytes
    after every `run` steps (the pixels of one image, then the next image). `tap_offsets` is the
    address of `rows` readable int64 byte offsets.
    """

    def emit(builder, count, run, gap, s, taps, d, ldd, c, ldc, valid_rows, beta):
        e = _Emitter(builder, dtype)
        offsets = [e.load_word(taps, i) for i in range(rows)]
        d_step = e.times(ldd, e.itemsize)

        def step(walkers, sums):
            t, s_at, d_at, wrap = walkers
            d_row = [e.load(e.add(d_at, e.vector_bytes(j))) for j in range(vectors)]
            for i in range(rows):
                value = e.load_broadcast(e.add(s_at, offsets[i]))
                for j in range(vectors):
                    sums[i][j] = e.multiply_add(value, d_row[j], sums[i][j])
            after = e.add(t, 1)
            wraps = builder.icmp_signed("==", after, wrap)
            s_after = e.add(s_at, e.itemsize, builder.select(wraps, gap, _word(0)))
            wrap_after = e.add(wrap, builder.select(wraps, run, _word(0)))
            following = [after, s_after, e.add(d_at, d_step), wrap_after]
            return following, builder.icmp_signed("<", after, count)

        nonempty = builder.icmp_signed(">", count, _word(0))
        sums = e.accumulate(rows, vectors, nonempty, [_word(0), s, d, run], step)
        columns = _word(vectors * e.lanes)
        e.store_tile(sums, c, e.times(ldc, e.itemsize), columns, valid_rows, beta)

    @intrinsic
    def tile(typingctx, count, run, gap, s, taps, d, ldd, c, ldc, valid_rows, beta):
        return _instructions(11, emit)

    return tile


@cache
def dot_tile(dtype: str, rows: int, taps: int) -> Any:
    """The weight-gradient tile with pixels in the lanes, for few output channels.

    tile(images, pixels, D, d_image, d_row, S, s_image, tap_offsets, C, ldc, valid_rows, valid_taps,
         beta)

        C[i*ldc + j] (+)= sum over g < images, q < pixels of
                          (D + g*d_image + i*d_row)[q] * (S + g*s_image + tap_offsets[j])[q]

    for i < min(rows, valid_rows), j < min(taps, valid_taps). d_image, d_row and s_image are bytes;
    `tap_offsets` is the address of `taps` readable int64 byte offsets. One horizontal sum a result.
    """

    def emit(builder, images, pixels, d, d_image, d_row, s, s_image, table, c, ldc, *rest):
        valid_rows, valid_taps, beta = rest
        e = _Emitter(builder, dtype)
        offsets = [e.load_word(table, j) for j in range(taps)]
        # Rows past the last one read row 0 again: they must not touch foreign memory.
        in_rows = [builder.icmp_signed("<", _word(i), valid_rows) for i in range(rows)]
        starts = [builder.select(ok, e.times(d_row, i), _word(0)) for i, ok in enumerate(in_rows)]

        def step(walkers, sums):
            image, q, d_at, s_at = walkers
            q_bytes = e.times(q, e.itemsize)
            mask = e.lanes_below(builder.sub(pixels, q))
            s_here, d_here = e.add(s_at, q_bytes), e.add(d_at, q_bytes)
            right = [e.masked_load(e.add(s_here, offsets[j]), mask) for j in range(taps)]
            for i in range(rows):
                left = e.masked_load(e.add(d_here, starts[i]), mask)
                for j in range(taps):
                    sums[i][j] = e.multiply_add(left, right[j], sums[i][j])
            q_after = e.add(q, e.lanes)
            wraps = builder.icmp_signed(">=", q_after, pixels)

            zero = _word(0)
            image_after = e.add(image, builder.select(wraps, _word(1), zero))
            following = [
                image_after,
                builder.select(wraps, zero, q_after),
                e.add(d_at, builder.select(wraps, d_image, zero)),
                e.add(s_at, builder.select(wraps, s_image, zero)),
            ]
            return following, builder.icmp_signed("<", image_after, images)

        nonempty = builder.and_(
            builder.icmp_signed(">", images, _word(0)), builder.icmp_signed(">", pixels, _word(0))
        )
        sums = e.accumulate(rows, taps, nonempty, [_word(0), _word(0), d, s], step)
        adds = builder.icmp_signed("!=", beta, _word(0))
        nothing = ir.Constant(e.scalar, 0.0)
        for i in range(rows):
            for j in range(taps):
                inside = builder.icmp_signed("<", _word(j), valid_taps)
                with builder.if_then(builder.and_(in_rows[i], inside)):
                    total = e.horizontal_sum(sums[i][j])
                    row = e.add(c, e.times(ldc, i * e.itemsize), j * e.itemsize)
                    pointer = e.scalar_pointer(row)
                    old = builder.load(pointer, align=e.itemsize)
                    # A select, not a product with beta: uninitialised memory may hold a NaN.
                    total = builder.fadd(total, builder.select(adds, old, nothing))
                    builder.store(total, pointer, align=e.itemsize)

    @intrinsic
    def tile(
        typingctx,
        images,
        pixels,
        d,
        d_image,
        d_row,
        s,
        s_image,
        table,
        c,
        ldc,
        valid_rows,
        valid_taps,
        beta,
    ):
        return _instructions(13, emit)

    return tile


@cache
def copy_window(dtype: str) -> Any:
    """move(dst, src, low, high): one vector, dst[l] = src[l] for low <= l < high, 0 elsewhere."""

    def emit(builder, dst, src, low, high):
        e = _Emitter(builder, dtype)
        mask = builder.and_(e.lanes_below(high), builder.not_(e.lanes_below(low)))
        e.store(e.masked_load(src, mask), dst)

    @intrinsic
    def move(typingctx, dst, src, low, high):
        return _instructions(4, emit)

    return move


@cache
def copy_even_window(dtype: str) -> Any:
    """move(dst, src, low, high): one vector, dst[l] = src[2*l] for low <= l < high, 0 elsewhere."""

    def emit(builder, dst, src, low, high):
        e = _Emitter(builder, dtype)
        halves = []
        for half in range(2):
            first = half * e.lanes
            # Source element m holds a wanted value iff low <= m / 2 < high and m is even.
            ceiling = builder.sub(builder.shl(high, _word(1)), _word(1))
            mask = e.lanes_below(ceiling, first)
            mask = builder.and_(
                mask, builder.not_(e.lanes_below(builder.shl(low, _word(1)), first))
            )
            halves.append(e.masked_load(e.add(src, e.vector_bytes(half)), mask))
        e.store(e.shuffle(halves[0], halves[1], [2 * lane for lane in range(e.lanes)]), dst)

    @intrinsic
    def move(typingctx, dst, src, low, high):
        return _instructions(4, emit)

    return move


@cache
def copy_prefix(dtype: str) -> Any:
    """move(dst, src, n): the first min(n, lanes) elements; the rest of dst is left alone."""

    def emit(builder, dst, src, n):
        e = _Emitter(builder, dtype)
        mask = e.lanes_below(n)
        e.masked_store(e.masked_load(src, mask), dst, mask)

    @intrinsic
    def move(typingctx, dst, src, n):
        return _instructions(3, emit)

    return move


@cache
def interleave(dtype: str) -> Any:
    """move(dst, even, odd, n): dst[2*l], dst[2*l+1] = even[l], odd[l], the first n of dst."""

    def emit(builder, dst, even, odd, n):
        e = _Emitter(builder, dtype)
        a, b = e.load(even), e.load(odd)
        for half in range(2):
            first = half * e.lanes // 2
            picks = [first + lane // 2 + lane % 2 * e.lanes for lane in range(e.lanes)]
            address = e.add(dst, e.vector_bytes(half))
            e.masked_store(e.shuffle(a, b, picks), address, e.lanes_below(n, half * e.lanes))

    @intrinsic
    def move(typingctx, dst, even, odd, n):
        return _instructions(4, emit)

    return move


@cache
def transpose(dtype: str) -> Any:
    """move(dst, dst_row_bytes, src, src_row_bytes, columns, rows): one lanes x lanes block.

    dst[c][r] = src[r][c]; source rows >= `rows` and columns >= `columns` read as 0, and all of the
    lanes x lanes block at dst is written.
    """

    def emit(builder, dst, dst_row, src, src_row, columns, rows):
        e = _Emitter(builder, dtype)
        n = e.lanes
        block = []
        for r in range(n):
            limit = builder.select(builder.icmp_signed("<", _word(r), rows), columns, _word(0))
            block.append(e.masked_load(e.add(src, e.times(src_row, r)), e.lanes_below(limit)))
        distance = n // 2
        while distance:  # swap the off-diagonal quarters of ever smaller blocks
            low = [lane if not lane & distance else n + lane - distance for lane in range(n)]
            high = [lane + distance if not lane & distance else n + lane for lane in range(n)]
            for r in range(n):
                if not r & distance:
                    a, b = block[r], block[r + distance]
                    block[r] = e.shuffle(a, b, low)
                    block[r + distance] = e.shuffle(a, b, high)
            distance //= 2
        for r in range(n):
            e.store(block[r], e.add(dst, e.times(dst_row, r)))

    @intrinsic
    def move(typingctx, dst, dst_row, src, src_row, columns, rows):
        return _instructions(6, emit)

    return move
