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

from llvmlite import ir
from numba.core import cgutils

from minigrad.backend.cpu.vector.builder import VectorBuilder, copy_first, word, word_intrinsic


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

    @word_intrinsic
    def tile(builder, k_extent, a, b, offsets, c, ldc, valid_columns, valid_rows, beta):
        e = VectorBuilder(builder, dtype)

        def step(walkers, sums):
            k, a_row, offset = walkers
            start = e.add(b, e.load_word(offset, 0))
            b_row = [e.load(e.add(start, e.vector_bytes(j))) for j in range(vectors)]
            e.add_products(sums, [e.add(a_row, i * e.itemsize) for i in range(rows)], b_row)
            after = e.add(k, 1)
            following = [after, e.add(a_row, rows * e.itemsize), e.add(offset, 8)]
            return following, builder.icmp_signed("<", after, k_extent)

        nonempty = builder.icmp_signed(">", k_extent, word(0))
        sums = e.accumulate(rows * vectors * [e.zero], nonempty, [word(0), a, offsets], step)
        e.store_tile(sums, vectors, c, e.times(ldc, e.itemsize), valid_columns, valid_rows, beta)

    return tile


@cache
def strided_tile(dtype: str, rows: int, vectors: int) -> Any:
    """The tile whose A may lie anywhere: packed, row-major or column-major, at the same speed.

    tile(depth, A, a_row, a_depth, B, b_depth, C, c_row, valid_columns, valid_rows, beta)

        C[i][j] (+)= sum over k < depth of A[i][k] * B[k][j]

    for i < min(rows, valid_rows) and j < min(vectors*lanes, valid_columns). A[i][k] is at
    A + i*a_row + k*a_depth, B[k] at B + k*b_depth and C[i] at C + i*c_row, all in bytes. beta == 0
    stores (whatever C held), any other value adds. depth == 0 gives zeros. Of A only valid rows are
    read; rows of B must be readable for vectors*lanes elements.
    """

    @word_intrinsic
    def tile(builder, depth, a, a_row, a_depth, b, b_depth, c, c_row, columns, valid_rows, beta):
        e = VectorBuilder(builder, dtype)
        # Rows past the last one read it again: they must not touch foreign memory.
        last = builder.sub(valid_rows, word(1))
        starts = [word(0)]
        for i in range(1, rows):
            row = builder.select(builder.icmp_signed("<", word(i), last), word(i), last)
            starts.append(builder.mul(row, a_row))

        def step(walkers, sums):
            k, a_at, b_at = walkers
            b_row = [e.load(e.add(b_at, e.vector_bytes(j))) for j in range(vectors)]
            e.add_products(sums, [e.add(a_at, start) for start in starts], b_row)
            after = e.add(k, 1)
            following = [after, e.add(a_at, a_depth), e.add(b_at, b_depth)]
            return following, builder.icmp_signed("<", after, depth)

        nonempty = builder.icmp_signed(">", depth, word(0))
        sums = e.accumulate(rows * vectors * [e.zero], nonempty, [word(0), a, b], step)
        e.store_tile(sums, vectors, c, c_row, columns, valid_rows, beta)

    return tile


@cache
def turned_block(dtype: str) -> Any:
    """turn(dst, dst_row, src, src_row, rows): dst[c][r] = src[r][c] for c, r < lanes.

    All lanes x lanes of dst are written, with copies of the last row where r >= rows > 0; steps are
    in bytes. Rows must be readable for that many elements. No lane is masked off, as an absent page
    would make that slow.
    """

    @word_intrinsic
    def turn(builder, dst, dst_row, src, src_row, rows):
        e = VectorBuilder(builder, dtype)
        last = builder.sub(rows, word(1))
        block = []
        for r in range(e.lanes):
            row = builder.select(builder.icmp_signed("<", word(r), rows), word(r), last)
            block.append(e.load(e.add(src, builder.mul(row, src_row))))
        for r, row in enumerate(e.transposed(block)):
            e.store(row, e.add(dst, e.times(dst_row, r)))

    return turn


