"""Matrix products of the CPU backend against plain Python, on every plan and in every layout."""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import replace

import pytest
from backend_harness import Prepared

from minigrad.backend.cpu.contract import gemm, gemm_kernels
from minigrad.backend.cpu.vector import builder
from minigrad.backend.launch import Operand, Program
from minigrad.dtype import BY_NAME

EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
FORMAT = {"uint8": "B", "int32": "i", "int64": "q", "float32": "f", "float64": "d"}
BITS = {"uint8": 8, "int32": 32, "int64": 64}

# layout(batch, rows, columns) -> strides, offset, elements of the buffer
LAYOUTS = {
    "dense": lambda b, r, c: ((r * c, c, 1), 0, b * r * c),
    "transposed": lambda b, r, c: ((r * c, 1, r), 0, b * r * c),
    "row gaps": lambda b, r, c: ((r * (c + 5), c + 5, 1), 3, 3 + b * r * (c + 5)),
    "transposed gaps": lambda b, r, c: ((c * (r + 3), 1, r + 3), 2, 2 + b * c * (r + 3)),
    "column gaps": lambda b, r, c: ((r * (2 * c + 1), 2 * c + 1, 2), 1, 1 + b * r * (2 * c + 1)),
    "reversed": lambda b, r, c: ((-r * c, -c, -1), max(0, b * r * c - 1), b * r * c),
    "rows reversed": lambda b, r, c: ((r * c, -c, 1), max(0, r - 1) * c, b * r * c),
    "batch inside": lambda b, r, c: ((1, b * c, b), 0, b * r * c),
    "shared": lambda b, r, c: ((0, c, 1), 0, r * c),
    "shared transposed": lambda b, r, c: ((0, 1, r), 0, r * c),
    "rows alike": lambda b, r, c: ((c, 0, 1), 0, b * c),
    "columns alike": lambda b, r, c: ((r, 1, 0), 0, b * r),
}
OUTPUT_LAYOUTS = list(LAYOUTS)[:8]
SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 47, 48, 49, 63, 64, 65, 70)


class Case:
    """A random product: operands in given layouts, and the answer in plain Python."""

    def __init__(self, rng, dtype, sizes, layouts=("dense",) * 3, *, values=None):
        self.dtype, self.sizes = dtype, sizes
        batch, m, n, k = sizes
        self.shapes = ((batch, m, k), (batch, k, n), (batch, m, n))
        self.layouts = [LAYOUTS[x](*shape) for x, shape in zip(layouts, self.shapes, strict=True)]
        # Small whole numbers: any order of summation gives the same float.
        draw = values or (lambda: rng.randint(0 if dtype == "uint8" else -8, 8))
        self.data = [
            array(FORMAT[dtype], [draw() for _ in range(size)]) for _, _, size in self.layouts[:2]
        ]

    def operands(self):
        return [
            Operand(slot, BY_NAME[self.dtype], shape, strides, offset)
            for slot, (shape, (strides, offset, _)) in enumerate(
                zip(self.shapes, self.layouts, strict=True)
            )
        ]

    def plans(self):
        return list(gemm.plans(gemm.Product(*self.operands())))

    def run(self, lower=gemm.dot):
        """The output as batch x rows x columns lists; the elements between them stay untouched."""
        size = self.layouts[2][2]
        inputs = [(self.dtype, (len(data),), data) for data in self.data]
        prepared = Prepared(
            lambda program, *_: lower(program, *self.operands()), inputs, (size,), self.dtype
        )
        untouched = set(range(size))
        prepared.run()
        flat = prepared.output()
        result = []
        for matrix in self.places(2):
            result.append([[flat[place] for place in row] for row in matrix])
            untouched.difference_update(*matrix)
        if self.dtype in EPSILON:
            assert all(math.isnan(flat[place]) for place in untouched)
        return result

    def places(self, operand):
        (z_step, i_step, j_step), offset, _ = self.layouts[operand]
        batch, rows, columns = self.shapes[operand]
        return [
            [
                [offset + z * z_step + i * i_step + j * j_step for j in range(columns)]
                for i in range(rows)
            ]
            for z in range(batch)
        ]

    def matrices(self, operand):
        data = self.data[operand]
        return [[[data[p] for p in row] for row in matrix] for matrix in self.places(operand)]

    def expected(self, add=sum):
        _, _, n, k = self.sizes
        result = []
        for a, b in zip(self.matrices(0), self.matrices(1), strict=True):
            columns = list(zip(*b, strict=True)) if k else [()] * n
            result.append(
                [[add(x * y for x, y in zip(r, c, strict=True)) for c in columns] for r in a]
            )
        return result


