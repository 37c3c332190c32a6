"""Sources of the matrix-product kernels, and the register tile they share.

Every kernel computes C[z] (rows, columns) = A[z] (rows, depth) @ B[z] (depth, columns) for z < batch.
The work is a grid of units: batch x depth_groups x row_groups x column_groups. Task t of `tasks` does
the units [units*t/tasks, units*(t+1)/tasks) and owns the scratch at scratch + t*scratch_bytes. Each
depth group writes its own partial result, c_part bytes apart.
"""

from __future__ import annotations

from functools import cache
from string import Template
from typing import Any

from numba import types
from numba.extending import intrinsic

from minigrad.backend.cpu.jit import Kernel, compile_kernel
from minigrad.backend.cpu.micro import ITEMSIZE, _Emitter, _word, lanes, vector_registers

# The table of every product kernel. Strides are in bytes, extents and blocks in elements.
WORDS = """
    batch rows columns depth
    a a_batch a_row a_depth
    b b_batch b_depth b_column
    c c_batch c_row c_column c_part
    row_groups column_groups depth_groups tasks
    depth_block column_block pack_a pack_b
    scratch scratch_bytes
""".split()


def tile_shape() -> tuple[int, int]:
    """Rows and vectors of the widest tile: 24 accumulators of 32 registers, or 12 of 16."""
    return (8, 3) if vector_registers() >= 32 else (6, 2)


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

    def emit(builder, depth, a, a_row, a_depth, b, b_depth, c, c_row, columns, valid_rows, beta):
        e = _Emitter(builder, dtype)
        # Rows past the last one read it again: they must not touch foreign memory.
        last = builder.sub(valid_rows, _word(1))
        starts = [_word(0)]
        for i in range(1, rows):
            row = builder.select(builder.icmp_signed("<", _word(i), last), _word(i), last)
            starts.append(builder.mul(row, a_row))

        def step(walkers, sums):
            k, a_at, b_at = walkers
            b_row = [e.load(e.add(b_at, e.vector_bytes(j))) for j in range(vectors)]
            for i in range(rows):
                value = e.load_broadcast(e.add(a_at, starts[i]))
                for j in range(vectors):
                    sums[i][j] = e.multiply_add(value, b_row[j], sums[i][j])
            after = e.add(k, 1)
            following = [after, e.add(a_at, a_depth), e.add(b_at, b_depth)]
            return following, builder.icmp_signed("<", after, depth)

        nonempty = builder.icmp_signed(">", depth, _word(0))
        sums = e.accumulate(rows, vectors, nonempty, [_word(0), a, b], step)
        for i, row in enumerate(sums):
            # A branch, not a mask: a masked-off access to an absent page takes a microsecond.
            with builder.if_then(builder.icmp_signed("<", _word(i), valid_rows)):
                start = e.add(c, e.times(c_row, i))
                e.store_tile([row], start, c_row, columns, _word(1), beta)

    signature = types.void(*[types.intp] * 11)

    def codegen(context, builder, signature, args):
        emit(builder, *args)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, depth, a, a_row, a_depth, b, b_depth, c, c_row, columns, valid_rows, beta):
        return signature, codegen

    return tile


# Splits the grid and calls unit(...) on one share of it; unit's text comes before this.
_GRID = """
def kernel(table, begin, end):
$load
    units = batch * depth_groups * row_groups * column_groups
    row_panels = (rows + $ROWS - 1) // $ROWS
    column_panels = (columns + $LANES - 1) // $LANES
    for task in range(begin, end):
        space = scratch + task * scratch_bytes
        for index in range(units * task // tasks, units * (task + 1) // tasks):
            column_group = index % column_groups
            index //= column_groups
            row_group = index % row_groups
            index //= row_groups
            depth_group = index % depth_groups
            z = index // depth_groups
            i0 = row_panels * row_group // row_groups * $ROWS
            i1 = min(row_panels * (row_group + 1) // row_groups * $ROWS, rows)
            j0 = column_panels * column_group // column_groups * $LANES
            j1 = min(column_panels * (column_group + 1) // column_groups * $LANES, columns)
            k0 = depth * depth_group // depth_groups
            k1 = depth * (depth_group + 1) // depth_groups
            unit(
                i1 - i0, j1 - j0, k1 - k0,
                a + z * a_batch + i0 * a_row + k0 * a_depth, a_row, a_depth,
                b + z * b_batch + k0 * b_depth + j0 * b_column, b_depth, b_column,
                c + z * c_batch + depth_group * c_part + i0 * c_row + j0 * c_column,
                c_row, c_column, depth_block, column_block, pack_a, pack_b, space,
            )
"""

_UNIT = """
@njit(**OPTIONS)
def unit(rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column, c, c_row, c_column,
         depth_block, column_block, pack_a, pack_b, space):
"""

