"""The CUDA convolution against the same references as the CPU's, in exact arithmetic."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from math import prod

import pytest
from conv_definitions import (
    FLOATS,
    FORWARDS,
    POISON,
    Case,
    at,
    backward_data,
    backward_weight,
    cases,
    indices,
    plain,
    store,
    values,
    with_torch,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad.backend.cuda.backend import device as cuda_device
from minigrad.backend.cuda.contract import conv, cudnn
from minigrad.backend.cuda.contract.conv_kernels import POINTS
from minigrad.backend.cuda.contract.conv_problems import phases
from minigrad.backend.geometry import WindowAxis
from minigrad.backend.launch import Operand, Program
from minigrad.device import devices
from minigrad.dtype import DType, as_dtype

GROUPED = {
    "groups": Case((3, 12, 11, 13), (18, 4, 3, 3), padding=((1, 1), (1, 1)), groups=3),
    "depthwise": Case((2, 20, 12, 12), (20, 1, 3, 3), padding=((1, 1), (1, 1)), groups=20),
    "depthwise stride 2": Case((2, 6, 9, 9), (12, 1, 3, 3), (2, 2), ((1, 1), (1, 1)), groups=6),
}


@pytest.fixture
def installed_cudnn():
    if cudnn.module() is None:
        pytest.skip("cuDNN is not installed, or there is no GPU")


@pytest.fixture(autouse=True)
def usable(request, monkeypatch):
    reason = devices()["cuda"]
    if reason != "usable":
        pytest.skip(f"cuda: {reason}")
    if "installed_cudnn" not in request.fixturenames:
        monkeypatch.setattr(cudnn, "module", lambda: None)


def packed(values: list, kind: DType) -> bytes:
    if kind.name != "bfloat16":
        return struct.pack(f"{len(values)}{kind.format}", *values)
    words = struct.unpack(f"{len(values)}I", struct.pack(f"{len(values)}f", *values))
    return struct.pack(f"{len(values)}H", *(w >> 16 for w in words))


def unpacked(data: memoryview, kind: DType) -> tuple:
    count = data.nbytes // kind.itemsize
    if kind.name != "bfloat16":
        return struct.unpack(f"{count}{kind.format}", data)
    words = struct.unpack(f"{count}H", data)
    return struct.unpack(f"{count}f", struct.pack(f"{count}I", *(w << 16 for w in words)))


def run(case: Case, x: list, w: list, dtype: str, processors: int = 4) -> tuple[list, list[str]]:
    """The convolution's output, row-major, through the operands' layouts; and the kernels."""
    backend = cuda_device(0)
    kind = as_dtype(dtype)
    out_size, out_strides, out_offset = case.layouts[2].place(case.out)
    storages = [
        store(x, case.x, case.layouts[0], dtype),
        store(w, case.w, case.layouts[1], dtype),
        [POISON.get(dtype, 12345)] * out_size,
    ]
    buffers, operands = [], []
    for slot, (storage, shape, layout) in enumerate(
        zip(storages, (case.x, case.w, case.out), case.layouts, strict=True)
    ):
        buffers.append(backend.from_bytes(memoryview(packed(storage, kind))))
        _, strides, offset = layout.place(shape)
        operands.append(Operand(slot, kind, shape, strides, offset))
    program = Program(first_scratch=3)
    conv.conv2d(program, *operands, **case.parameters, processors=processors)
    offsets, total = {}, 0
    for i, nbytes in enumerate(program.scratch):
        offsets[3 + i] = total
        total += nbytes + -nbytes % 256
    executable = backend.executable(program, offsets, total, [0, 1, 2], [])
    executable.run(buffers, [])
    data = backend.to_bytes(buffers[2], out_size * kind.itemsize)
    storage = unpacked(data, kind)
    places = [at(index, out_strides, out_offset) for index in indices(case.out)]
    untouched = set(range(out_size)) - set(places)
    if dtype in FLOATS:
        assert all(storage[i] != storage[i] for i in untouched), "wrote outside of the output"
    return [storage[i] for i in places], [x.kernel.name for x in program.launches]


def check(case: Case, dtype: str = "float32", reference=plain, processors: int = 4) -> list[str]:
    x, w = values(case, seed=hash((case.x, case.w)) % 1000)
    got, kernels = run(case, x, w, dtype, processors)
    assert got == reference(case, x, w)
    return kernels


def arriving(case: Case, direction: str) -> Case:
    """The convolution that computes a layer, or one of its gradients."""
    if direction == "forward":
        return case
    return backward_data(case, *case.x[2:]) if direction == "data" else backward_weight(case)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
def test_layers_and_their_gradients(name, direction, dtype):
    check(arriving(FORWARDS[name], direction), dtype, with_torch)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
def test_layers_and_their_gradients_by_cudnn(name, direction, dtype, installed_cudnn):
    check(arriving(FORWARDS[name], direction), dtype, with_torch)


@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
@pytest.mark.parametrize("name", ["ragged", "stride 2", "dilated", "cropped"])
def test_addresses_of_64_bits(name, direction, monkeypatch):
    monkeypatch.setattr(conv, "INDEX_LIMIT", 0)
    check(arriving(FORWARDS[name], direction), "float32", with_torch)


@pytest.mark.slow
@pytest.mark.parametrize("tile", conv.TILES, ids=lambda t: f"{t.pixels}x{t.channels}")
@pytest.mark.parametrize(("x_by", "w_by"), [(0, 0), (1, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("split", [False, True])
def test_every_tile_in_every_direction(tile, x_by, w_by, split, monkeypatch):
    def only(self):
        parts, share = (3, 32) if split else (1, 96)
        blocks = -(-self.pixels // tile.pixels) * -(-self.channels // tile.channels)
        yield conv._Choice(tile, False, parts, share, blocks, 0.0)

    monkeypatch.setattr(conv._Convolution, "_choices", only)
    monkeypatch.setattr(conv._Convolution, "_directions", lambda *_: (bool(x_by), bool(w_by)))
    # 90 products in ragged parts; pixels and channels just beyond a border of every tile.
    case = Case((1, 10, 15, 22), (130, 10, 3, 3))
    check(case, "float32", with_torch)


@pytest.mark.parametrize("dots", [False, True])
def test_parts_of_phases_that_differ_in_products(dots, monkeypatch):
    """Some phases of a strided layer's gradient have no products for the last part, or none."""

    def only(self):
        tile, parts, share = conv.TILES[-1], 3, 16
        blocks = -(-self.pixels // tile.pixels) * -(-self.channels // tile.channels)
        if dots:
            tile, blocks = None, -(-self.pixels // POINTS) * self.channels
        yield conv._Choice(tile, dots, parts, share, blocks, 0.0)

    monkeypatch.setattr(conv._Convolution, "_choices", only)
    layer = Case((2, 3, 9, 10), (12, 3, 2, 2), (3, 2))
    assert len(check(arriving(layer, "data"), "float32", with_torch)) == 2


@pytest.mark.parametrize(("pixels", "channels"), [(64, 16), (63, 15), (65, 17), (128, 8), (1, 1)])
def test_sizes_around_the_borders_of_tiles(pixels, channels):
    check(Case((1, 5, 1, pixels), (channels, 5, 1, 1)))


def test_a_weight_gradient_is_cut_into_parts():
    """A long sum for few outputs is shared by the whole chip, and always gives the same bits."""
    layer = Case((9, 16, 20, 20), (20, 16, 3, 3), padding=((1, 1), (1, 1)))
    case = backward_weight(layer)
    kernels = check(case, "float32", with_torch, processors=16)
    assert kernels == ["conv", "conv_combine"]
    x, w = ([0.1 * v for v in operand] for operand in values(case, 1))
    first, again = (run(case, x, w, "float32", 16)[0] for _ in range(2))
    assert first == again


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize("name", GROUPED)
def test_groups(name, dtype):
    case = GROUPED[name]
    x, w = values(case, 3)
    if dtype == "uint8":
        x, w = [abs(v) * 40 for v in x], [abs(v) * 40 for v in w]
    got, kernels = run(case, x, w, dtype)
    expected = plain(case, x, w)
    assert got == ([v % 256 for v in expected] if dtype == "uint8" else expected)
    assert kernels == (["conv"] if name == "groups" else ["conv_each"])


def test_gradients_of_depthwise_layers():
    n, c, h, w = 9, 3, 20, 20
    # As the gradient rule writes it: each group's images side by side.
    weight = Case((1, c * n, h, w), (c, n, h, w), padding=((1, 1), (1, 1)), groups=c)
    assert "conv_dots" in check(weight, "float32", with_torch)[0]
    assert check(replace(weight, padding=((0, 0), (0, 0))), "int64", with_torch)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_wrap(dtype):
    case = FORWARDS["stride 3"]
    limit = 1 << (20 if dtype == "int32" else 40)
    bits = 32 if dtype == "int32" else 64
    x, w = values(case, 2, limit)
    got, _ = run(case, x, w, dtype)
    half = 1 << (bits - 1)
    assert got == [(v + half) % (2 * half) - half for v in plain(case, x, w)]


def test_half_precision_adds_up_in_float32():
    case = Case((1, 64, 4, 8), (2, 64, 3, 3), padding=((1, 1), (1, 1)))
    x, w = values(case, 1)
    got, _ = run(case, [3.0 + v for v in x], w, "float16")
    assert got == plain(case, [3.0 + v for v in x], w)  # exact below 2048
    # The sum passes 65504 on its way; the result does not.
    case = Case((1, 96, 1, 2), (1, 96, 1, 1))
    x = [float(v) for c in range(96) for v in ([2048.0] * 2 if c < 48 else [-2048.0] * 2)]
    assert run(case, x, [1.0] * 95 + [0.0], "float16")[0] == [2048.0, 2048.0]


DIRECTIONS = ("forward", "data", "weight")
STRIDED = [arriving(FORWARDS["stride 2"], direction) for direction in DIRECTIONS]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", [*GROUPED.values(), *STRIDED])
def test_halves_in_every_kernel(case, dtype):
    x, w = values(case, 1, 1)
    assert run(case, x, w, dtype)[0] == plain(case, x, w)  # sums are below 256


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((0, 3, 8, 8), (4, 3, 3, 3)),
        ((2, 0, 8, 8), (4, 0, 3, 3)),
        ((2, 3, 8, 8), (0, 3, 3, 3)),
        ((2, 3, 2, 2), (4, 3, 3, 3)),
    ],
)
def test_empty_extents(x, w, dtype):
    check(Case(x, w), dtype)


