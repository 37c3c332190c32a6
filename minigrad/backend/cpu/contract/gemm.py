"""Matrix products on the CPU: which kernel, in which orientation, cut into which units.

A product can be computed by tiles, by rows or by dot products; as it stands or with the factors'
roles swapped; split over its rows, columns, batch or depth. `dot` estimates the cycles of each way
and lowers the cheapest. The constants were measured on two AVX-512 cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil

from minigrad.backend.checks import require_product
from minigrad.backend.cpu import machine
from minigrad.backend.cpu.contract import gemm_kernels
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.cpu.runtime.jit import Kernel
from minigrad.backend.cpu.vector.builder import lanes
from minigrad.backend.launch import Operand, Pointer, Program, contiguous_strides

# Products that one accumulator sums before the next block starts from 0. 512 is 7% faster at 512
# cubed and no faster at 2048, but its float32 error is half as large again.
DEPTH_BLOCK = 256
BLOCK_BYTES = machine.second_cache().nbytes // 2  # of B: half of a core's second-level cache
ROW_BLOCK = 2048  # rows of packed A that one unit may hold
SUMS_BLOCK = 2048  # sums that the kernel for few rows keeps in the first cache

# Costs, in cycles of one core. A vector of products takes one in a tile.
PARALLEL_CYCLES = 8000  # entering and leaving a parallel region
UNIT_CYCLES = 100  # finding a unit's place in the grid
TILE_CYCLES = 40  # clearing the sums of a tile and storing them
# Of an element that is packed: where its neighbours in memory are those along the panel, those
# along the depth, or neither.
PACK_A_CYCLES = (0.3, 1.0, 2.0)
PACK_B_CYCLES = (0.2, 0.4, 2.0)
COPY_CYCLES = 2.0  # of an element that is copied to where the depth is contiguous
# The kernel for few rows: of a vector of products, and of a row and step of the depth.
ROWS_VECTOR_CYCLES, ROWS_STEP_CYCLES = 1.5, 10
# The kernel of dot products: of a vector of products, and of the sum over its lanes.
DOTS_VECTOR_CYCLES, DOTS_SUM_CYCLES = 2, 30
WRAPPING_CYCLES = 2.0  # of a product of integers


@dataclass(frozen=True)
class Product:
    """C = A @ B, all (batch, ., .)."""

    a: Operand
    b: Operand
    out: Operand

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, rows, columns and depth."""
        batch, rows, columns = self.out.shape
        return batch, rows, columns, self.a.shape[2]

    def swapped(self) -> Product:
        """The same numbers as C^T = B^T @ A^T."""
        return Product(_transposed(self.b), _transposed(self.a), _transposed(self.out))


@dataclass(frozen=True)
class GemmPlan:
    """One way to compute a product. `groups` cut the rows, the columns and the depth."""

    product: Product
    kind: Callable[[str], Kernel]
    groups: tuple[int, int, int]
    tasks: int
    cycles: float
    depth_block: int = 1
    column_block: int = 1
    pack_a: bool = False
    pack_b: bool = False
    scratch_bytes: int = 0  # of one task


def dot(program: Program, a: Operand, b: Operand, out: Operand) -> None:
    """Append the launches of out = a @ b.

    Shapes: a (B, M, K), b (B, K, N) -> out (B, M, N). Strides may be any, 0 and negative included,
    but out must not overlap itself or an input. An empty sum (K == 0) is 0.
    Precision: floats are summed in blocks of 256 products, then block by block; integers wrap.
    Raises: ValueError for shapes that do not fit, TypeError for unequal or boolean dtypes.
    """
    require_product(a, b, out)
    if not out.size:
        return
    product = _folded(Product(*map(_with_plain_strides, (a, b, out))))
    launch(program, min(plans(product), key=lambda plan: plan.cycles))


def plans(product: Product) -> Iterator[GemmPlan]:
    """Every way to compute a product that is worth an estimate."""
    if product.out.dtype.is_floating:
        yield from _float_plans(product)
        yield from _float_plans(_folded(product.swapped()))
    else:
        yield from _wrapping_plans(product)


def _with_plain_strides(operand: Operand) -> Operand:
    """The same view, with stride 1 on axes of one element, so that they count as contiguous."""
    strides = zip(operand.shape, operand.strides, strict=True)
    return replace(operand, strides=tuple(1 if n == 1 else stride for n, stride in strides))


def _transposed(operand: Operand) -> Operand:
    (z, i, j), (z_step, i_step, j_step) = operand.shape, operand.strides
    return replace(operand, shape=(z, j, i), strides=(z_step, j_step, i_step))


