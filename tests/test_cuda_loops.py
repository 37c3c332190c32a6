"""Loop nests on a GPU: sizes at the borders of packs, teams, blocks and parts."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from math import prod
from typing import Any

import nvrtc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import device as devices
from minigrad import study
from minigrad.backend.cuda.backend import device
from minigrad.backend.cuda.nests import reductions
from minigrad.backend.cuda.nests.writer import CudaWriter
from minigrad.backend.launch import Program
from minigrad.backend.loopnest import Access, LoopNest, Store
from minigrad.interop.encoding import decode, encode

pytestmark = [
    pytest.mark.usefixtures("fresh_plans"),
    pytest.mark.skipif(
        devices.devices()["cuda"] != "usable", reason=f"cuda: {devices.devices()['cuda']}"
    ),
]


class Reference:
    """Whole numbers in row-major order, with the reductions of them over some axes."""

    def __init__(self, shape: tuple[int, ...], seed: int):
        self.shape = shape
        self.values = [(i * (2 * seed + 7) + i * i % 11) % 13 - 6 for i in range(prod(shape))]

    def reduced(self, axes: tuple[int, ...], f: Callable[[list[int]], int]) -> dict[Any, int]:
        groups: dict[Any, list[int]] = {}
        for value, key in zip(self.values, self.keys(axes), strict=True):
            groups.setdefault(key, []).append(value)
        return {key: f(values) for key, values in groups.items()}

    def keys(self, axes: tuple[int, ...]) -> list[Any]:
        """Where each element's reduction is."""
        ranges = [(0,) if a in axes else range(n) for a, n in enumerate(self.shape)]
        places = {key: key for key in itertools.product(*ranges)}
        whole = itertools.product(*map(range, self.shape))
        return [places[tuple(0 if a in axes else i for a, i in enumerate(at))] for at in whole]


def flat(x: mg.Tensor) -> list[Any]:
    return x.reshape(-1).tolist()


def compare(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, seed: int = 0) -> None:
    """Two reductions together, and values that are centred by one: a nest of two passes."""
    known = Reference(shape, seed)
    x = mg.tensor(known.values, dtype=dtype, device="cuda").reshape(*shape)
    mg.evaluate(x)
    total, largest = mg.sum(x, axis=axes, keepdims=True), mg.max(x, axis=axes, keepdims=True)
    mg.evaluate(total, largest)
    sums, maxima = known.reduced(axes, sum), known.reduced(axes, max)
    assert flat(total) == list(sums.values())
    assert flat(largest) == list(maxima.values())
    pairs = list(zip(known.values, known.keys(axes), strict=True))
    assert flat(x - mg.max(x, axis=axes, keepdims=True)) == [v - maxima[k] for v, k in pairs]
    centred = x - mg.sum(x, axis=axes, keepdims=True)
    square = mg.sum(centred * centred, axis=axes, keepdims=True)
    mg.evaluate(centred, square)
    assert flat(centred) == [v - sums[k] for v, k in pairs]


EXTENTS = (1, 2, 3, 4, 5, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 260)


@st.composite
def spaces(draw: Callable[..., Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.sampled_from(EXTENTS), min_size=1, max_size=3)))
    while prod(shape) > 40000:
        shape = (*shape[:-1], max(1, shape[-1] // 8)) if shape[-1] > 1 else shape[:-1]
    axes = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    return shape, tuple(sorted(axes))


@pytest.mark.slow
@settings(max_examples=40)
@given(spaces(), st.sampled_from(("float32", "float64", "int32", "int64")), st.integers(0, 5))
def test_reductions(space, dtype, seed):
    compare(*space, dtype, seed)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 4000), (1,)), ((3, 33000), (1,)), ((2, 4, 8195), (0, 2)), ((8193, 5), (0,))],
)
def test_long_slices(shape, axes, dtype):
    compare(shape, axes, dtype)


