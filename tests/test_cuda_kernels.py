"""Library kernels of the CUDA backend against their definitions, and against the CPU's results."""

from __future__ import annotations

import math
import struct
from functools import partial
from itertools import product
from math import prod

import pytest
import window_definitions as windows
from gather_definitions import (
    INDEX_DTYPES,
    lookups,
    reference_argmax,
    reference_scatter_add,
    reference_take,
)
from gather_definitions import values as gather_values
from hypothesis import given, settings
from hypothesis import strategies as st
from strided_operands import Layout, dense, layouts
from strided_programs import run_on_cuda
from window_definitions import PAIRS, out_shape, same

import minigrad as mg
from minigrad import device as devices
from minigrad import ops
from minigrad.backend.cuda import kernel_text, scatter_add
from minigrad.backend.geometry import Window
from minigrad.device import as_device
from minigrad.dtype import BY_NAME
from minigrad.tensor_base import wrap

pytestmark = pytest.mark.skipif(
    devices.devices()["cuda"] != "usable", reason=f"cuda: {devices.devices()['cuda']}"
)
NAN, INF = math.nan, math.inf
NUMERIC = ("float32", "float64", "int32", "int64", "uint8")

# A kernel is compiled for each of these: some have their taps compiled in, some do not.
SIZES = ((1, 1), (2, 2), (3, 2), (5, 4))
STRIDES = ((1, 1), (2, 2), (1, 3), (4, 5))
pairs = windows.pairs_of


@st.composite
def problems(draw, input_dilation=False):
    """A shape, that of its windows, and how these lie."""
    shape = (*draw(pairs(0, 2)), *draw(pairs(0, 9)))
    window = Window(
        size=draw(st.sampled_from(SIZES)),
        stride=draw(st.sampled_from(STRIDES)),
        padding=draw(st.tuples(pairs(-2, 3), pairs(-2, 3))),
        dilation=draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3)))),
        input_dilation=draw(pairs(1, 4)) if input_dilation else (1, 1),
    )
    return shape, out_shape(shape, window), window


# ---- windows


@settings(max_examples=80)
@given(st.data(), st.sampled_from(NUMERIC))
def test_window_sum(data, dtype):
    shape, out, window = data.draw(problems(input_dilation=True))
    x = windows.values(data.draw, dtype, prod(shape))
    at = [(dtype, data.draw(layouts(shape)), x)]
    got = run_on_cuda("window_sum", at, data.draw(layouts(out)), dtype, window=window)
    assert same(got, windows.reference_sum(dtype, x, shape, out, window))


@settings(max_examples=80)
@given(st.data(), st.sampled_from(NUMERIC))
def test_window_max(data, dtype):
    shape, out, window = data.draw(problems())
    x = windows.values(data.draw, dtype, prod(shape))
    at = [(dtype, data.draw(layouts(shape)), x)]
    got = run_on_cuda("window_max", at, data.draw(layouts(out)), dtype, window=window)
    assert same(got, windows.reference_max(dtype, x, shape, out, window))


@settings(max_examples=80)
@given(st.data(), st.sampled_from((*((d, d) for d in NUMERIC), ("uint8", "float32"))))
def test_select_and_scatter_find_the_first_maximum(data, dtypes):
    x_dtype, dtype = dtypes
    shape, out, window = data.draw(problems())
    x = windows.values(data.draw, x_dtype, prod(shape))
    u = windows.values(data.draw, dtype, prod(shape), special=False)
    g = windows.values(data.draw, dtype, prod(out), special=False)
    left = (x_dtype, data.draw(layouts(shape)), x)
    at = [left, (dtype, data.draw(layouts(shape)), u)]
    got = run_on_cuda("window_select", at, data.draw(layouts(out)), dtype, window=window)
    assert same(got, windows.reference_select(x, u, shape, out, window))
    at = [left, (dtype, data.draw(layouts(out)), g)]
    got = run_on_cuda("window_scatter", at, data.draw(layouts(shape)), dtype, window=window)
    assert same(got, windows.reference_scatter(dtype, x, g, shape, out, window))


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("pad", [(0, 0), (2, 0), (1, 1), (-1, 0)])
def test_pairs_without_overlap(width, pad):
    # rows of an even width are written in packs
    window = PAIRS._replace(padding=(pad, pad))
    shape = (3, 2, 7, width)
    out = out_shape(shape, window)
    x = [float(i * 29 % 5) for i in range(prod(shape))]
    g = [float(i + 1) for i in range(prod(out))]
    inputs = [("float32", dense(shape), x), ("float32", dense(out), g)]
    got = run_on_cuda("window_scatter", inputs, dense(shape), "float32", window=window)
    assert got == windows.reference_scatter("float32", x, g, shape, out, window)