def random_sizes(rng, limit=30_000):
    """Ragged sizes of a small product: batch, rows, columns, depth."""
    while True:
        sizes = (rng.choice((1, 1, 2, 3)), *(rng.choice(SIZES) for _ in range(3)))
        if math.prod(sizes) <= limit:
            return sizes


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8"])
@pytest.mark.parametrize("seed", range(2))
def test_ragged_sizes_in_all_layouts(dtype, seed):
    rng = random.Random(f"{dtype} {seed}")
    for _ in range(60):
        layouts = (*rng.choices(list(LAYOUTS), k=2), rng.choice(OUTPUT_LAYOUTS))
        case = Case(rng, dtype, random_sizes(rng), layouts)
        expected = case.expected()
        if dtype == "uint8":
            expected = [[[x % 256 for x in row] for row in matrix] for matrix in expected]
        assert case.run() == expected, (case.sizes, layouts)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("a", ["dense", "transposed"])
@pytest.mark.parametrize("b", ["dense", "transposed"])
@pytest.mark.parametrize("out", ["dense", "transposed", "row gaps", "column gaps"])
def test_every_transposition(dtype, a, b, out):
    rng = random.Random(f"{a} {b} {out}")
    for sizes in [
        (1, 33, 50, 41),
        (3, 17, 9, 70),
        (2, 1, 65, 19),
        (2, 65, 1, 19),
        (1, 10, 84, 128),
    ]:
        case = Case(rng, dtype, sizes, (a, b, out))
        assert case.run() == case.expected(), sizes


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_every_extent_may_be_zero(dtype):
    rng = random.Random(0)
    for axis in range(3):
        sizes = [2, 9, 17, 5]
        sizes[axis] = 0
        assert Case(rng, dtype, tuple(sizes)).run() == Case(rng, dtype, tuple(sizes)).expected()
    for m, n in [(1, 1), (9, 17), (1, 70), (70, 1)]:
        for out in ("dense", "transposed", "column gaps"):
            case = Case(rng, dtype, (2, m, n, 0), ("dense", "dense", out))
            assert case.run() == [[[0] * n] * m] * 2


