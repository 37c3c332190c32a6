"""The data types: promotion, how their numbers are stored, and what only some devices compute."""

from __future__ import annotations

import array
import math
import operator
import struct
import sys
from bisect import bisect_left
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad as mg
from minigrad import ops
from minigrad.dtype import BY_NAME, PRECISION, DType, of_scalar, promote
from minigrad.graph import Node, leaf, topological
from minigrad.interop.encoding import decode, encode
from minigrad.tensor_base import wrap

HALVES = [mg.float16, mg.bfloat16]
PATTERNS = memoryview(array.array("H", range(2**16))).cast("B")


def on_gpu(dtype: DType, *shape: int) -> mg.Tensor:
    """A tensor of no values, with which a graph can be built on any machine."""
    return wrap(leaf(None, shape, dtype, mg.cuda))


def held(values: Any, dtype: DType = mg.float16) -> mg.Tensor:
    return mg.tensor(values, dtype=dtype, device="cpu")


# Promotion


def test_promotion_is_the_array_api_s():
    rising = [[mg.bool], [mg.uint8], [mg.int32], [mg.int64], HALVES, [mg.float32], [mg.float64]]
    for i, low in enumerate(rising):
        for a in low:
            assert promote(a, a) is a
            for high in rising[i + 1 :]:
                for b in high:
                    assert promote(a, b) is promote(b, a) is b
    assert promote(mg.float16, mg.bfloat16) is promote(mg.bfloat16, mg.float16) is mg.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_python_numbers_are_weak_beside_halves(dtype):
    x = on_gpu(dtype, 3)
    for y in (x + 1, 2.5 * x, x**2, x - True, mg.maximum(x, 0)):
        assert y.dtype is dtype
        assert y.device == mg.cuda
    assert of_scalar(1.5) is mg.float32
    assert (x + on_gpu(mg.int64, 3)).dtype is dtype
    assert (x + on_gpu(mg.float32, 3)).dtype is mg.float32


def test_names_and_repr():
    assert [BY_NAME["float16"], BY_NAME["bfloat16"]] == HALVES
    assert repr(mg.bfloat16) == "minigrad.bfloat16"
    assert held([1], mg.bfloat16).dtype is mg.tensor([1], "bfloat16", "cpu").dtype is mg.bfloat16
    assert (mg.float16.typestr, mg.bfloat16.typestr) == ("<f2", None)
    for dtype, digits in PRECISION.items():
        assert decode(encode([1 + 2.0 ** (1 - digits)], dtype), dtype)[0] > 1
        assert decode(encode([1 + 2.0**-digits], dtype), dtype)[0] == 1


# How numbers are stored


def value_of(pattern: int, dtype: DType) -> Fraction | None:
    """What 16 bits mean, by the definition of the format; None if that is not finite."""
    mantissa_bits, bias = (10, 15) if dtype is mg.float16 else (7, 127)
    exponent = (pattern & 0x7FFF) >> mantissa_bits
    if exponent == 2 * bias + 1:
        return None
    mantissa = pattern & ((1 << mantissa_bits) - 1)
    if exponent:
        mantissa += 1 << mantissa_bits
    size = mantissa * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)
    return -size if pattern >> 15 else size


FINITE = {d: [v for v in (value_of(p, d) for p in range(2**15)) if v is not None] for d in HALVES}


def nearest(x: float, dtype: DType) -> int | None:
    """The pattern nearest to |x|, the even of two; None out of range."""
    values, exact = FINITE[dtype], abs(Fraction(x))
    at = bisect_left(values, exact)
    if at == len(values):
        half_step = (values[-1] - values[-2]) / 2
        return at - 1 if exact < values[-1] + half_step else None
    if values[at] == exact:
        return at
    below, above = exact - values[at - 1], values[at] - exact
    return at if above < below or (above == below and at % 2 == 0) else at - 1


def bits(x: float, dtype: DType) -> int:
    return encode([x], dtype).cast("H")[0]