def test_only_padding_gives_zeros():
    check(Case((1, 2, 0, 0), (3, 2, 1, 1), padding=((2, 2), (2, 2))))


def test_inserted_zeros_are_not_multiplied():
    """Infinite weights show where a tap meets a zero that is none of x's."""
    case = Case((1, 1, 3, 3), (1, 1, 2, 2), input_dilation=(2, 2))
    got, _ = run(case, [1.0] * 9, [float("inf")] * 4, "float32")
    assert all(v in (0.0, float("inf")) for v in got)


def test_broadcast_operands_have_strides_of_zero():
    case = Case((2, 3, 9, 20), (4, 3, 3, 3), padding=((1, 1), (1, 1)))
    backend = cuda_device(0)
    x, w = values(case, 1)
    program = Program(first_scratch=3)
    kind = as_dtype("float32")
    views = [
        Operand(0, kind, case.x, (0, 0, 0, 0)),
        Operand(1, kind, case.w, (27, 9, 3, 1)),
        Operand(2, kind, case.out, (720, 180, 20, 1)),
    ]
    conv.conv2d(program, *views, **case.parameters, processors=4)
    buffers = [
        backend.from_bytes(memoryview(struct.pack(f"{len(v)}f", *v)))
        for v in ([2.0], w, [0.0] * prod(case.out))
    ]
    backend.executable(program, {}, 0, [0, 1, 2], []).run(buffers, [])
    got = backend.to_bytes(buffers[2], 4 * prod(case.out)).cast("f").tolist()
    assert got == plain(case, [2.0] * len(x), w)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(["float32", "float64", "int32"]), st.sampled_from([1, 4, 64]))