def test_a_window_of_more_taps_than_a_byte_counts():
    window = PAIRS._replace(size=(16, 17), stride=(1, 1), padding=((3, 3), (3, 3)))
    shape = (1, 1, 18, 20)
    out = out_shape(shape, window)
    x = [i * 7919 % 101 for i in range(prod(shape))]
    g = [i % 7 for i in range(prod(out))]
    inputs = [("int32", dense(shape), x), ("int32", dense(out), g)]
    got = run_on_cuda("window_scatter", inputs, dense(shape), "int32", window=window)
    assert got == windows.reference_scatter("int32", x, g, shape, out, window)


def test_halves_are_added_in_float32():
    window = PAIRS._replace(size=(3, 3), stride=(1, 1))
    x = [2048.0, *[1.0] * 8]  # 2048 + 1 is 2048 in float16
    at = [("float16", dense((1, 1, 3, 3)), x)]
    got = run_on_cuda("window_sum", at, dense((1, 1, 1, 1)), "float16", window=window)
    assert got == [2056.0]
    at = [("int32", dense((9,)), [0] * 9), ("float16", dense((1, 9, 1)), x)]
    assert run_on_cuda("scatter_add", at, dense((1, 1, 1)), "float16") == [2056.0]


@pytest.mark.parametrize("size", [(2, 2), (3, 3)])
def test_maxima_of_halves(size):
    window = PAIRS._replace(size=size)
    shape = (1, 2, 6, 8)
    out = out_shape(shape, window)
    x = [i * 29 % 11 / 4 for i in range(prod(shape))]
    g = [i / 8 for i in range(prod(out))]
    at = [("float16", dense(shape), x)]
    got = run_on_cuda("window_max", at, dense(out), "float16", window=window)
    assert got == windows.reference_max("float32", x, shape, out, window)
    got = run_on_cuda("window_select", at * 2, dense(out), "float16", window=window)
    assert got == windows.reference_select(x, x, shape, out, window)
    at.append(("float16", dense(out), g))
    got = run_on_cuda("window_scatter", at, dense(shape), "float16", window=window)
    assert got == windows.reference_scatter("float32", x, g, shape, out, window)
    got = run_on_cuda("argmax", [("float16", dense((2, 24, 2)), x)], dense((2, 2)), "int64")
    assert got == reference_argmax(x, (2, 24, 2))


def test_far_indices_are_wide(monkeypatch):
    monkeypatch.setattr(kernel_text, "NARROW_REACH", 0)
    window = PAIRS._replace(size=(3, 2), dilation=(2, 1), padding=((1, 1), (-1, 2)))
    shape = (2, 2, 7, 9)
    out = out_shape(shape, window)
    x = [float(i * 29 % 11) for i in range(prod(shape))]
    g = [float(i) for i in range(prod(out))]
    inputs = [("float32", dense(shape), x), ("float32", dense(out), g)]
    got = run_on_cuda("window_scatter", inputs, dense(shape), "float32", window=window)
    assert got == windows.reference_scatter("float32", x, g, shape, out, window)
    spaced = window._replace(input_dilation=(2, 3))
    out = out_shape(shape, spaced)
    got = run_on_cuda("window_sum", inputs[:1], dense(out), "float32", window=spaced)
    assert got == windows.reference_sum("float32", x, shape, out, spaced)
    at = [("int64", dense((3,)), [1, 0, 1]), ("float32", dense((2, 3, 2)), x[:12])]
    got = run_on_cuda("scatter_add", at, dense((2, 2, 2)), "float32")
    assert got == reference_scatter_add([1, 0, 1], x[:12], (2, 2, 2))
    got = run_on_cuda("argmax", [("float32", dense((2, 63, 2)), x)], dense((2, 2)), "int64")
    assert got == reference_argmax(x, (2, 63, 2))