@pytest.mark.parametrize("dtype", HALVES)
def test_all_patterns_come_back(dtype):
    values = decode(PATTERNS, dtype).tolist()
    again = encode(values, dtype).cast("H").tolist()
    for pattern, value in enumerate(values):
        expected = value_of(pattern, dtype)
        if expected is not None:
            assert value == expected
            assert math.copysign(1, value) == (-1 if pattern >> 15 else 1)
        if math.isnan(value):
            assert expected is None
            assert math.isnan(decode(encode([value], dtype), dtype)[0])
        else:
            assert again[pattern] == pattern
    assert sum(map(math.isinf, values)) == 2


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_between_neighbours(dtype):
    """The middles of neighbours, and the nearest float64 on either side of them."""
    values = FINITE[dtype]
    for at in [*range(0, 300), *range(300, len(values) - 1, 97), len(values) - 2]:
        middle = float((values[at] + values[at + 1]) / 2)
        even = at if at % 2 == 0 else at + 1
        assert bits(middle, dtype) == even == nearest(middle, dtype)
        assert bits(math.nextafter(middle, 0), dtype) == at
        assert bits(-math.nextafter(middle, math.inf), dtype) == (at + 1) | 1 << 15


@pytest.mark.parametrize("dtype", HALVES)
@given(x=st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e5, 1e5))
def test_rounding_is_to_nearest_even(dtype, x):
    pattern = nearest(x, dtype)
    if pattern is None:
        with pytest.raises(OverflowError):
            encode([x], dtype)
    else:
        assert bits(x, dtype) == pattern | (1 << 15 if math.copysign(1, x) < 0 else 0)


@pytest.mark.parametrize(
    ("dtype", "largest", "too_large"),
    [(mg.float16, 65504.0, 65520.0), (mg.bfloat16, 255.0 * 2**120, 255.5 * 2**120)],
)
def test_out_of_range(dtype, largest, too_large):
    below = math.nextafter(too_large, 0)
    assert held([below, -below, math.inf], dtype).tolist() == [largest, -largest, math.inf]
    with pytest.raises(
        ValueError, match=rf"tensor: expected numbers that {dtype.name} can hold, got -\d"
    ):
        held([1.0, math.inf, -too_large], dtype)
    with pytest.raises(ValueError, match=rf"{dtype.name} can hold, got 1000"):
        held([[10**400]], dtype)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_encode_and_decode_are_inverse(name):
    dtype = BY_NAME[name]
    numbers = [1, 0, 1, 1, 0, 1]
    data = encode(numbers, dtype)
    assert (data.format, data.nbytes) == ("B", 6 * dtype.itemsize)
    assert decode(data, dtype).tolist() == numbers
    assert decode(data, dtype, (2, 3)).tolist() == [[1, 0, 1], [1, 0, 1]]
    assert encode([], dtype).nbytes == 0


# Held anywhere


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_held_can_be_looked_at(dtype):
    x = held([[1.5, -2.0], [math.inf, 0.0]], dtype)
    assert x.tolist() == [[1.5, -2.0], [math.inf, 0.0]]
    assert repr(x) == (
        f"tensor([[ 1.5, -2.0],\n        [ inf,  0.0]],\n       dtype={dtype.name}, device=cpu)"
    )
    y = held(0.1, dtype)
    expected = {mg.float16: 0.0999755859375, mg.bfloat16: 0.10009765625}[dtype]
    assert y.item() == float(y) == expected
    assert (int(held(3, dtype)), bool(held([0], dtype))) == (3, False)
    assert f"{y:.2f}" == "0.10"
    assert held([], dtype).tolist() == []


@pytest.mark.parametrize("dtype", HALVES)
def test_repr_decodes_what_it_shows(dtype):
    x = held([i % 50 for i in range(1200)], dtype)
    assert repr(x).startswith("tensor([ 0.,  1.,  2., ..., 47., 48., 49.]")


