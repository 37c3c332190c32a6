"""The CPU backend's windows against their definitions in plain Python."""

from __future__ import annotations

from functools import partial
from math import prod

import pytest
from backend_harness import Prepared, run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from strided_operands import dense, layouts, run_strided
from window_definitions import (
    DTYPES,
    FLOATS,
    INF,
    NAN,
    PAIRS,
    out_shape,
    problems,
    reference_max,
    reference_scatter,
    reference_select,
    reference_sum,
    same,
    values,
)

from minigrad.backend.cpu.window import window
from minigrad.backend.geometry import Window


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(DTYPES))
def test_window_sum_is_its_definition(data, dtype):
    shape, out, sliding = data.draw(problems(input_dilation=True))
    x = values(data.draw, dtype, prod(shape))
    got = run_strided(
        partial(window.window_sum, window=sliding),
        [(dtype, data.draw(layouts(shape)), x)],
        data.draw(layouts(out)),
        dtype,
    )
    assert same(got, reference_sum(dtype, x, shape, out, sliding))


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(DTYPES))
def test_window_max_is_its_definition(data, dtype):
    shape, out, sliding = data.draw(problems())
    x = values(data.draw, dtype, prod(shape))
    got = run_strided(
        partial(window.window_max, window=sliding),
        [(dtype, data.draw(layouts(shape)), x)],
        data.draw(layouts(out)),
        dtype,
    )
    assert same(got, reference_max(dtype, x, shape, out, sliding))


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(DTYPES))
def test_select_and_scatter_find_the_first_maximum(data, dtype):
    shape, out, sliding = data.draw(problems())
    x = values(data.draw, dtype, prod(shape))
    u = values(data.draw, dtype, prod(shape), special=False)
    g = values(data.draw, dtype, prod(out), special=False)
    at = data.draw(layouts(shape))
    selected = run_strided(
        partial(window.window_select, window=sliding),
        [(dtype, at, x), (dtype, data.draw(layouts(shape)), u)],
        data.draw(layouts(out)),
        dtype,
    )
    assert same(selected, reference_select(x, u, shape, out, sliding))
    scattered = run_strided(
        partial(window.window_scatter, window=sliding),
        [(dtype, at, x), (dtype, data.draw(layouts(out)), g)],
        data.draw(layouts(shape)),
        dtype,
    )
    assert same(scattered, reference_scatter(dtype, x, g, shape, out, sliding))
    if dtype != "uint8":
        left = sum(a * b for a, b in zip(selected, g, strict=True))
        assert left == sum(a * b for a, b in zip(u, scattered, strict=True))


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_window_sum_is_closed_under_its_transpose(data):
    shape, out, sliding = data.draw(problems(input_dilation=True))
    x = values(data.draw, "float64", prod(shape), special=False)
    g = values(data.draw, "float64", prod(out), special=False)
    y = run_program(
        partial(window.window_sum, window=sliding),
        [("float64", shape, x)],
        out,
        "float64",
    )
    back = run_program(
        partial(window.window_sum, window=sliding.adjoint(shape[2:])),
        [("float64", out, g)],
        shape,
        "float64",
    )
    left = sum(a * b for a, b in zip(y, g, strict=True))
    assert left == sum(a * b for a, b in zip(x, back, strict=True))