# ---- gathers


@settings(max_examples=80)
@given(st.data(), st.sampled_from(("bool", "uint8", "int32", "float64")), lookups())
def test_take(data, dtype, lookup):
    shape, indices, index_dtype = lookup
    x = gather_values(data.draw, dtype, prod(shape))
    out = (shape[0], len(indices), shape[2])
    at = [
        (dtype, data.draw(layouts(shape)), x),
        (index_dtype, data.draw(layouts((len(indices),))), indices),
    ]
    got = run_on_cuda("take", at, data.draw(layouts(out)), dtype)
    assert same(got, reference_take(x, indices, shape))


@settings(max_examples=80)
@given(st.data(), st.sampled_from(NUMERIC), lookups())
def test_scatter_add(data, dtype, lookup):
    shape, indices, index_dtype = lookup
    n = shape[0] * len(indices) * shape[2]
    updates = data.draw(st.lists(st.integers(0, 100), min_size=n, max_size=n))
    at = [
        (index_dtype, data.draw(layouts((len(indices),))), indices),
        (dtype, data.draw(layouts((shape[0], len(indices), shape[2]))), updates),
    ]
    got = run_on_cuda("scatter_add", at, data.draw(layouts(shape)), dtype)
    expected = reference_scatter_add(indices, updates, shape)
    assert got == [v % 256 if dtype == "uint8" else v for v in expected]


@settings(max_examples=80)
@given(
    st.data(),
    st.sampled_from(("bool", "uint8", "int64", "float32")),
    st.integers(0, 3),
    st.integers(1, 70),
    st.integers(0, 6),
)
def test_argmax(data, dtype, a, r, b):
    shape = (a, r, b)
    palette = {"bool": (False, True), "uint8": (0, 1, 200), "int64": (-(2**63), 0, 2**63 - 1)}
    few = palette.get(dtype, (0.0, 1.0, -INF, NAN))
    few = few[: data.draw(st.integers(1, len(few)))]
    seed = data.draw(st.integers(0, 1000))
    x = [few[i * i * seed % 131 % len(few)] for i in range(prod(shape))]
    at = [(dtype, data.draw(layouts(shape)), x)]
    got = run_on_cuda("argmax", at, data.draw(layouts((a, b))), "int64")
    assert got == reference_argmax(x, shape)


@pytest.mark.parametrize("shape", [(1, 3000, 1), (2, 3000, 3), (1, 40, 300), (300, 5, 1)])
@pytest.mark.parametrize("nan", [False, True])
def test_argmax_by_teams(shape, nan):
    x = [float(i * 7919 % 1009 // 3) for i in range(prod(shape))]
    if nan:
        x = [NAN if v == 100 else v for v in x]
    out = (shape[0], shape[2])
    got = run_on_cuda("argmax", [("float32", dense(shape), x)], dense(out), "int64")
    assert got == reference_argmax(x, shape)


# Few rows and many indices fill the list of a tile several times; many rows make many tiles.
@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 5000, 1), (2, 40, 70), (1, 9, 1000)])
def test_scatter_add_of_many(shape):
    a, r, b = shape
    count = 5000 if b == 1 else 300
    indices = [i * i % 7919 % r - r * (i % 2) for i in range(count)]
    updates = [float(i * 31 % 17) for i in range(a * count * b)]
    at = [("int64", dense((count,)), indices), ("float32", dense((a, count, b)), updates)]
    got = run_on_cuda("scatter_add", at, dense(shape), "float32")
    assert got == reference_scatter_add(indices, updates, shape)


@pytest.mark.parametrize("count", [100, 3000])
def test_duplicates_add_up_in_order(count):
    indices = [i % 3 for i in range(count)]
    updates = [(1e8 if i % 5 else -3e8) + i / 7 for i in range(count)]
    expected = [0.0] * 3
    for i, update in zip(indices, updates, strict=True):
        (rounded,) = struct.unpack("f", struct.pack("f", update))
        (expected[i],) = struct.unpack("f", struct.pack("f", expected[i] + rounded))
    at = [("int32", dense((count,)), indices), ("float32", dense((1, count, 1)), updates)]
    assert run_on_cuda("scatter_add", at, dense((1, 3, 1)), "float32") == expected