def test_what_is_held_can_be_passed_on():
    x = held([1.5, 2.5], mg.bfloat16)
    assert x.detach().to("cpu").tolist() == mg.tensor(x).tolist() == [1.5, 2.5]
    assert mg.from_dlpack(x).dtype is mg.bfloat16
    y = held([1.5], mg.float16)
    assert y.__array_interface__["typestr"] == "<f2"

    class Exporter:
        __array_interface__ = y.__array_interface__

    assert mg.asarray(Exporter()).dtype is mg.float16
    trained = mg.tensor([1.0], dtype="float16", device="cpu", requires_grad=True)
    assert trained.is_leaf


@pytest.mark.skipif(sys.version_info < (3, 12), reason="memoryview reads float16 from 3.12 on")
def test_the_buffer_protocol_has_float16():
    view = memoryview(held([1.5, 2.5]))
    assert (view.format, view.tolist()) == ("e", [1.5, 2.5])


def test_protocols_without_bfloat16():
    x = held([1.0], mg.bfloat16)
    assert not hasattr(x, "__array_interface__")
    message = r"expected a dtype that the protocol has a code for, got bfloat16\. Use from_dlpack"
    with pytest.raises(AttributeError, match=rf"__array_interface__: {message}"):
        _ = x.__array_interface__
    with pytest.raises(BufferError, match=rf"__buffer__: {message}"):
        x.__buffer__(0)


def test_a_buffer_of_float16_is_taken():
    data = memoryview(bytearray(struct.pack("2e", 1.5, -2.0)))

    class Halves:
        __array_interface__: Any = {  # noqa: RUF012
            "version": 3, "shape": (2,), "typestr": "<f2", "data": data,
        }  # fmt: skip

    assert mg.tensor(Halves()).tolist() == [1.5, -2.0]


def test_strided_halves_are_gathered():
    torch = pytest.importorskip("torch")
    t = torch.arange(24).reshape(2, 3, 4)
    for dtype in (torch.float16, torch.bfloat16, torch.uint8):
        assert mg.asarray(t.to(dtype).permute(2, 0, 1)).tolist() == t.permute(2, 0, 1).tolist()


# Computed with where the device can


REFUSED = (
    r"expected a dtype that cpu computes with, got b?float16, which it can only hold\. "
    r"Compute on cuda, with astype\('float32'\) before to\('cpu'\); without cuda, "
    r"x\.tolist\(\) gives the numbers\."
)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "build",
    [
        lambda x: x + x,
        lambda x: x * 2,
        lambda x: x.sum(),
        lambda x: x.astype("float32"),
        lambda x: x.astype("bool"),
        lambda x: x.reshape(1, 2),
        lambda x: x[0],
        lambda x: x.requires_grad_(),
        lambda x: mg.barrier(x),
        lambda x: mg.tensor([1.0], device="cpu").astype(x.dtype),
        lambda x: mg.tensor(mg.tensor([1.0], device="cpu"), dtype=x.dtype),
        lambda x: mg.zeros(2, dtype=x.dtype, device="cpu"),
        lambda x: mg.arange(2, dtype=x.dtype, device="cpu"),
        lambda x: mg.random.uniform(2, dtype=x.dtype, device="cpu"),
        lambda x: operator.iadd(x, 1),
    ],
)
def test_the_cpu_does_not_compute_with_halves(dtype, build, cpu_too):
    with pytest.raises(mg.DeviceError, match=REFUSED):
        build(held([1.0, 2.0], dtype))


def test_the_refusal_names_the_op():
    with pytest.raises(mg.DeviceError, match=r"^add: expected a dtype that cpu computes with"):
        _ = held([1.0]) + held([2.0])
    with pytest.raises(mg.DeviceError, match=r"^const: expected a dtype that cpu computes with"):
        mg.full((), 2, dtype="bfloat16", device="cpu")


@pytest.mark.parametrize("dtype", HALVES)
def test_graphs_are_built_where_halves_are_computed(dtype):
    x = on_gpu(dtype, 4, 3)
    w = wrap(leaf(None, (3, 2), dtype, mg.cuda, needs_grad=True))
    y = mg.nn.relu(x @ w)
    assert y.dtype is dtype
    (g,) = mg.gradients([y.sum()], [w])
    assert (g.dtype, g.shape, g.device) == (dtype, (3, 2), mg.cuda)