PLAN_SIZES = [(1, 20, 53, 67), (2, 9, 49, 130), (3, 3, 70, 40), (2, 6, 5, 300), (1, 1, 1, 500)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("layouts", [("dense", "transposed"), ("transposed", "dense"),
                                     ("column gaps", "reversed")])  # fmt: skip
def test_every_plan_gives_the_same_answer(monkeypatch, dtype, layouts):
    monkeypatch.setattr(gemm, "num_threads", lambda: 4)
    rng = random.Random(f"{dtype} {layouts}")
    for sizes in PLAN_SIZES:
        case = Case(rng, dtype, sizes, (*layouts, rng.choice(OUTPUT_LAYOUTS)))
        expected = case.expected()
        for plan in case.plans():
            assert (
                case.run(lambda program, *_, plan=plan: gemm.launch(program, plan)) == expected
            ), plan


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "layouts",
    [("dense",) * 2, ("dense", "transposed"), ("transposed", "dense"), ("column gaps", "reversed")],
)
def test_packing_and_blocks(dtype, layouts):
    rng = random.Random(f"{dtype} {layouts}")
    _, vectors = gemm_kernels.tile_shape()
    panel = vectors * builder.lanes(dtype)
    for sizes in [(1, 21, 2 * panel + 3, 37), (2, 9, 3 * panel - 1, 16), (1, 8, panel, 1)]:
        case = Case(rng, dtype, sizes, (*layouts, "row gaps"))
        expected = case.expected()
        for pack_a in (False, True):
            for pack_b in (False, True) if layouts[1] == "dense" else (True,):
                for depth_block, column_block in [(16, panel), (7, 2 * panel), (512, 4 * panel)]:
                    change = {
                        "pack_a": pack_a, "pack_b": pack_b, "scratch_bytes": 1 << 20,
                        "depth_block": depth_block, "column_block": column_block,
                    }  # fmt: skip
                    plan = replace(case.plans()[0], **change)  # tiles, one task
                    got = case.run(lambda program, *_, plan=plan: gemm.launch(program, plan))
                    assert got == expected, plan


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_error_of_long_sums(dtype):
    rng = random.Random(0)
    for sizes in [(1, 1, 3, 20_000), (1, 3, 1, 20_000), (1, 9, 17, 3000), (1, 2, 100, 5000)]:
        for layouts in [("dense", "dense"), ("dense", "transposed"), ("transposed", "dense")]:
            case = Case(rng, dtype, sizes, (*layouts, "dense"), values=rng.random)
            got, expected = case.run()[0], case.expected(math.fsum)[0]
            for row, exact in zip(got, expected, strict=True):
                for x, y in zip(row, exact, strict=True):
                    # One chain of 20 000 positive terms would err by tens of epsilons.
                    assert abs(x - y) <= 8 * EPSILON[dtype] * y


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sizes", [(1, 19, 37, 21), (1, 1, 40, 9), (1, 40, 1, 9), (2, 3, 4, 200)])
@pytest.mark.parametrize("b", ["dense", "transposed"])
def test_special_values_reach_only_their_row_and_column(special, sizes, b):
    rng = random.Random(1)
    batch, m, n, k = sizes
    for operand in (0, 1):
        case = Case(rng, "float32", sizes, ("dense", b, "dense"))
        z, i, q, j = batch - 1, m // 2, k // 3, n // 2
        place = case.places(operand)[z]
        case.data[operand][place[i][q] if operand == 0 else place[q][j]] = special
        got, expected = case.run(), case.expected()
        for at in range(batch):
            for row, exact in zip(got[at], expected[at], strict=True):
                assert list(map(repr, row)) == list(map(repr, exact))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_integers_wrap(dtype):
    rng = random.Random(dtype)
    bits = BITS[dtype]
    low, high = (0, 255) if dtype == "uint8" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    case = Case(rng, dtype, (2, 5, 7, 30), values=lambda: rng.randint(low, high))

    def wrapped(products):
        return (sum(products) - low) % 2**bits + low

    assert case.run() == case.expected(wrapped)


def test_a_shared_factor_makes_one_product_of_the_batch():
    case = Case(random.Random(0), "float32", (64, 4, 32, 16), ("dense", "shared", "dense"))
    program = Program(first_scratch=3)
    gemm.dot(program, *case.operands())
    assert [launch.args[:4] for launch in program.launches] == [(1, 256, 32, 16)]
    assert case.run() == case.expected()


def test_errors_name_the_shapes_and_dtypes():
    a, b, out = Case(random.Random(0), "float32", (2, 3, 4, 5)).operands()

    def lower(*operands):
        gemm.dot(Program(first_scratch=3), *operands)

    with pytest.raises(ValueError, match=r"expected operands with 3 axes, got \(3, 5\)"):
        lower(replace(a, shape=(3, 5), strides=(5, 1)), b, out)
    with pytest.raises(ValueError, match=r"expected \(B, M, K\) @ .* got \(2, 3, 4\) @"):
        lower(replace(a, shape=(2, 3, 4)), b, out)
    with pytest.raises(TypeError, match="got float32 @ float32 -> int32"):
        lower(a, b, replace(out, dtype=BY_NAME["int32"]))