# ---- the kernels for 2 x 2 windows at stride 2


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(FLOATS), st.integers(0, 7), st.integers(0, 70))
def test_pair_kernels(data, dtype, height, width):
    shape, out = (2, 2, height, width), (2, 2, height // 2, width // 2)
    seed = data.draw(st.integers(0, 1000))
    palette = (0.0, 1.0, 2.0, -1.0, -INF, 5.0, NAN)
    shades = data.draw(st.integers(1, len(palette)))
    x = [palette[(i * i * 7 + i * seed) % 131 % shades] for i in range(prod(shape))]
    u = [float(i % 97) for i in range(prod(shape))]
    g = [float(i % 89 + 1) for i in range(prod(out))]

    def run(lower, inputs, out_shape, sliding=PAIRS):
        names = []

        def build(program, *operands):
            lower(program, *operands, window=sliding)
            names.extend(launch.kernel.name for launch in program.launches)

        result = run_strided(
            build, [(dtype, dense(s), v) for s, v in inputs], dense(out_shape), dtype
        )
        assert all(name.startswith("pair_") for name in names)
        assert bool(names) == bool(prod(out_shape))
        return result

    got = run(window.window_max, [(shape, x)], out)
    assert same(got, reference_max(dtype, x, shape, out, PAIRS))
    got = run(window.window_sum, [(shape, x)], out)
    assert same(got, reference_sum(dtype, x, shape, out, PAIRS))
    got = run(window.window_select, [(shape, x), (shape, u)], out)
    assert same(got, reference_select(x, u, shape, out, PAIRS))
    got = run(window.window_scatter, [(shape, x), (out, g)], shape)
    assert same(got, reference_scatter(dtype, x, g, shape, out, PAIRS))
    padding = (1, 1 + height % 2), (1, 1 + width % 2)
    spread = Window((2, 2), padding=padding, input_dilation=(2, 2))
    got = run(window.window_sum, [(out, g)], shape, spread)
    assert same(got, reference_sum(dtype, g, out, shape, spread))


def test_a_constant_input_selects_the_first_cell():
    build = partial(window.window_scatter, window=PAIRS)
    inputs = [("float32", (1, 1, 2, 4), [3.0] * 8), ("float32", (1, 1, 1, 2), [5.0, 7.0])]
    assert run_program(build, inputs, (1, 1, 2, 4), "float32") == [5, 0, 7, 0, 0, 0, 0, 0]


# ---- shapes that run in parallel, mixed types, wide planes


@pytest.mark.parametrize(("size", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_parallel_shares_do_not_collide(dtype, size, stride, pad):
    sliding = Window((size, size), (stride, stride), ((pad, pad), (pad, pad)))
    shape = (3, 3, 61, 67)
    out = out_shape(shape, sliding)
    x = [float(i * 7919 % 101) for i in range(prod(shape))]
    g = [float(i % 13 - 6) for i in range(prod(out))]

    def scatter(program, *operands):
        window.window_scatter(program, *operands, window=sliding)
        assert program.launches[0].tasks > 1 or window.kernel_text.num_threads() == 1

    def maximum(program, *operands):
        window.window_max(program, *operands, window=sliding)
        assert program.launches[0].tasks > 1 or window.kernel_text.num_threads() == 1

    got = run_program(scatter, [(dtype, shape, x), (dtype, out, g)], shape, dtype)
    assert got == reference_scatter(dtype, x, g, shape, out, sliding)
    got = run_program(maximum, [(dtype, shape, x)], out, dtype)
    assert got == reference_max(dtype, x, shape, out, sliding)


@pytest.mark.parametrize(("x_dtype", "u_dtype"), [("float32", "float64"), ("uint8", "float32")])
def test_selected_values_may_have_another_type(x_dtype, u_dtype):
    shape, out = (1, 2, 4, 6), (1, 2, 2, 3)
    x = [i * 29 % 11 for i in range(48)]
    u, g = [i / 4 for i in range(48)], [i / 8 for i in range(12)]
    select = partial(window.window_select, window=PAIRS)
    scatter = partial(window.window_scatter, window=PAIRS)
    got = run_program(select, [(x_dtype, shape, x), (u_dtype, shape, u)], out, u_dtype)
    assert got == reference_select(x, u, shape, out, PAIRS)
    got = run_program(scatter, [(x_dtype, shape, x), (u_dtype, out, g)], shape, u_dtype)
    assert got == reference_scatter(u_dtype, x, g, shape, out, PAIRS)


def test_planes_of_many_elements_take_wide_indices(monkeypatch):
    monkeypatch.setattr(window, "_INT32_REACH", 0)
    sliding = PAIRS._replace(size=(3, 3), padding=((1, 1), (1, 1)))
    shape = (1, 2, 5, 9)
    out = out_shape(shape, sliding)
    x, g = [i * 29 % 11 for i in range(90)], [i / 8 for i in range(prod(out))]
    names = []

    def scatter(program, *operands):
        window.window_scatter(program, *operands, window=sliding)
        names.append(program.launches[0].kernel.name)

    got = run_program(scatter, [("float32", shape, x), ("float32", out, g)], shape, "float32")
    assert got == reference_scatter("float32", x, g, shape, out, sliding)
    assert "int64" in names[0]


def test_integers_far_apart():
    sliding = PAIRS._replace(stride=(1, 1))
    x = [-(2**63), 2**63 - 1, -1, -(2**63), -(2**63), 5]
    build = partial(window.window_max, window=sliding)
    got = run_program(build, [("int64", (1, 1, 2, 3), x)], (1, 1, 1, 2), "int64")
    assert got == [2**63 - 1, 2**63 - 1]


def test_bool_is_refused():
    with pytest.raises(
        TypeError, match=r"window_max: expected operands of one numeric dtype, got bool"
    ):
        Prepared(
            partial(window.window_max, window=PAIRS),
            [("bool", (1, 1, 2, 2), [True] * 4)],
            (1, 1, 1, 1),
            "bool",
        )


def test_equal_structure_shares_a_kernel():
    kernels = set()

    def build(program, *operands):
        window.window_max(program, *operands, window=PAIRS._replace(size=(3, 3)))
        kernels.add(program.launches[0].kernel)

    for height, width in ((5, 7), (9, 40)):
        shape = (2, 1, height, width)
        out = out_shape(shape, PAIRS._replace(size=(3, 3)))
        run_program(build, [("float32", shape, [1.0] * prod(shape))], out, "float32")
    assert len(kernels) == 1


def test_pooling_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for shape, size, stride, pad in [((2, 3, 12, 17), 3, 2, 1), ((2, 3, 9, 70), 2, 2, 0)]:
        sliding = Window((size, size), (stride, stride), ((pad, pad), (pad, pad)))
        x = torch.randn(shape, generator=generator, requires_grad=True)
        y = torch.nn.functional.max_pool2d(x, size, stride, pad)
        g = torch.randn(y.shape, generator=generator)
        y.backward(g)
        flat_x, flat_g = x.detach().flatten().tolist(), g.flatten().tolist()
        out = tuple(y.shape)
        got = run_program(
            partial(window.window_max, window=sliding),
            [("float32", shape, flat_x)],
            out,
            "float32",
        )
        assert got == y.flatten().tolist()
        got = run_program(
            partial(window.window_scatter, window=sliding),
            [("float32", shape, flat_x), ("float32", out, flat_g)],
            shape,
            "float32",
        )
        assert got == pytest.approx(x.grad.flatten().tolist(), abs=1e-6)