def test_tiles_of_many_rows(monkeypatch):
    monkeypatch.setattr(scatter_add, "_TILES", 1)
    at = [("int32", dense((2,)), [9999, 5000]), ("float32", dense((1, 2, 1)), [1.0, 2.0])]
    got = run_on_cuda("scatter_add", at, dense((1, 10000, 1)), "float32")
    assert {i: v for i, v in enumerate(got) if v} == {9999: 1.0, 5000: 2.0}


def test_one_row_may_be_read_many_times():
    broadcast = Layout((2, 3, 4), (0, 4, 1), 0, 12)
    x = [float(i) for i in range(12)]
    at = [("float32", broadcast, x + x), ("int64", dense((2,)), [2, 0])]
    got = run_on_cuda("take", at, dense((2, 2, 4)), "float32")
    assert got == reference_take(x + x, [2, 0], (2, 3, 4))


@pytest.mark.parametrize("dtype", BY_NAME)
@pytest.mark.parametrize("columns", [1, 6, 16])
def test_all_types_are_moved(dtype, columns):
    x = [i % 2 for i in range(3 * columns)]
    at = [(dtype, dense((1, 3, columns)), x), ("int64", dense((2,)), [-1, 0])]
    got = run_on_cuda("take", at, dense((1, 2, columns)), dtype)
    assert got == reference_take(x, [-1, 0], (1, 3, columns))


