"""The CPU convolution against plain-Python and torch references, in exact arithmetic.

All values are small integers, so every algorithm has one right answer in every dtype, and a NaN
from slack, scratch or an uninitialised output cannot hide in a tolerance.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from backend_harness import run_program
from conv_definitions import (
    FLOATS,
    FORWARDS,
    Case,
    Layout,
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
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minigrad.backend.cpu import kernel_text
from minigrad.backend.cpu.contract import conv, row_lowering
from minigrad.backend.cpu.contract.axis import Axis
from minigrad.backend.geometry import WindowAxis
from minigrad.backend.launch import Operand


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
    for numbers, shape, layout in ((x, case.x, layout_x), (w, case.w, layout_w)):
        storage = store(numbers, shape, layout, dtype)
        inputs.append((dtype, (len(storage),), storage))
    storage = run_program(build, inputs, (out_size,), dtype)
    places = [at(index, out_strides, out_offset) for index in indices(case.out)]
    untouched = set(range(out_size)) - set(places)
    if dtype in FLOATS:
        assert all(storage[i] != storage[i] for i in untouched), "wrote outside of the output"
    return [storage[i] for i in places]


def check(case: Case, dtype: str = "float32", reference=plain) -> None:
    x, w = values(case, seed=hash((case.x, case.w)) % 1000)
    assert run(case, x, w, dtype) == reference(case, x, w)


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
    monkeypatch.setattr(row_lowering, "_BLOCK_BYTES", budget)
    case = FORWARDS[name]
    if direction != "forward":
        case = backward_data(case, *case.x[2:]) if direction == "data" else backward_weight(case)
    check(case, "float32", with_torch)


axes = st.builds(
    Axis,
    st.integers(1, 9),
    st.integers(1, 12),
    st.builds(
        WindowAxis,
        size=st.integers(1, 6),
        stride=st.integers(1, 4),
        padding=st.tuples(st.integers(-3, 8), st.just(0)),
        dilation=st.integers(1, 3),
        input_dilation=st.integers(1, 3),
    ),
)


@given(axes, st.data())
def test_tap_ranges_hold_every_tap_that_meets_an_input(axis, data):
    ranges, window = axis.tap_ranges(), axis.window
    top = data.draw(st.integers(0, axis.out - 1))
    bottom = data.draw(st.integers(top, axis.out - 1))
    first, end = ranges[2 * bottom], ranges[2 * top + 1]
    assert first >= 0
    assert end <= axis.taps
    for o in range(top, bottom + 1):
        for k in range(axis.taps):
            if axis.source(o * window.stride + k * window.dilation) is not None:
                assert first <= k < end


def test_filter_rows_on_padding_are_not_multiplied():
    case = Case((1, 1, 8, 8), (1, 1, 3, 3), padding=((32, 32), (1, 1)))
    x, w = [1.0] * 64, [float("nan")] * 3 + [1.0] * 6  # the top row of the filter is not a number
    got = run(case, x, w, "float32")
    rows = [got[8 * r : 8 * r + 8] for r in range(case.out[2])]
    # A tile has 112 pixels at most (seven vectors of 64 bytes), so it holds 14 rows of this image:
    # the outermost of the 32 rows of padding share none with x, and see no product at all.
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
    monkeypatch.setattr(kernel_text, "_PARALLEL_WORK", serial_work)
    monkeypatch.setattr(row_lowering, "_BLOCK_BYTES", budget)
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
            case = replace(Case((1, 4, 8, 8), (2, 4, 3, 3)), **change)
            conv.conv2d(program, x, w, out, **case.parameters)

        return inner

    x, w = ("float32", (1, 4, 8, 8), [0.0] * 256), ("float32", (2, 4, 3, 3), [0.0] * 72)
    with pytest.raises(ValueError, match=r"expected an output of size \(3, 6\)"):
        run_program(build({"stride": (2, 1)}), [x, w], (1, 2, 6, 6), "float32")
    with pytest.raises(ValueError, match="multiples of groups"):
        run_program(build({"groups": 3}), [x, w], (1, 2, 6, 6), "float32")
    with pytest.raises(ValueError, match="dilations of at least 1"):
        run_program(build({"kernel_dilation": (0, 1)}), [x, w], (1, 2, 6, 6), "float32")
    with pytest.raises(TypeError, match="operands of one dtype"):
        run_program(build({}), [x, w], (1, 2, 6, 6), "float64")