_TILES = """
from minigrad.backend.cpu.gemm_kernels import strided_tile
from minigrad.backend.cpu.micro import copy_prefix, transpose

copy = copy_prefix("$T")
flip = transpose("$T")
"""

_TILE = """
tile_$v = strided_tile("$T", $ROWS, $v)


@njit(**OPTIONS)
def tile$v(depth, a, a_row, a_depth, b, b_depth, c, c_row, columns, rows, beta):
    tile_$v(depth, a, a_row, a_depth, b, b_depth, c, c_row, columns, rows, beta)

"""

# A packed panel holds, for each k, `width` neighbours of the other axis. It is written for k up to
# the next multiple of the lanes, and one vector further: room that the caller leaves.
_PACK = """
@njit(**OPTIONS)
def pack(to, width, source, step, k_step, valid, depth):
    row = width * $SIZE
    valid = min(width, valid)
    if step == $SIZE:
        for k in range(depth):
            for i in range(0, valid, $LANES):
                copy(to + k * row + i * $SIZE, source + k * k_step + i * $SIZE, valid - i)
    elif k_step == $SIZE:
        # Downwards, since where width is no multiple of the lanes a block spills into the next row.
        for i in range((valid - 1) // $LANES * $LANES, -1, -$LANES):
            for k in range(0, depth, $LANES):
                flip(to + k * row + i * $SIZE, row, source + i * step + k * k_step, step,
                     depth - k, valid - i)
    else:
        for i in range(valid):
            for k in range(depth):
                store_$T(to + k * row + i * $SIZE, 0, load_$T(source + i * step + k * k_step, 0))

"""

# The loop order keeps a panel of A in the first cache and a block of B in the second.
_TILED_UNIT = """
    panel_bytes = ((depth_block + $LANES - 1) // $LANES * $LANES * $ROWS + $LANES) * $SIZE
    b_space = space
    if pack_a:
        b_space += (rows + $ROWS - 1) // $ROWS * panel_bytes
    b_panel_bytes = (depth_block + $LANES - 1) // $LANES * $LANES * $WIDTH * $SIZE
    for k0 in range(0, max(depth, 1), depth_block):
        depth_here = min(depth_block, depth - k0)
        for j0 in range(0, columns, column_block):
            j1 = min(columns, j0 + column_block)
            if pack_b:
                for j in range(j0, j1, $WIDTH):
                    pack(b_space + (j - j0) // $WIDTH * b_panel_bytes, $WIDTH,
                         b + k0 * b_depth + j * b_column, b_column, b_depth, j1 - j, depth_here)
            for i in range(0, rows, $ROWS):
                a_here, a_row_here, a_depth_here = a + i * a_row + k0 * a_depth, a_row, a_depth
                if pack_a:
                    packed = space + i // $ROWS * panel_bytes
                    if j0 == 0:
                        pack(packed, $ROWS, a_here, a_row, a_depth, rows - i, depth_here)
                    a_here, a_row_here, a_depth_here = packed, $SIZE, $ROWS * $SIZE
                for j in range(j0, j1, $WIDTH):
                    b_here, b_depth_here = b + k0 * b_depth + j * $SIZE, b_depth
                    if pack_b:
                        b_here = b_space + (j - j0) // $WIDTH * b_panel_bytes
                        b_depth_here = $WIDTH * $SIZE
                    left = j1 - j
                    $CHOOSE
"""

_CALL = (
    "tile$v(depth_here, a_here, a_row_here, a_depth_here, b_here, b_depth_here,"
    " c + i * c_row + j * $SIZE, c_row, left, rows - i, k0)"
)

# For a few rows: one pass over B in memory order, four of its rows at a time.
_ROWS_UNIT = """
    for j0 in range(0, columns, column_block):
        width = min(column_block, columns - j0)
        for j in range(rows * width):
            store_$T(space, j, 0)
        for k0 in range(0, depth // 4 * 4, 4):
            b0 = b + k0 * b_depth + j0 * $SIZE
            b1, b2, b3 = b0 + b_depth, b0 + 2 * b_depth, b0 + 3 * b_depth
            for i in range(rows):
                at = a + i * a_row + k0 * a_depth
                a0, a1 = load_$T(at, 0), load_$T(at + a_depth, 0)
                a2, a3 = load_$T(at + 2 * a_depth, 0), load_$T(at + 3 * a_depth, 0)
                sums = space + i * width * $SIZE
                for j in range(width):
                    store_$T(sums, j, load_$T(sums, j) + (
                        (a0 * load_$T(b0, j) + a1 * load_$T(b1, j))
                        + (a2 * load_$T(b2, j) + a3 * load_$T(b3, j))))
        for k in range(depth // 4 * 4, depth):
            b0 = b + k * b_depth + j0 * $SIZE
            for i in range(rows):
                a0 = load_$T(a + i * a_row + k * a_depth, 0)
                sums = space + i * width * $SIZE
                for j in range(width):
                    store_$T(sums, j, load_$T(sums, j) + a0 * load_$T(b0, j))
        for i in range(rows):
            for j in range(width):
                value = load_$T(space, i * width + j)
                store_$T(c + i * c_row + (j0 + j) * c_column, 0, value)
"""