@cache
def tap_tile(dtype: str, rows: int, vectors: int) -> Any:
    """The weight-gradient tile with output channels in the lanes and filter taps as the rows.

    tile(count, run, gap_bytes, S, tap_offsets, D, ldd, C, ldc, valid_rows, beta)

        C[i*ldc + j] (+)= sum over t < count of (S + tap_offsets[i])[walk(t)] * D[t*ldd + j]

    for i < min(rows, valid_rows) and every j < vectors*lanes. walk(t) is t elements, plus gap_bytes
    after every `run` steps (the pixels of one image, then the next image). `tap_offsets` is the
    address of `rows` readable int64 byte offsets.
    """

    @word_intrinsic
    def tile(builder, count, run, gap, s, taps, d, ldd, c, ldc, valid_rows, beta):
        e = VectorBuilder(builder, dtype)
        offsets = [e.load_word(taps, i) for i in range(rows)]
        d_step = e.times(ldd, e.itemsize)

        def step(walkers, sums):
            t, s_at, d_at, wrap = walkers
            d_row = [e.load(e.add(d_at, e.vector_bytes(j))) for j in range(vectors)]
            e.add_products(sums, [e.add(s_at, offset) for offset in offsets], d_row)
            after = e.add(t, 1)
            wraps = builder.icmp_signed("==", after, wrap)
            s_after = e.add(s_at, e.itemsize, builder.select(wraps, gap, word(0)))
            wrap_after = e.add(wrap, builder.select(wraps, run, word(0)))
            following = [after, s_after, e.add(d_at, d_step), wrap_after]
            return following, builder.icmp_signed("<", after, count)

        nonempty = builder.icmp_signed(">", count, word(0))
        sums = e.accumulate(rows * vectors * [e.zero], nonempty, [word(0), s, d, run], step)
        columns = word(vectors * e.lanes)
        e.store_tile(sums, vectors, c, e.times(ldc, e.itemsize), columns, valid_rows, beta)

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

    @word_intrinsic
    def tile(builder, images, pixels, d, d_image, d_row, s, s_image, table, c, ldc, valid_rows,
             valid_taps, beta):  # fmt: skip
        e = VectorBuilder(builder, dtype)
        offsets = [e.load_word(table, j) for j in range(taps)]
        # Rows past the last one read row 0 again: they must not touch foreign memory.
        in_rows = [builder.icmp_signed("<", word(i), valid_rows) for i in range(rows)]
        starts = [builder.select(ok, e.times(d_row, i), word(0)) for i, ok in enumerate(in_rows)]

        def multiply(q, load, d_at, s_at, sums):
            place = e.times(q, e.itemsize)
            left = [e.add(d_at, start, place) for start in starts]
            right = [e.add(s_at, offset, place) for offset in offsets]
            _multiply_all(e, load, left, right, sums)

        whole = builder.and_(pixels, word(-e.lanes))
        # The pixels past the last whole vector are one step more; their mask stays in a register.
        rest = e.lanes_below(builder.sub(pixels, whole))

        def of_image(walkers, sums):
            image, d_at, s_at = walkers

            def vector_step(walkers, sums):
                (q,) = walkers
                multiply(q, e.load, d_at, s_at, sums)
                after = e.add(q, e.lanes)
                return [after], builder.icmp_signed("<", after, whole)

            def rest_step(walkers, sums):
                multiply(whole, lambda address: e.masked_load(address, rest), d_at, s_at, sums)
                return [], ir.Constant(ir.IntType(1), 0)

            some = builder.icmp_signed(">", whole, word(0))
            sums[:] = e.accumulate(sums, some, [word(0)], vector_step)
            sums[:] = e.accumulate(sums, builder.icmp_signed("<", whole, pixels), [], rest_step)
            after = e.add(image, 1)
            following = [after, e.add(d_at, d_image), e.add(s_at, s_image)]
            return following, builder.icmp_signed("<", after, images)

        nonempty = builder.icmp_signed(">", images, word(0))
        sums = e.accumulate(rows * taps * [e.zero], nonempty, [word(0), d, s], of_image)
        add = builder.icmp_signed("!=", beta, word(0))
        inside = [builder.icmp_signed("<", word(j), valid_taps) for j in range(taps)]
        for i in range(rows):
            for j in range(taps):
                with builder.if_then(builder.and_(in_rows[i], inside[j])):
                    row = e.add(c, e.times(ldc, i * e.itemsize), j * e.itemsize)
                    _store_sum(e, sums[i * taps + j], row, add)

    return tile


def _multiply_all(
    e: VectorBuilder, load: Callable[[Any], Any], left: list[Any], right: list[Any], sums: list[Any]
) -> None:
    """Add the products of each vector at an address of `left` with each at one of `right`."""
    # Of the shorter side all vectors are in registers, of the longer one at a time.
    by_left = len(left) >= len(right)
    longer, shorter = (left, right) if by_left else (right, left)
    kept = [load(address) for address in shorter]
    for m, address in enumerate(longer):
        value = load(address)
        for n, other in enumerate(kept):
            at = m * len(right) + n if by_left else n * len(right) + m
            sums[at] = e.multiply_add(value, other, sums[at])