def test_any_parameters_and_any_strides(case, dtype, processors):
    check(case, dtype, plain, processors)


axes = st.tuples(*(st.integers(1, top) for top in (6, 12, 4)), st.integers(-3, 8))


@given(axes, st.integers(1, 4), st.integers(1, 3))
def test_phases_meet_every_input_once(axis, input_dilation, kernel_dilation):
    taps, outs, stride, low = axis
    met = {}
    window = WindowAxis(taps, stride, (low, 0), kernel_dilation, input_dilation)
    for p in phases(window, outs):
        for j in range(p.outs):
            o = p.first_out + j * p.out_step
            assert o not in met
            met[o] = {
                (p.first_tap + k * p.tap_step, p.start + j * p.out_input + k * p.tap_input)
                for k in range(p.taps)
            }
    expected = {o: set() for o in range(outs)}
    for o in range(outs):
        for k in range(taps):
            index, rest = divmod(o * stride + k * kernel_dilation - low, input_dilation)
            if rest == 0:
                expected[o].add((k, index))
    assert met == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "w", "parameters"),
    [
        ((4, 6, 14, 14), (16, 6, 5, 5), {}),
        ((2, 8, 17, 15), (12, 8, 3, 3), {"stride": 2, "padding": 1}),
        ((2, 6, 12, 11), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
        ((1, 5, 13, 13), (7, 5, 3, 3), {"padding": 2, "dilation": 2}),
        ((3, 16, 9, 9), (8, 16, 1, 1), {"stride": 2}),
    ],
)
def test_a_layer_and_its_gradients_are_those_of_the_cpu(cpu_too, x, w, parameters):
    rng = random.Random(1)
    numbers = [[rng.gauss(0, 1) for _ in range(prod(shape))] for shape in (x, w)]
    results = []
    for device in ("cpu", "cuda"):
        a, b = (
            mg.reshape(mg.tensor(n, device=device), shape)
            for n, shape in zip(numbers, (x, w), strict=True)
        )
        y, pull = mg.vjp(lambda a, b: mg.nn.conv2d(a, b, **parameters), a, b)
        results.append([mg.reshape(t, (-1,)).tolist() for t in (y, *pull(mg.sin(y)))])
    for expected, got in zip(*results, strict=True):
        rounding = 5e-6 * max(map(abs, expected))  # of terms that cancel each other
        assert got == pytest.approx(expected, rel=1e-5, abs=rounding)