def test_teams_are_larger_where_slices_are_read_again():
    def threads(*shape: int) -> set[int]:
        x = mg.random.normal(shape, device="cuda")
        mg.evaluate(x)
        y = x - mg.sum(x, axis=1, keepdims=True)
        (kernel,) = study.kernels(y)
        return {int(n) for n in re.findall(r"__launch_bounds__\((\d+)", kernel.source)}

    assert threads(4, 4 * 200) == set()
    assert threads(4, 4 * 2048) == {512}
    assert threads(4, reductions.LONG) == {1024}


@pytest.mark.parametrize(("shape", "axes"), [((5, 260), (1,)), ((260, 5), (0,)), ((900,), (0,))])
def test_far_indices_are_wide(monkeypatch, shape, axes):
    monkeypatch.setattr(CudaWriter, "_reach", lambda self: 1 << 31)
    compare(shape, axes, "float32")


@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize(
    ("shape", "axis", "together"), [((80000,), 0, 4), ((4, 19999), 1, 8), ((19999, 5), 0, 8)]
)
def test_loads_are_under_way_together(shape, axis, together):
    """No branch lies between them: a thread that waits for each would halve the bandwidth."""
    x = mg.random.normal(shape, device="cuda")
    mg.evaluate(x)
    for y in (mg.sum(x, axis=axis), mg.max(x, axis=axis)):
        (kernel,) = study.kernels(y)
        source = kernel.source.split("\n\n")[0]
        blocks = re.split(r"\n\$L|\n\s*(?:@%p\d+ )?bra", nvrtc.ptx(source))
        # The first block reads the table.
        assert max(block.count("ld.global.nc") for block in blocks[1:]) == together


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((64, 96), (1, 0)),
        ((33, 65), (1, 0)),
        ((3, 40, 35), (0, 2, 1)),
        ((40, 3, 35), (2, 1, 0)),
        ((2, 3, 33, 34), (0, 2, 3, 1)),  # a tile would be narrow
        ((2, 33, 3, 34), (3, 0, 2, 1)),
        ((31, 40), (1, 0)),
    ],
)
def test_transposed_copies(shape, order, dtype):
    values = [i * 7 % 64 % (2 if dtype == "bool" else 64) for i in range(prod(shape))]
    x = mg.tensor(values, dtype=dtype, device="cuda").reshape(*shape)
    there = mg.permute_dims(x, order)
    back = [order.index(a) for a in range(len(order))]
    copied = mg.where(there == there, there, there)
    mg.evaluate(copied)
    strides = [prod(shape[a + 1 :]) for a in order]
    places = itertools.product(*(range(shape[a]) for a in order))
    at = [sum(i * s for i, s in zip(place, strides, strict=True)) for place in places]
    assert flat(copied) == [values[i] for i in at]
    assert flat(mg.permute_dims(copied, back)) == values


def test_what_lies_across_is_read_in_tiles(monkeypatch):
    x, u = (mg.random.normal((50, 70), device="cuda") for _ in range(2))
    v, row = mg.random.normal((70, 50), device="cuda"), mg.random.normal(50, device="cuda")
    mg.evaluate(x, u, v, row)
    y = x.T * v + u.T + row
    (kernel,) = study.kernels(y)
    assert kernel.source.count("__shared__") == 2
    a, b, c, d = x.tolist(), u.tolist(), v.tolist(), row.tolist()
    expected = [a[j][i] * c[i][j] + b[j][i] + d[j] for i in range(70) for j in range(50)]
    assert flat(y) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    monkeypatch.setattr(CudaWriter, "_reach", lambda self: 1 << 31)
    difference = [a[j][i] - c[i][j] for i in range(70) for j in range(50)]
    assert flat(x.T - v) == pytest.approx(difference, rel=1e-6, abs=1e-6)


def test_what_is_written_across_is_written_along_memory():
    dtype = mg.float32
    rows, columns = 40, 50
    library, program = device(0).library(), Program(first_scratch=2)
    load = Access(0, dtype, (columns, 1), 0)
    store = Store(0, Access(1, dtype, (1, rows), 0), 0)
    nest = LoopNest((rows, columns), (True, True), [("load", load)], [dtype], [], [store])
    library.loop_nest(program, nest)
    (launch,) = program.launches
    assert "tile" in launch.kernel.source
    values = [float(i) for i in range(rows * columns)]
    source = device(0).from_bytes(memoryview(encode(values, dtype)))
    target = device(0).allocate(4 * rows * columns)
    device(0).executable(program, {}, 0, (0, 1), ()).run([source, target], ())
    got = decode(device(0).to_bytes(target, 4 * rows * columns), dtype).tolist()
    assert got == [values[i * columns + j] for j in range(columns) for i in range(rows)]