# For a few rows against columns of B that are contiguous: dot products along the depth.
_DOTS_UNIT = """
    if a_depth != $SIZE:
        for i in range(rows):
            for k in range(depth):
                store_$T(space, i * depth + k, load_$T(a + i * a_row + k * a_depth, 0))
        a, a_row = space, depth * $SIZE
    for j in range(columns):
        column = b + j * b_column
        for i in range(rows):
            row = a + i * a_row
            total = types.$T(0)
            for k in range(depth):
                total += load_$T(row, k) * load_$T(column, k)
            store_$T(c + i * c_row + j * c_column, 0, total)
"""

# For integers, which wrap: summing in int64 and keeping the low bits does so in every width.
_WRAPPING_UNIT = """
    for i in range(rows):
        for j in range(columns):
            total = types.int64(0)
            for k in range(depth):
                left = types.int64(load_$T(a + i * a_row + k * a_depth, 0))
                total += left * types.int64(load_$T(b + k * b_depth + j * b_column, 0))
            store_$T(c + i * c_row + j * c_column, 0, types.$T(total))
"""

# out[z, i, j] = the sum over its `parts` of a dense (parts, batch, rows, columns) array.
GATHER_WORDS = "batch rows columns parts source c c_batch c_row c_column".split()
_GATHER = """
def kernel(table, begin, end):
$load
    part = batch * rows * columns * $SIZE
    for row in range(begin, end):
        at = source + row * columns * $SIZE
        to = c + row // rows * c_batch + row % rows * c_row
        for j in range(columns):
            total = load_$T(at + j * $SIZE, 0)
            for p in range(1, parts):
                total += load_$T(at + p * part + j * $SIZE, 0)
            store_$T(to + j * c_column, 0, total)
"""


def _loads(words: list[str]) -> str:
    return "\n".join(f"    {word} = load_int64(table, {i})" for i, word in enumerate(words))


def _compiled(kind: str, dtype: str, template: str, words: list[str], **values: Any) -> Kernel:
    source = Template(template).substitute(load=_loads(words), T=dtype, **values)
    return compile_kernel(f"{kind}_{dtype}", source)


def tiles_kernel(dtype: str) -> Kernel:
    """The general float product, of register tiles. C must have contiguous rows."""
    rows, vectors = tile_shape()
    # The columns left of the last panel take the narrowest tile that covers them.
    choose = []
    for v in range(vectors, 0, -1):
        branch = "else" if v == 1 else f"{'if' if v == vectors else 'elif'} left > {v - 1} * $LANES"
        choose.append(f"{branch}:\n    {_CALL.replace('$v', str(v))}")
    chosen = "\n".join(choose).replace("\n", "\n" + 20 * " ")
    tiles = "".join(_TILE.replace("$v", str(v)) for v in range(1, vectors + 1))
    unit = _TILED_UNIT.replace("$CHOOSE", chosen)
    width = vectors * lanes(dtype)
    return _compiled(
        "matmul_tiles", dtype, _TILES + tiles + _PACK + _UNIT + unit + _GRID, WORDS,
        SIZE=ITEMSIZE[dtype], ROWS=rows, LANES=lanes(dtype), WIDTH=width,
    )  # fmt: skip


def rows_kernel(dtype: str) -> Kernel:
    """For few rows and a B with contiguous rows. C may be strided."""
    return _row_wise("matmul_rows", dtype, _ROWS_UNIT)


def dots_kernel(dtype: str) -> Kernel:
    """For few rows and a B with contiguous columns. C may be strided."""
    return _row_wise("matmul_dots", dtype, _DOTS_UNIT)


def wrapping_kernel(dtype: str) -> Kernel:
    """The integer product, modulo 2 ** bits."""
    return _compiled(
        "matmul_wrapping", dtype, _UNIT + _WRAPPING_UNIT + _GRID, WORDS, ROWS=1, LANES=1
    )


def gather_kernel(dtype: str) -> Kernel:
    """Sums partial results, and brings a dense result to a strided place."""
    return _compiled("matmul_gather", dtype, _GATHER, GATHER_WORDS, SIZE=ITEMSIZE[dtype])


def _row_wise(kind: str, dtype: str, unit: str) -> Kernel:
    return _compiled(
        kind, dtype, _UNIT + unit + _GRID, WORDS,
        SIZE=ITEMSIZE[dtype], ROWS=1, LANES=lanes(dtype),
    )  # fmt: skip
