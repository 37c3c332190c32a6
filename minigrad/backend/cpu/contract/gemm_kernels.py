"""Sources of the matrix-product kernels.

Each computes C[z] (rows, columns) = A[z] (rows, depth) @ B[z] (depth, columns) for z < batch. The
work is a grid of units: batch x depth_groups x row_groups x column_groups. Task t of `tasks` does
the units [units*t/tasks, units*(t+1)/tasks) and owns the scratch at scratch + t*scratch_bytes. Each
depth group writes its own partial result, c_part bytes apart.
"""

from __future__ import annotations

from string import Template
from textwrap import indent

from minigrad.backend.cpu.machine import vector_registers
from minigrad.backend.cpu.runtime.jit import Kernel, compile_kernel
from minigrad.backend.cpu.vector.builder import ITEMSIZE, lanes

# The table of every product kernel. Strides are in bytes, extents and blocks in elements.
WORDS = """
    batch rows columns depth
    a a_batch a_row a_depth
    b b_batch b_depth b_column
    c c_batch c_row c_column c_part
    row_groups column_groups depth_groups tasks
    depth_block column_block pack_a pack_b
    scratch scratch_bytes
"""


def tile_shape() -> tuple[int, int]:
    """Rows and vectors of the widest tile: 24 accumulators of 32 registers, or 12 of 16."""
    return (8, 3) if vector_registers() >= 32 else (6, 2)


# One function, since every level of calls has LLVM optimize the inlined code once more. A unit is
# m x n over k products, its operands at a0, b0 and c0.
_GRID = """
def kernel(table, begin, end):
$load
    units = batch * depth_groups * row_groups * column_groups
    row_panels = (rows + $ROWS - 1) // $ROWS
    column_panels = (columns + $LANES - 1) // $LANES
    for task in range(begin, end):
        space = scratch + task * scratch_bytes
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            column_group = unit % column_groups
            row_group = unit // column_groups % row_groups
            depth_group = unit // (column_groups * row_groups) % depth_groups
            z = unit // (column_groups * row_groups * depth_groups)
            i0 = row_panels * row_group // row_groups * $ROWS
            j0 = column_panels * column_group // column_groups * $LANES
            k0 = depth * depth_group // depth_groups
            m = min(row_panels * (row_group + 1) // row_groups * $ROWS, rows) - i0
            n = min(column_panels * (column_group + 1) // column_groups * $LANES, columns) - j0
            k = depth * (depth_group + 1) // depth_groups - k0
            a0 = a + z * a_batch + i0 * a_row + k0 * a_depth
            b0 = b + z * b_batch + k0 * b_depth + j0 * b_column
            c0 = c + z * c_batch + depth_group * c_part + i0 * c_row + j0 * c_column
"""

# A packed panel holds, for each step of the depth, `width` neighbours on the other axis. It takes
# steps up to the next multiple of the lanes, and one vector more.
_PACK = """
from minigrad.backend.cpu.contract.tiles import copy_prefix, strided_tile, turned_block

copy = copy_prefix("$T")
turn = turned_block("$T")
$TILES

@njit(**OPTIONS)
def pack(to, width, source, step, depth_step, valid, depth):
    row = width * $SIZE
    valid = min(width, valid)
    if step == $SIZE:
        for q in range(depth):
            for i in range(0, valid, $LANES):
                copy(to + q * row + i * $SIZE, source + q * depth_step + i * $SIZE, valid - i)
    elif depth_step == $SIZE:
        # Downwards, since where width is no multiple of the lanes a block spills into the next row.
        for i in range((valid - 1) // $LANES * $LANES, -1, -$LANES):
            for q in range(0, depth, $LANES):
                turn(to + q * row + i * $SIZE, row, source + i * step + q * depth_step, step,
                     valid - i)
    else:
        for i in range(valid):
            for q in range(depth):
                value = load_$T(source + i * step + q * depth_step, 0)
                store_$T(to + q * row + i * $SIZE, 0, value)

"""