@pytest.fixture
def gpu() -> mg.Device:
    if mg.devices()["cuda"] != "usable":
        pytest.skip(f"cuda: {mg.devices()['cuda']}")
    return mg.cuda


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_go_to_the_gpu_and_back(gpu, dtype, tmp_path):
    x = held([[1.5, -2.0], [0.25, 3.0]], dtype).to(gpu)
    doubled = [[3.0, -4.0], [0.5, 6.0]]
    assert (x * 2).to("cpu").tolist() == doubled
    assert mg.tensor(x * 2, dtype="float32", device="cpu").tolist() == doubled
    mg.save(tmp_path / "x", {"x": x})
    kept = mg.load(tmp_path / "x", device="cpu")["x"]
    assert (kept.dtype, str(kept.device)) == (dtype, "cpu")
    assert mg.tensor(kept, dtype="float64", device=gpu).tolist() == x.tolist()
    singles = mg.tensor([1.0, 2.0], device="cpu")
    assert mg.tensor(singles, dtype=dtype, device=gpu).dtype is dtype
    trained = mg.tensor([1.0], dtype=dtype, device=gpu, requires_grad=True)
    assert trained.to("cpu").is_leaf


@pytest.mark.parametrize("dtype", HALVES)
def test_devices_round_as_the_host_does(gpu, dtype):
    halfway = [float((a + b) / 2) for a, b in zip(FINITE[dtype], FINITE[dtype][1:], strict=False)]
    values = [v for v in halfway[::37] if abs(v) < 3e38]
    found = mg.tensor(values, dtype="float64", device=gpu).astype(dtype).tolist()
    assert found == decode(encode(values, dtype), dtype).tolist()


def test_a_mean_in_float16_does_not_overflow(gpu):
    x = mg.full(3000, 100.0, dtype="float16", device=gpu)
    assert (mg.mean(x).item(), mg.var(x).item(), mg.sum(x).item()) == (100.0, 0.0, math.inf)


# Sums behind statistics


def sums(x: mg.Tensor) -> set[DType]:
    reduced = (ops.sum_, ops.window_sum)
    return {n.dtype for n in topological([x.node]) if n.op in reduced}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "function",
    [
        mg.mean,
        mg.var,
        mg.std,
        mg.logsumexp,
        mg.nn.softmax,
        mg.nn.log_softmax,
        lambda x: mg.nn.moments(x, (0, 2))[1],
        lambda x: mg.nn.batch_norm(x, training=True),
        lambda x: mg.nn.batch_norm(x, weight=on_gpu(x.dtype, 4), bias=on_gpu(x.dtype, 4)),
        lambda x: mg.nn.layer_norm(x, 6, on_gpu(x.dtype, 6), on_gpu(x.dtype, 6)),
        lambda x: mg.nn.group_norm(x, 2, on_gpu(x.dtype, 4)),
        lambda x: mg.nn.instance_norm(x),
        lambda x: mg.nn.rms_norm(x, 6, on_gpu(x.dtype, 6)),
        lambda x: mg.nn.local_response_norm(x, 3),
        lambda x: mg.nn.mse_loss(x, x * 2),
    ],
)
def test_statistics_of_halves_are_summed_in_float32(function, dtype):
    x = wrap(leaf(None, (3, 4, 6), dtype, mg.cuda, needs_grad=True))
    y = function(x)
    assert y.dtype is dtype
    assert sums(y) == {mg.float32}
    (g,) = mg.gradients([y], [x], [on_gpu(dtype, *y.shape)])
    assert g.dtype is dtype


def test_rms_norm_takes_the_resolution_of_the_dtype():
    def added(node: Node) -> list[float]:
        return [n.attrs["value"] for n in topological([node]) if n.op.name == "const"]

    for dtype, eps in ((mg.float16, 2.0**-10), (mg.bfloat16, 2.0**-7), (mg.float32, 2.0**-23)):
        assert eps in added(mg.nn.rms_norm(on_gpu(dtype, 2, 4), 4).node)