def _folded(product: Product) -> Product:
    """Batch and rows as one axis, if all batches share B and the rows of A and C line up."""
    batch, m, n, k = product.sizes
    a, out = product.a, product.out
    lines_up = all(m == 1 or x.strides[0] == m * x.strides[1] for x in (a, out))
    if batch == 1 or product.b.strides[0] != 0 or not lines_up:
        return product

    def merged(x: Operand) -> Operand:
        step = x.strides[0] if m == 1 else x.strides[1]
        return replace(x, shape=(1, batch * m, x.shape[2]), strides=(1, step, x.strides[2]))

    shared = replace(product.b, shape=(1, k, n))
    return Product(merged(a), shared, merged(out))


@dataclass(frozen=True)
class Cut:
    """A grid of units. `rows`, `columns` and `depth` are those of the largest unit."""

    groups: tuple[int, int, int]
    tasks: int
    units_per_task: int
    rows: int
    columns: int
    depth: int


def _cuts(product: Product, row_step: int, column_step: int) -> Iterator[Cut]:
    """The ways to share a product among 1 task, or all threads, in whole panels."""
    batch, m, n, k = product.sizes
    row_panels, column_panels = ceil(m / row_step), ceil(n / column_step)

    def cut(rows: int, columns: int, depth: int, threads: int) -> Cut:
        units = batch * rows * columns * depth
        tasks = min(threads, units)
        return Cut(
            groups=(rows, columns, depth),
            tasks=tasks,
            units_per_task=ceil(units / tasks),
            rows=ceil(row_panels / rows) * row_step,
            columns=ceil(column_panels / columns) * column_step,
            depth=ceil(k / depth),
        )

    yield cut(1, 1, 1, 1)
    threads = num_threads()
    if threads > 1:
        for rows in _divisors(threads, row_panels):
            for columns in _divisors(threads // rows, column_panels):
                for depth in _divisors(threads // (rows * columns), max(1, k // 64)):
                    yield cut(rows, columns, depth, threads)


def _divisors(n: int, limit: int) -> list[int]:
    return [d for d in range(1, min(n, limit) + 1) if n % d == 0]


def _float_plans(product: Product) -> Iterator[GemmPlan]:
    """The plans of a float product in this orientation."""
    (_, b_depth, b_column), width = product.b.strides, lanes(product.out.dtype.name)
    rows, _ = gemm_kernels.tile_shape()
    for cut in _cuts(product, rows, width):
        yield _tiles_plan(product, cut)
    if product.sizes[1] > 2 * rows:  # the kernels for few rows cannot win
        return
    if b_column == 1:
        yield from (_rows_plan(product, cut) for cut in _cuts(product, 1, width))
    if b_depth == 1:
        yield from (_dots_plan(product, cut) for cut in _cuts(product, 1, 1))


def _total(product: Product, cut: Cut, unit_cycles: float, *, gathers: bool) -> float:
    """Cycles of a whole product whose largest unit takes `unit_cycles`."""
    batch, m, n, _ = product.sizes
    region = PARALLEL_CYCLES if cut.tasks > 1 else 0
    total = region + cut.units_per_task * (UNIT_CYCLES + unit_cycles)
    if gathers:
        total += region + batch * m * n * (cut.groups[2] + 1) / cut.tasks
    return total


def _tiles_plan(product: Product, cut: Cut) -> GemmPlan:
    (_, a_row, a_depth), (_, b_depth, b_column) = product.a.strides, product.b.strides
    itemsize, name = product.out.dtype.itemsize, product.out.dtype.name
    rows, vectors = gemm_kernels.tile_shape()
    width = lanes(name)
    panel = vectors * width
    depth_block = _balanced(cut.depth, DEPTH_BLOCK)
    padded_depth = ceil(depth_block / width) * width
    column_block = min(
        max(panel, BLOCK_BYTES // (padded_depth * itemsize) // panel * panel),
        ceil(cut.columns / panel) * panel,
    )
    # Packing A pays when many panels of B reuse it, packing B when rows far apart would be read
    # again and again (each a page of its own, and all in few cache sets).
    pack_a = cut.columns >= 512
    pack_b = b_column != 1 or (cut.rows >= 256 and cut.columns > panel)
    row_groups = cut.groups[0]
    if pack_a:
        row_groups *= ceil(cut.rows / ROW_BLOCK)

    multiply_adds = cut.rows * cut.columns / width * cut.depth
    tiles = cut.rows / rows * ceil(cut.columns / panel) * ceil(cut.depth / DEPTH_BLOCK)
    unit = multiply_adds + TILE_CYCLES * tiles
    if pack_a:
        unit += cut.rows * cut.depth * _packing(PACK_A_CYCLES, a_row, a_depth)
    if pack_b:
        unit += cut.columns * cut.depth * _packing(PACK_B_CYCLES, b_column, b_depth)
    scratch = 0
    if pack_a:
        a_panels = ceil(min(cut.rows, ROW_BLOCK + rows) / rows)
        scratch += a_panels * (padded_depth * rows + width) * itemsize
    if pack_b:
        scratch += ceil(column_block / panel) * padded_depth * panel * itemsize
    gathers = cut.groups[2] > 1 or product.out.strides[2] != 1
    return GemmPlan(
        product,
        gemm_kernels.tiles_kernel,
        groups=(row_groups, *cut.groups[1:]),
        tasks=cut.tasks,
        cycles=_total(product, cut, unit, gathers=gathers),
        depth_block=depth_block,
        column_block=column_block,
        pack_a=pack_a,
        pack_b=pack_b,
        scratch_bytes=scratch,
    )


def _packing(cycles: tuple[float, float, float], panel_step: int, depth_step: int) -> float:
    return cycles[0 if panel_step == 1 else 1 if depth_step == 1 else 2]


def _rows_plan(product: Product, cut: Cut) -> GemmPlan:
    itemsize, width = product.out.dtype.itemsize, lanes(product.out.dtype.name)
    column_block = min(cut.columns, max(width, SUMS_BLOCK // cut.rows))
    unit = cut.rows * cut.depth * (cut.columns / width * ROWS_VECTOR_CYCLES + ROWS_STEP_CYCLES)
    return GemmPlan(
        product,
        gemm_kernels.rows_kernel,
        groups=cut.groups,
        tasks=cut.tasks,
        cycles=_total(product, cut, unit, gathers=cut.groups[2] > 1),
        depth_block=4 * DEPTH_BLOCK,  # it adds four products to a sum at a time
        column_block=column_block,
        scratch_bytes=2 * cut.rows * column_block * itemsize,
    )


def _dots_plan(product: Product, cut: Cut) -> GemmPlan:
    itemsize, width = product.out.dtype.itemsize, lanes(product.out.dtype.name)
    copies = product.a.strides[2] != 1
    unit = cut.rows * cut.columns * (cut.depth / width * DOTS_VECTOR_CYCLES + DOTS_SUM_CYCLES)
    if copies:
        unit += cut.rows * cut.depth * COPY_CYCLES
    return GemmPlan(
        product,
        gemm_kernels.dots_kernel,
        groups=cut.groups,
        tasks=cut.tasks,
        cycles=_total(product, cut, unit, gathers=cut.groups[2] > 1),
        scratch_bytes=cut.rows * cut.depth * itemsize if copies else 0,
    )


def _wrapping_plans(product: Product) -> Iterator[GemmPlan]:
    for cut in _cuts(product, 1, 1):
        if cut.groups[2] == 1:
            unit = WRAPPING_CYCLES * cut.rows * cut.columns * cut.depth
            total = _total(product, cut, unit, gathers=False)
            yield GemmPlan(product, gemm_kernels.wrapping_kernel, cut.groups, cut.tasks, total)


def _balanced(extent: int, limit: int) -> int:
    """The size of even blocks, as few as possible of at most `limit`, that make up `extent`."""
    return max(1, ceil(extent / max(1, ceil(extent / limit))))


def launch(program: Program, plan: GemmPlan) -> None:
    """Append the launches of a plan."""
    product, (row_groups, column_groups, depth_groups) = plan.product, plan.groups
    (batch, m, n, k), out = product.sizes, product.out
    name, itemsize = out.dtype.name, out.dtype.itemsize
    tiled = plan.kind is gemm_kernels.tiles_kernel
    gathers = depth_groups > 1 or (tiled and out.strides[2] != 1)
    c_pointer, c_strides = out.pointer, out.strides
    if gathers:
        c_pointer = Pointer(program.scratch_slot(depth_groups * out.size * itemsize))
        c_strides = contiguous_strides(out.shape)
    stride_bytes = -(-plan.scratch_bytes // 64) * 64 + 64  # apart, so tasks share no cache line
    scratch = Pointer(program.scratch_slot(plan.tasks * stride_bytes)) if plan.scratch_bytes else 0

    def in_bytes(strides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(stride * itemsize for stride in strides)

    args = (
        *(batch, m, n, k),
        *(product.a.pointer, *in_bytes(product.a.strides)),
        *(product.b.pointer, *in_bytes(product.b.strides)),
        *(c_pointer, *in_bytes(c_strides), out.size * itemsize),
        *(row_groups, column_groups, depth_groups, plan.tasks),
        *(plan.depth_block, plan.column_block, int(plan.pack_a), int(plan.pack_b)),
        *(scratch, stride_bytes),
    )
    program.launch(plan.kind(name), args, plan.tasks, plan.tasks)
    if gathers:
        args = (
            *(batch, m, n, depth_groups),
            *(c_pointer, out.pointer, *in_bytes(out.strides)),
        )
        program.launch(gemm_kernels.gather_kernel(name), args, batch * m, plan.tasks)