# The loop order keeps a panel of A in the first cache and a block of B in the second.
_TILED_UNIT = """
padded_depth = (depth_block + $LANES - 1) // $LANES * $LANES
a_panel_bytes = (padded_depth * $ROWS + $LANES) * $SIZE
b_panel_bytes = padded_depth * $WIDTH * $SIZE
b_space = space
if pack_a:
    b_space += (m + $ROWS - 1) // $ROWS * a_panel_bytes
for q in range(0, max(k, 1), depth_block):
    steps = min(depth_block, k - q)
    for jb in range(0, n, column_block):
        j_end = min(n, jb + column_block)
        if pack_b:
            for j in range(jb, j_end, $WIDTH):
                pack(b_space + (j - jb) // $WIDTH * b_panel_bytes, $WIDTH,
                     b0 + q * b_depth + j * b_column, b_column, b_depth, j_end - j, steps)
        for i in range(0, m, $ROWS):
            a_tile, a_tile_row, a_tile_depth = a0 + i * a_row + q * a_depth, a_row, a_depth
            if pack_a:
                packed = space + i // $ROWS * a_panel_bytes
                if jb == 0:
                    pack(packed, $ROWS, a_tile, a_row, a_depth, m - i, steps)
                a_tile, a_tile_row, a_tile_depth = packed, $SIZE, $ROWS * $SIZE
            for j in range(jb, j_end, $WIDTH):
                b_tile, b_tile_depth = b0 + q * b_depth + j * $SIZE, b_depth
                if pack_b:
                    b_tile = b_space + (j - jb) // $WIDTH * b_panel_bytes
                    b_tile_depth = $WIDTH * $SIZE
                c_tile = c0 + i * c_row + j * $SIZE
                left = j_end - j
                $CHOICE
"""

_CALL = (
    "tile$v(steps, a_tile, a_tile_row, a_tile_depth, b_tile, b_tile_depth, c_tile, c_row,"
    " left, m - i, q)"
)

# For a few rows: one pass over B in memory order, four of its rows at a time. Each block of the
# depth is summed apart, and added to the totals.
_ROWS_UNIT = """
for jb in range(0, n, column_block):
    width = min(column_block, n - jb)
    totals = space + m * width * $SIZE
    for j in range(m * width):
        store_$T(totals, j, 0)
    for qb in range(0, k, depth_block):
        q_end = min(qb + depth_block, k)
        q_even = qb + (q_end - qb) // 4 * 4
        for j in range(m * width):
            store_$T(space, j, 0)
        for q in range(qb, q_even, 4):
            b1 = b0 + q * b_depth + jb * $SIZE
            b2, b3, b4 = b1 + b_depth, b1 + 2 * b_depth, b1 + 3 * b_depth
            for i in range(m):
                at = a0 + i * a_row + q * a_depth
                a1, a2 = load_$T(at, 0), load_$T(at + a_depth, 0)
                a3, a4 = load_$T(at + 2 * a_depth, 0), load_$T(at + 3 * a_depth, 0)
                sums = space + i * width * $SIZE
                for j in range(width):
                    store_$T(sums, j, load_$T(sums, j) + (
                        (a1 * load_$T(b1, j) + a2 * load_$T(b2, j))
                        + (a3 * load_$T(b3, j) + a4 * load_$T(b4, j))))
        for q in range(q_even, q_end):
            b1 = b0 + q * b_depth + jb * $SIZE
            for i in range(m):
                a1 = load_$T(a0 + i * a_row + q * a_depth, 0)
                sums = space + i * width * $SIZE
                for j in range(width):
                    store_$T(sums, j, load_$T(sums, j) + a1 * load_$T(b1, j))
        for j in range(m * width):
            store_$T(totals, j, load_$T(totals, j) + load_$T(space, j))
    for i in range(m):
        for j in range(width):
            value = load_$T(totals, i * width + j)
            store_$T(c0 + i * c_row + (jb + j) * c_column, 0, value)
"""

