"""The CPU convolution against plain-Python and torch references, in exact arithmetic.

All values are small integers, so every algorithm has one right answer in every dtype, and a NaN
from slack, scratch or an uninitialised output cannot hide in a tolerance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import pytest
from backend_harness import run_program
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minigrad.backend.cpu import conv, conv_lowering, machine, tables
from minigrad.backend.cpu.conv_axis import Axis
from minigrad.backend.launch import Operand, contiguous_strides

FLOATS = ("float32", "float64")
POISON = {"float32": float("nan"), "float64": float("nan"), "bool": True, "uint8": 255}


@dataclass(frozen=True)
class Layout:
    """How a dense array lies in memory: axis order (outermost first), flipped axes, gaps."""

    order: tuple[int, ...] = (0, 1, 2, 3)
    flips: tuple[int, ...] = ()
    gap: int = 0  # poisoned elements after each run of the innermost axis

    def place(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], int]:
        """(elements of storage, strides, offset)."""
        stored = [shape[axis] for axis in self.order]
        stored[-1] += self.gap
        strides = [0] * 4
        for axis, step in zip(self.order, contiguous_strides(tuple(stored)), strict=True):
            strides[axis] = step
        offset = 0
        for axis in self.flips:
            offset += max(0, shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
        return prod(stored), tuple(strides), offset


DENSE = Layout()


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    input_dilation: tuple[int, int] = (1, 1)
    kernel_dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layouts: tuple[Layout, Layout, Layout] = field(default=(DENSE, DENSE, DENSE))

    @property
    def out(self) -> tuple[int, int, int, int]:
        sizes = []
        for i in range(2):
            padded = max(0, (self.x[2 + i] - 1) * self.input_dilation[i] + 1)
            padded += sum(self.padding[i])
            extent = (self.w[2 + i] - 1) * self.kernel_dilation[i] + 1
            sizes.append((padded - extent) // self.stride[i] + 1 if padded >= extent else 0)
        return (self.x[0], self.w[0], *sizes)

    @property
    def parameters(self) -> dict:
        names = ("stride", "padding", "input_dilation", "kernel_dilation", "groups")
        return {name: getattr(self, name) for name in names}


def indices(shape):
    return product(*(range(n) for n in shape))


def at(index, strides, offset=0):
    return offset + sum(i * s for i, s in zip(index, strides, strict=True))


def plain(case: Case, x: list, w: list) -> list:
    """The definition, element by element."""
    out = []
    x_strides, w_strides = contiguous_strides(case.x), contiguous_strides(case.w)
    per_group = case.w[0] // case.groups
    for n, o, oh, ow in indices(case.out):
        total = 0
        for c, kh, kw in indices(case.w[1:]):
            place = []
            for i, (p, k) in enumerate(((oh, kh), (ow, kw))):
                position = p * case.stride[i] + k * case.kernel_dilation[i] - case.padding[i][0]
                index, rest = divmod(position, case.input_dilation[i])
                place.append(index if rest == 0 and 0 <= index < case.x[2 + i] else None)
            if None not in place:
                channel = o // per_group * case.w[1] + c
                total += x[at((n, channel, *place), x_strides)] * w[at((o, c, kh, kw), w_strides)]
        out.append(total)
    return out


def with_torch(case: Case, x: list, w: list) -> list:
    """The same by torch in float64, for larger shapes."""
    torch = pytest.importorskip("torch")
    dilated = torch.tensor(x, dtype=torch.float64).reshape(case.x)
    if max(case.input_dilation) > 1:
        a, b = case.input_dilation
        spread = torch.zeros(*case.x[:2], (case.x[2] - 1) * a + 1, (case.x[3] - 1) * b + 1)
        spread = spread.double()
        spread[:, :, ::a, ::b] = dilated
        dilated = spread
    padded = torch.nn.functional.pad(dilated, (*case.padding[1], *case.padding[0]))
    weights = torch.tensor(w, dtype=torch.float64).reshape(case.w)
    result = torch.nn.functional.conv2d(
        padded, weights, None, case.stride, 0, case.kernel_dilation, case.groups
    )
    assert tuple(result.shape) == case.out
    return result.flatten().tolist()


def store(values: list, shape: tuple[int, ...], layout: Layout, dtype: str) -> list:
    size, strides, offset = layout.place(shape)
    storage = [POISON.get(dtype, 12345)] * size
    for value, index in zip(values, indices(shape), strict=True):
        storage[at(index, strides, offset)] = value
    return storage


def run(case: Case, x: list, w: list, dtype: str) -> list:
    """The convolution's output, row-major, through the operands' layouts."""
    layout_x, layout_w, layout_out = case.layouts
    out_size, out_strides, out_offset = layout_out.place(case.out)

    def view(operand: Operand, shape: tuple[int, ...], layout: Layout) -> Operand:
        _, strides, offset = layout.place(shape)
        return Operand(operand.slot, operand.dtype, shape, strides, offset)

    def build(program, x_all, w_all, out_all):
        conv.conv2d(
            program,
            view(x_all, case.x, layout_x),
            view(w_all, case.w, layout_w),
            view(out_all, case.out, layout_out),
            **case.parameters,
        )

    inputs = []
    for values, shape, layout in ((x, case.x, layout_x), (w, case.w, layout_w)):
        storage = store(values, shape, layout, dtype)
        inputs.append((dtype, (len(storage),), storage))
    storage = run_program(build, inputs, (out_size,), dtype)
    places = [at(index, out_strides, out_offset) for index in indices(case.out)]
    untouched = set(range(out_size)) - set(places)
    if dtype in FLOATS:
        assert all(storage[i] != storage[i] for i in untouched), "wrote outside of the output"
    return [storage[i] for i in places]


def values(case: Case, seed: int, limit: int = 3) -> tuple[list, list]:
    rng = random.Random(seed)
    return tuple([rng.randint(-limit, limit) for _ in range(prod(s))] for s in (case.x, case.w))


def check(case: Case, dtype: str = "float32", reference=plain) -> None:
    x, w = values(case, seed=hash((case.x, case.w)) % 1000)
    assert run(case, x, w, dtype) == reference(case, x, w)


def backward_data(case: Case, h: int, w: int) -> Case:
    """How the gradient of `case` for an input of size (h, w) arrives, as a Case."""
    n, o, oh, ow = case.out
    padding = []
    for i, size in enumerate((h, w)):
        reach = (case.w[2 + i] - 1) * case.kernel_dilation[i]
        low = reach - case.padding[i][0]
        dilated = ((oh, ow)[i] - 1) * case.stride[i] + 1
        padding.append((low, size + reach - dilated - low))
    return Case(
        (n, o, oh, ow),
        (case.x[1], o, *case.w[2:]),
        (1, 1),
        tuple(padding),
        case.stride,
        case.kernel_dilation,
        # the weights are stored (O, C, KH, KW)
        layouts=(DENSE, Layout((1, 0, 2, 3), (2, 3)), DENSE),
    )


def backward_weight(case: Case) -> Case:
    """How the gradient of `case` for its weights arrives, as a Case."""
    n, o, oh, ow = case.out
    padding = []
    for i, size in enumerate(case.x[2:]):
        reach = (case.w[2 + i] - 1) * case.kernel_dilation[i]
        extent = ((oh, ow)[i] - 1) * case.stride[i] + 1
        padding.append((case.padding[i][0], reach + extent - size - case.padding[i][0]))
    swapped = Layout((1, 0, 2, 3))
    return Case(
        (case.x[1], n, *case.x[2:]),
        (o, n, oh, ow),
        case.kernel_dilation,
        tuple(padding),
        kernel_dilation=case.stride,
        layouts=(swapped, swapped, swapped),
    )


FORWARDS = {
    "lenet 1": Case((5, 3, 32, 32), (6, 3, 5, 5)),
    "lenet 2": Case((5, 6, 14, 14), (16, 6, 5, 5)),
    "ragged": Case((3, 5, 13, 11), (19, 5, 3, 3), padding=((1, 1), (1, 1))),
    "wide": Case((2, 4, 9, 70), (9, 4, 3, 3), padding=((1, 1), (1, 1))),
    "stride 2": Case((3, 4, 17, 18), (10, 4, 3, 3), (2, 2), ((1, 1), (1, 1))),
    "stride 2 k1": Case((3, 8, 16, 16), (12, 8, 1, 1), (2, 2)),
    "stride 3": Case((2, 3, 20, 19), (7, 3, 5, 4), (3, 3), ((2, 1), (1, 2))),
    "mixed stride": Case((2, 3, 12, 17), (7, 3, 2, 5), (1, 2), ((0, 1), (2, 2))),
    "one by one": Case((3, 20, 9, 9), (33, 20, 1, 1)),
    "dilated": Case((2, 3, 15, 16), (8, 3, 3, 3), (1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2)),
    "cropped": Case((2, 3, 15, 16), (8, 3, 3, 3), (1, 1), ((-2, 1), (3, -4))),
    "many channels": Case((2, 40, 6, 6), (70, 40, 3, 3), padding=((1, 1), (1, 1))),
    "one image": Case((1, 16, 24, 24), (24, 16, 3, 3), padding=((1, 1), (1, 1))),
    "less than a vector": Case((9, 4, 3, 4), (7, 4, 2, 3)),
    "mostly padding": Case((6, 4, 5, 7), (9, 4, 5, 3), padding=((6, 4), (2, 0))),
    "patches": Case((2, 3, 32, 32), (20, 3, 8, 8), (8, 8)),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
def test_layers_and_their_gradients(name, direction, dtype):
    case = FORWARDS[name]
    if direction == "data":
        case = backward_data(case, *case.x[2:])
        assert case.out == FORWARDS[name].x
    elif direction == "weight":
        case = backward_weight(case)
        c, o, kh, kw = FORWARDS[name].w[1], *FORWARDS[name].w[:1], *FORWARDS[name].w[2:]
        assert case.out == (c, o, kh, kw)
    check(case, dtype, with_torch)


@pytest.mark.parametrize("budget", [1 << 10, 1 << 14])
@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
@pytest.mark.parametrize("name", ["ragged", "stride 2", "lenet 1", "many channels", "one by one"])
def test_images_larger_than_the_cache_go_by_bands(name, direction, budget, monkeypatch):
    monkeypatch.setattr(conv_lowering, "_BLOCK_BYTES", budget)
    case = FORWARDS[name]
    if direction != "forward":
        case = backward_data(case, *case.x[2:]) if direction == "data" else backward_weight(case)
    check(case, "float32", with_torch)


@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
@pytest.mark.parametrize("nbytes", [16, 32, 64])
@pytest.mark.parametrize("name", ["ragged", "stride 2", "lenet 1"])
def test_machines_with_other_vectors(name, nbytes, direction, monkeypatch):
    monkeypatch.setattr(machine, "vector_bytes", lambda: nbytes)
    case = FORWARDS[name]
    if direction != "forward":
        case = backward_data(case, *case.x[2:]) if direction == "data" else backward_weight(case)
    check(case, "float32", with_torch)


axes = st.builds(
    Axis,
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 12),
    stride=st.integers(1, 4),
    low=st.integers(-3, 8),
    input_dilation=st.integers(1, 3),
    kernel_dilation=st.integers(1, 3),
)


@given(axes, st.data())
def test_tap_windows_hold_every_tap_that_meets_an_input(axis, data):
    windows = axis.tap_windows()
    top = data.draw(st.integers(0, axis.out - 1))
    bottom = data.draw(st.integers(top, axis.out - 1))
    first, end = windows[2 * bottom], windows[2 * top + 1]
    assert first >= 0
    assert end <= axis.taps
    for o in range(top, bottom + 1):
        for k in range(axis.taps):
            if axis.source(o * axis.stride + k * axis.kernel_dilation) is not None:
                assert first <= k < end


def test_filter_rows_on_padding_are_not_multiplied():
    case = Case((1, 1, 8, 8), (1, 1, 3, 3), padding=((8, 8), (1, 1)))
    x, w = [1.0] * 64, [float("nan")] * 3 + [1.0] * 6  # the top row of the filter is not a number
    got = run(case, x, w, "float32")
    rows = [got[8 * r : 8 * r + 8] for r in range(case.out[2])]
    # Tiles of whole vectors: of 64 pixels at most, hence rows far from x see no product at all.
    assert rows[0] == rows[-1] == [0.0] * 8


@pytest.mark.parametrize("which", [0, 1])
def test_broadcast_operands_have_strides_of_zero(which):
    case = Case((2, 3, 9, 20), (4, 3, 3, 3), padding=((1, 1), (1, 1)))
    for arrives in (case, backward_weight(case)):
        shape = (arrives.x, arrives.w)[which]
        x, w = values(arrives, 1)
        operands = [x, w]
        operands[which] = [2] * prod(shape)

        def build(program, x_all, w_all, out, shape=shape, arrives=arrives):
            views = [x_all, w_all]
            views[which] = replace(views[which], shape=shape, strides=(0, 0, 0, 0))
            conv.conv2d(program, *views, out, **arrives.parameters)

        inputs = [("float32", arrives.x, x), ("float32", arrives.w, w)]
        inputs[which] = ("float32", (1,), [2])
        assert run_program(build, inputs, arrives.out, "float32") == plain(arrives, *operands)


layouts = st.builds(
    Layout,
    st.permutations(range(4)).map(tuple),
    st.sets(st.integers(0, 3)).map(lambda s: tuple(sorted(s))),
    st.integers(0, 2),
)


@st.composite
def cases(draw) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    n, c, o = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    h, w, kh, kw = (draw(st.integers(1, top)) for top in (9, 20, 5, 5))

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    return Case(
        (n, c * groups, h, w),
        (o * groups, c, kh, kw),
        pair(1, 3),
        (pair(-2, 4), pair(-2, 4)),
        pair(1, 3) if draw(st.booleans()) else (1, 1),
        pair(1, 3),
        groups,
        tuple(draw(st.just(DENSE) | layouts) for _ in range(3)),
    )


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(Case((0, 1, 4, 4), (1, 1, 3, 3)), "float32", 0, 1 << 19)
@given(
    cases(),
    st.sampled_from(["float32", "float32", "float64", "int32"]),
    st.sampled_from([0, 1 << 14]),
    st.sampled_from([256, 1 << 19]),
)
def test_any_parameters_and_any_strides(monkeypatch, case, dtype, serial_work, budget):
    monkeypatch.setattr(tables, "_PARALLEL_WORK", serial_work)
    monkeypatch.setattr(conv_lowering, "_BLOCK_BYTES", budget)
    check(case, dtype)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers(dtype):
    check(FORWARDS["stride 3"], dtype)


def test_uint8_wraps_and_bool_is_any_of_ands():
    case = Case((1, 2, 5, 5), (3, 2, 3, 3), padding=((1, 1), (1, 1)))
    x, w = values(case, 1, 100)
    x, w = [abs(v) for v in x], [abs(v) for v in w]
    assert run(case, x, w, "uint8") == [v % 256 for v in plain(case, x, w)]
    x, w = [v % 5 == 0 for v in x], [v % 7 == 0 for v in w]
    assert run(case, x, w, "bool") == [v > 0 for v in plain(case, x, w)]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_groups(dtype):
    check(Case((3, 12, 11, 13), (18, 4, 3, 3), padding=((1, 1), (1, 1)), groups=3), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(dtype, multiplier):
    case = Case(
        (2, 20, 12, 12),
        (20 * multiplier, 1, 3, 3),
        padding=((1, 1), (1, 1)),
        groups=20,
    )
    check(case, dtype)


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


def test_infinities_stay_where_they_belong():
    case = Case((1, 1, 6, 40), (1, 1, 3, 3), padding=((1, 1), (1, 1)))
    x = [1.0] * (6 * 40)
    x[2 * 40 + 17] = float("inf")
    got = run(case, x, [1.0] * 9, "float32")
    infinite = {i for i, value in enumerate(got) if value == float("inf")}
    assert infinite == {r * 40 + c for r in (1, 2, 3) for c in (16, 17, 18)}
    assert not any(value != value for value in got)


def test_errors_name_the_invariant():
    def build(change):
        def inner(program, x, w, out):
            parameters = Case((1, 4, 8, 8), (2, 4, 3, 3)).parameters | change
            conv.conv2d(program, x, w, out, **parameters)

        return inner

    x, w = ("float32", (1, 4, 8, 8), [0.0] * 256), ("float32", (2, 4, 3, 3), [0.0] * 72)
    with pytest.raises(ValueError, match="expected an output of size 3"):
        run_program(build({"stride": (2, 1)}), [x, w], (1, 2, 6, 6), "float32")
    with pytest.raises(ValueError, match="multiples of groups"):
        run_program(build({"groups": 3}), [x, w], (1, 2, 6, 6), "float32")
    with pytest.raises(ValueError, match="dilations of at least 1"):
        run_program(build({"kernel_dilation": (0, 1)}), [x, w], (1, 2, 6, 6), "float32")
    with pytest.raises(TypeError, match="operands of one dtype"):
        run_program(build({}), [x, w], (1, 2, 6, 6), "float64")