def test_the_innermost_axis_is_one_along_memory():
    x = mg.random.normal((40, 500), device="cuda")
    mg.evaluate(x)
    values = x.tolist()

    def is_packed(y: mg.Tensor) -> bool:
        (kernel,) = study.kernels(y)
        return "read_pack<4>" in kernel.source

    total = mg.sum(mg.permute_dims(x, 1, 0), axis=0)
    assert is_packed(total)
    assert total.tolist() == pytest.approx([sum(row) for row in values], rel=1e-5, abs=1e-4)
    largest = mg.max(mg.permute_dims(x.reshape(2, 20, 500), 2, 0, 1), axis=(0, 2))
    assert is_packed(largest)
    assert largest.tolist() == [max(map(max, values[:20])), max(map(max, values[20:]))]
    # Positions along axes move with them.
    weighted = mg.sum(x.T * mg.arange(500, device="cuda").reshape(500, 1), axis=0)
    expected = [sum(i * v for i, v in enumerate(row)) for row in values]
    assert weighted.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_channels_last():
    x = mg.random.normal((2, 40, 9, 8), device="cuda")
    mg.evaluate(x)
    moved = mg.permute_dims(x, 0, 2, 3, 1)
    y = moved - mg.max(moved, axis=-1, keepdims=True)
    assert mg.max(y, axis=-1).tolist() == [[[0.0] * 8] * 9] * 2
    known = x.tolist()
    expected = [
        known[n][c][i][j] - max(known[n][k][i][j] for k in range(40))
        for n, i, j, c in itertools.product(range(2), range(9), range(8), range(40))
    ]
    assert flat(y) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_integers_are_rounded_to_a_half_once():
    # Between two bfloat16, and above the middle by less than float32 has digits for.
    x = mg.tensor([2**30 + 2**22 + 1, -(2**30) - 2**22 - 1, 2**30 + 2**22], "int32", "cuda")
    high = float(2**30 + 2**23)
    assert x.astype("bfloat16").tolist() == [high, -high, float(2**30)]
    assert x.astype("int64").astype("bfloat16").tolist() == [high, -high, float(2**30)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_wins_a_maximum(dtype):
    nan, inf = math.nan, math.inf
    pairs = list(itertools.product((0.0, -1.0, 2.0, inf, -inf, nan), repeat=2))
    a, b = (mg.tensor(list(side), dtype=dtype, device="cuda") for side in zip(*pairs, strict=True))
    for f, known in ((mg.maximum, max), (mg.minimum, min)):
        expected = [nan if nan in (x, y) else known(x, y) for x, y in pairs]
        assert f(a, b).tolist() == pytest.approx(expected, nan_ok=True, abs=0)
    rows = mg.stack([a, b], axis=1)
    expected = [nan if nan in pair else max(pair) for pair in pairs]
    assert mg.max(rows, axis=1).tolist() == pytest.approx(expected, nan_ok=True, abs=0)


@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-6), ("float64", 1e-14)])
def test_sigmoid_in_its_tails(dtype, rel):
    x = [-80.0, -30.0, -1.0, -0.0, 0.5, 30.0, 1e4, -1e4, math.inf, -math.inf]
    expected = [1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v)) for v in x]
    got = mg.nn.sigmoid(mg.tensor([*x, math.nan], dtype=dtype, device="cuda")).tolist()
    assert got[:-1] == pytest.approx(expected, rel=rel, abs=0)
    assert math.isnan(got[-1])


def test_few_turns_are_one_launch():
    x = mg.random.normal((128, 10), device="cuda")
    long = mg.random.normal(200000, device="cuda")
    mg.evaluate(x, long)
    assert [k.launches for k in study.kernels(mg.sum(x, axis=0))] == [1]
    assert [k.launches for k in study.kernels(mg.sum(long))] == [2]