def _store_sum(e: VectorBuilder, lanes: Any, address: Any, add: Any) -> None:
    """Store the sum of the lanes, or add it if `add`."""
    total, pointer = e.horizontal_sum(lanes), e.scalar_pointer(address)
    old = e.builder.load(pointer, align=e.itemsize)
    # A select, not a product with beta: uninitialised memory may hold a NaN.
    old = e.builder.select(add, old, ir.Constant(e.scalar, 0.0))
    e.builder.store(e.builder.fadd(total, old), pointer, align=e.itemsize)


@cache
def copy_windows(dtype: str, step: int) -> Any:
    """move(dst, dst_row, src, src_offsets, absent, clear, rows, low, high): a vector of each row.

        (dst + i*dst_row)[l] = (src + src_offsets[i])[step*l]  for low <= l < high, 0 elsewhere

    for i < rows, in order. `src_offsets` is the address of int64 byte offsets. A row whose offset
    is `absent` becomes zeros, or stays as it is if `clear` is 0. `step` is 1 or 2; of the source
    nothing but wanted elements, and those between them, is read.
    """

    @word_intrinsic
    def move(builder, dst, dst_row, src, src_offsets, absent, clear, rows, low, high):
        e = VectorBuilder(builder, dtype)
        # The masks are made once for all rows. Source element m holds a wanted value iff
        # low <= m / step < high and m is a multiple of step.
        above = e.times(builder.sub(high, word(1)), step)
        above, below = e.add(above, 1), e.times(low, step)
        masks = [
            builder.and_(
                e.lanes_below(above, part * e.lanes),
                builder.not_(e.lanes_below(below, part * e.lanes)),
            )
            for part in range(step)
        ]
        with cgutils.for_range(builder, rows, intp=dst.type) as row:
            address = e.add(dst, builder.mul(row.index, dst_row))
            place = e.add(src_offsets, e.times(row.index, 8))
            offset = e.load_word(place, 0)
            with builder.if_else(builder.icmp_signed("==", offset, absent)) as (nothing, something):
                with nothing, builder.if_then(builder.icmp_signed("!=", clear, word(0))):
                    e.store(e.zero, address)
                with something:
                    start = e.add(src, offset)
                    parts = [
                        e.masked_load(e.add(start, e.vector_bytes(part)), mask)
                        for part, mask in enumerate(masks)
                    ]
                    wanted = parts[0]
                    if step == 2:
                        wanted = e.shuffle(
                            parts[0], parts[1], [2 * lane for lane in range(e.lanes)]
                        )
                    e.store(wanted, address)

    return move


@cache
def copy_prefix(dtype: str) -> Any:
    """move(dst, src, n): one vector, the first min(n, lanes) elements of src, then zeros."""

    @word_intrinsic
    def move(builder, dst, src, n):
        e = VectorBuilder(builder, dtype)
        e.store(e.masked_load(src, e.lanes_below(n)), dst)

    return move


@cache
def interleave(dtype: str) -> Any:
    """move(dst, even, odd, n): dst[2*l], dst[2*l+1] = even[l], odd[l], the first n of dst."""

    @word_intrinsic
    def move(builder, dst, even, odd, n):
        e = VectorBuilder(builder, dtype)
        a, b = e.load(even), e.load(odd)
        for half in range(2):
            first = half * e.lanes // 2
            picks = [first + lane // 2 + lane % 2 * e.lanes for lane in range(e.lanes)]
            mixed = e.spill([e.shuffle(a, b, picks)])
            left = builder.sub(n, word(half * e.lanes))
            start = e.add(dst, e.vector_bytes(half))
            copy_first(builder, start, mixed, left, e.vector, e.itemsize)

    return move


@cache
def transpose(dtype: str) -> Any:
    """move(dst, dst_row_bytes, src, src_row_bytes, columns, rows): one lanes x lanes block.

    dst[c][r] = src[r][c]; source rows >= `rows` and columns >= `columns` read as 0, and all of the
    lanes x lanes block at dst is written.
    """

    @word_intrinsic
    def move(builder, dst, dst_row, src, src_row, columns, rows):
        e = VectorBuilder(builder, dtype)
        block = []
        for r in range(e.lanes):
            limit = builder.select(builder.icmp_signed("<", word(r), rows), columns, word(0))
            block.append(e.masked_load(e.add(src, e.times(src_row, r)), e.lanes_below(limit)))
        for r, row in enumerate(e.transposed(block)):
            e.store(row, e.add(dst, e.times(dst_row, r)))

    return move