# For a few rows against columns of B that are contiguous: dot products along the depth.
_DOTS_UNIT = """
a_start, a_next = a0, a_row
if a_depth != $SIZE:
    for i in range(m):
        for q in range(k):
            store_$T(space, i * k + q, load_$T(a0 + i * a_row + q * a_depth, 0))
    a_start, a_next = space, k * $SIZE
for j in range(n):
    right = b0 + j * b_column
    for i in range(m):
        left = a_start + i * a_next
        total = types.$T(0)
        for q in range(k):
            total = accumulate(total, load_$T(left, q) * load_$T(right, q))
        store_$T(c0 + i * c_row + j * c_column, 0, total)
"""

# For integers, which wrap: summing in int64 and keeping the low bits does so in every width.
_WRAPPING_UNIT = """
for i in range(m):
    for j in range(n):
        total = types.int64(0)
        for q in range(k):
            left = types.int64(load_$T(a0 + i * a_row + q * a_depth, 0))
            total += left * types.int64(load_$T(b0 + q * b_depth + j * b_column, 0))
        store_$T(c0 + i * c_row + j * c_column, 0, types.$T(total))
"""

# out[z, i, j] = the sum over its `parts` of a dense (parts, batch, rows, columns) array.
GATHER_WORDS = "batch rows columns parts source c c_batch c_row c_column"
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


def tiles_kernel(dtype: str) -> Kernel:
    """The general float product, of register tiles. C must have contiguous rows."""
    rows, vectors = tile_shape()
    tiles, choice = [], []
    for v in range(vectors, 0, -1):  # left-over columns take the narrowest tile that covers them
        tiles.append(f'tile{v} = strided_tile("{dtype}", {rows}, {v})')
        test = "else" if v == 1 else f"{'if' if v == vectors else 'elif'} left > {v - 1} * $LANES"
        choice += [f"{test}:", "    " + _CALL.replace("$v", str(v))]
    body = _TILED_UNIT.replace("$CHOICE", ("\n" + 16 * " ").join(choice))
    return _product(
        "matmul_tiles", dtype, body, _PACK.replace("$TILES", "\n".join(tiles)),
        ROWS=rows, WIDTH=vectors * lanes(dtype), LANES=lanes(dtype), SIZE=ITEMSIZE[dtype],
    )  # fmt: skip


def rows_kernel(dtype: str) -> Kernel:
    """For few rows and a B with contiguous rows. C may be strided."""
    return _product(
        "matmul_rows", dtype, _ROWS_UNIT, ROWS=1, LANES=lanes(dtype), SIZE=ITEMSIZE[dtype]
    )


def dots_kernel(dtype: str) -> Kernel:
    """For few rows and a B with contiguous columns. C may be strided."""
    return _product("matmul_dots", dtype, _DOTS_UNIT, ROWS=1, LANES=1, SIZE=ITEMSIZE[dtype])


def wrapping_kernel(dtype: str) -> Kernel:
    """The integer product, modulo 2 ** bits."""
    return _product("matmul_wrapping", dtype, _WRAPPING_UNIT, ROWS=1, LANES=1)


def gather_kernel(dtype: str) -> Kernel:
    """Sums partial results, and brings a dense result to a strided place."""
    return _compiled("matmul_gather", dtype, _GATHER, GATHER_WORDS, SIZE=ITEMSIZE[dtype])


def _product(name: str, dtype: str, unit: str, before: str = "", **values: int) -> Kernel:
    """A kernel over WORDS that does `unit` in every unit of the grid."""
    return _compiled(name, dtype, before + _GRID + indent(unit, 12 * " "), WORDS, **values)


def _compiled(name: str, dtype: str, template: str, words: str, **values: int) -> Kernel:
    load = "\n".join(f"    {word} = load_int64(table, {i})" for i, word in enumerate(words.split()))
    source = Template(template).substitute(load=load, T=dtype, **values)
    return compile_kernel(f"{name}_{dtype}", source)