# ---- what is refused


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
@pytest.mark.parametrize("index", [3, -4, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_raises(index, index_dtype):
    i = (index_dtype, dense((2,)), [1, index])
    x = ("float32", dense((2, 3, 5)), range(30))
    updates = ("float32", dense((2, 2, 5)), range(20))
    with pytest.raises(IndexError, match=rf"take: expected indices in \[-3, 3\), got {index}\."):
        run_on_cuda("take", [x, i], dense((2, 2, 5)), "float32")
    with pytest.raises(IndexError, match=rf"scatter_add: expected indices .* got {index}\."):
        run_on_cuda("scatter_add", [i, updates], dense((2, 3, 5)), "float32")


def test_an_index_out_of_range_raises_when_a_value_is_looked_at():
    x = mg.tensor([1.0, 2.0, 3.0], device="cuda")
    y = mg.take(x, mg.tensor([0, 3], device="cuda"), axis=0)
    with pytest.raises(IndexError, match="got 3"):
        y.tolist()
    assert mg.take(x, mg.tensor([0, -1], device="cuda"), axis=0).tolist() == [1.0, 3.0]


def test_wrong_operands_are_refused():
    x, index = ("float32", dense((1, 2, 1)), [0, 1]), ("int64", dense((1,)), [0])
    one = dense((1, 1, 1))
    with pytest.raises(TypeError, match="take: expected one dtype, got float32, float64"):
        run_on_cuda("take", [x, index], one, "float64")
    with pytest.raises(TypeError, match="take: expected int32 or int64 indices, got float32"):
        run_on_cuda("take", [x, ("float32", dense((1,)), [0])], one, "float32")
    with pytest.raises(IndexError, match="take: expected a non-empty axis to index"):
        run_on_cuda("take", [("float32", dense((1, 0, 1)), []), index], one, "float32")
    with pytest.raises(TypeError, match="scatter_add: expected a numeric dtype, got bool"):
        run_on_cuda("scatter_add", [index, ("bool", one, [True])], dense((1, 2, 1)), "bool")
    with pytest.raises(TypeError, match="argmax: expected out of dtype int64, got int32"):
        run_on_cuda("argmax", [x], dense((1, 1)), "int32")
    with pytest.raises(ValueError, match="argmax: expected a non-empty axis"):
        run_on_cuda("argmax", [("float32", dense((2, 0, 5)), [])], dense((2, 5)), "int64")
    flags = ("bool", dense((1, 1, 2, 2)), [True] * 4)
    with pytest.raises(TypeError, match="window_max: expected operands of one numeric dtype"):
        run_on_cuda("window_max", [flags], dense((1, 1, 1, 1)), "bool", window=PAIRS)
    with pytest.raises(TypeError, match=r"random_bits: expected state \(2,\) int64"):
        run_on_cuda("random_bits", [("int64", dense((1,)), [0])], dense((4,)), "int32")
    state = ("int64", dense((2,)), [0, 0])
    with pytest.raises(ValueError, match="random_bits: expected a dense out"):
        run_on_cuda("random_bits", [state], Layout((4,), (2,), 0, 8), "int32")


# ---- the same graphs on both devices


def both_devices():
    reason = devices.devices()["cpu"]
    if reason != "usable":
        pytest.skip(f"cpu: {reason}")
    return "cpu", "cuda"


def on_both(f, *inputs, dtype="float32"):
    """Values of f on the CPU and on the GPU."""
    return [
        f(*[mg.tensor(x, dtype=dtype, device=name) for x in inputs]).tolist()
        for name in both_devices()
    ]


VIEWS = {
    "as it is": lambda x: x,
    "permuted": lambda x: mg.permute_dims(x, (1, 0, 3, 2)),
    "flipped": lambda x: mg.flip(x, axis=(2, 3)),
    "expanded": lambda x: mg.broadcast_to(x[:, :1, :, :1], x.shape),
    "every other": lambda x: x[:, :, ::2, 1::2],
}


def windowed(op, x, *others, **attrs):
    return wrap(op(x.node, *[o.node for o in others], **attrs))


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("axes", [(2, 3), (0, 2)])
@pytest.mark.parametrize(
    "window",
    [PAIRS, PAIRS._replace(size=(3, 2), padding=((1, 1), (-1, 2)))],
    ids=["pairs", "overlapping"],
)
def test_windows_of_views(view, axes, window):
    values = [
        [[[i * j * 7 % 5 + a - b for j in range(6)] for i in range(4)] for a in range(3)]
        for b in range(4)
    ]

    def f(x):
        x = VIEWS[view](x)
        top = windowed(ops.window_max, x, axes=axes, window=window)
        return mg.concat(
            [
                mg.reshape(y, (-1,))
                for y in (
                    top,
                    windowed(ops.window_sum, x, axes=axes, window=window),
                    windowed(ops.window_select, x, x + 1, axes=axes, window=window),
                    windowed(ops.window_scatter, x, top, axes=axes, window=window),
                )
            ]
        )

    cpu, cuda = on_both(f, values)
    assert cpu == cuda


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_argmax_along_each_axis(axis):
    values = [[[i * j * k % 5 / 2 for k in range(5)] for j in range(6)] for i in range(7)]
    values[3][2][1] = values[3][4][1] = NAN
    cpu, cuda = on_both(partial(mg.argmax, axis=axis), values)
    assert cpu == cuda


@pytest.mark.parametrize("axis", [0, 1])
def test_take_and_its_gradient(axis):
    values = [[float(i * 5 + j) for j in range(5)] for i in range(4)]

    def f(x):
        x = mg.permute_dims(x, (1, 0))
        index = mg.tensor([0, -1, 2, 0, 3, -2], device=x.device)
        return mg.gradients((mg.take(x, index, axis=axis) ** 2).sum(), x)

    got = []
    for name in both_devices():
        x = mg.tensor(values, device=name, requires_grad=True)
        got.append(f(x).tolist())
    assert got[0] == got[1]


@pytest.mark.parametrize("size", [*range(10), 1000])
def test_random_bits_are_the_same_stream(size):
    streams = []
    for name in both_devices():
        for seed, counter in product((0, -1, 2**40 + 7), (0, 2**32 - 1, -1)):
            state = mg.tensor([seed, counter], dtype="int64", device=as_device(name))
            streams.append(wrap(ops.random_bits(state.node, shape=(size,))).tolist())
    half = len(streams) // 2
    assert streams[:half] == streams[half:]


def test_random_bits_at_an_odd_place():
    state = ("int64", dense((2,)), [5, 3])
    whole = run_on_cuda("random_bits", [state], dense((10,)), "int32")
    at = Layout((10,), (1,), 1, 12)
    assert run_on_cuda("random_bits", [state], at, "int32") == whole
