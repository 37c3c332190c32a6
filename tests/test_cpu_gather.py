"""take, scatter_add and argmax on the CPU backend against their definitions in plain Python."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from backend_harness import run_program
from gather_definitions import (
    DTYPES,
    INDEX_DTYPES,
    lookups,
    reference_argmax,
    reference_scatter_add,
    reference_take,
    values,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strided_operands import Layout, dense, layouts, run_strided
from window_definitions import same

from minigrad.backend.cpu import gather


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(DTYPES), lookups())
def test_take_is_its_definition(data, dtype, lookup):
    shape, indices, index_dtype = lookup
    x = values(data.draw, dtype, prod(shape))
    out = (shape[0], len(indices), shape[2])
    got = run_strided(
        gather.take,
        [
            (dtype, data.draw(layouts(shape)), x),
            (index_dtype, data.draw(layouts((len(indices),))), indices),
        ],
        data.draw(layouts(out)),
        dtype,
    )
    assert same(got, reference_take(x, indices, shape))


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(("float32", "float64", "int32", "uint8")), lookups())
def test_scatter_add_is_its_definition(data, dtype, lookup):
    shape, indices, index_dtype = lookup
    n = shape[0] * len(indices) * shape[2]
    updates = data.draw(st.lists(st.integers(0, 100), min_size=n, max_size=n))
    got = run_strided(
        gather.scatter_add,
        [
            (index_dtype, data.draw(layouts((len(indices),))), indices),
            (dtype, data.draw(layouts((shape[0], len(indices), shape[2]))), updates),
        ],
        data.draw(layouts(shape)),
        dtype,
    )
    expected = reference_scatter_add(indices, updates, shape)
    assert got == [v % 256 if dtype == "uint8" else v for v in expected]


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 3), st.integers(1, 6), st.integers(0, 20))
def test_argmax_is_the_first_maximum(data, dtype, a, r, b):
    shape = (a, r, b)
    x = values(data.draw, dtype, prod(shape))
    got = run_strided(
        gather.argmax,
        [(dtype, data.draw(layouts(shape)), x)],
        data.draw(layouts((a, b))),
        "int64",
    )
    assert got == reference_argmax(x, shape)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
@pytest.mark.parametrize("index", [3, -4, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_raises(index, index_dtype):
    with pytest.raises(IndexError, match=rf"take: expected indices in \[-3, 3\), got {index}\."):
        run_program(
            gather.take,
            [("float32", (2, 3, 5), range(30)), (index_dtype, (2,), [1, index])],
            (2, 2, 5),
            "float32",
        )
    with pytest.raises(IndexError, match=rf"scatter_add: expected indices .* got {index}\."):
        run_program(
            gather.scatter_add,
            [(index_dtype, (2,), [1, index]), ("float32", (2, 2, 5), range(20))],
            (2, 3, 5),
            "float32",
        )


def test_an_empty_axis_cannot_be_indexed():
    with pytest.raises(IndexError, match="take: expected a non-empty axis to index"):
        run_program(
            gather.take, [("float32", (2, 0, 5), []), ("int64", (1,), [-1])], (2, 1, 5), "float32"
        )
    with pytest.raises(ValueError, match="argmax: expected a non-empty axis"):
        run_program(gather.argmax, [("float32", (2, 0, 5), [])], (2, 5), "int64")


def test_wrong_dtypes_are_refused():
    x, index = ("float32", (1, 2, 1), [0, 1]), ("int64", (1,), [0])
    with pytest.raises(TypeError, match="take: expected one dtype, got float32, float64"):
        run_program(gather.take, [x, index], (1, 1, 1), "float64")
    with pytest.raises(TypeError, match="take: expected int32 or int64 indices, got float32"):
        run_program(gather.take, [x, ("float32", (1,), [0])], (1, 1, 1), "float32")
    with pytest.raises(TypeError, match="scatter_add: expected a numeric dtype, got bool"):
        run_program(gather.scatter_add, [index, ("bool", (1, 1, 1), [True])], (1, 2, 1), "bool")
    with pytest.raises(TypeError, match="argmax: expected out of dtype int64, got int32"):
        run_program(gather.argmax, [x], (1, 1), "int32")


@pytest.mark.parametrize("shape", [(1, 50, 300), (7, 50, 40), (1, 50, 65), (300, 50, 1)])
def test_parallel_shares_agree_with_the_definition(shape):
    a, r, b = shape
    indices = [i * i % r - r * (i % 2) for i in range(120)]
    x = [float(i * 31 % 1009) for i in range(prod(shape))]
    index = ("int64", (120,), indices)
    got = run_program(gather.take, [("float32", shape, x), index], (a, 120, b), "float32")
    assert got == reference_take(x, indices, shape)
    updates = [float(i % 17) for i in range(a * 120 * b)]
    got = run_program(
        gather.scatter_add, [index, ("float32", (a, 120, b), updates)], shape, "float32"
    )
    assert got == reference_scatter_add(indices, updates, shape)
    got = run_program(gather.argmax, [("float32", shape, x)], (a, b), "int64")
    lines = (x[i * r * b : (i + 1) * r * b][k::b] for i, k in product(range(a), range(b)))
    assert got == [line.index(max(line)) for line in lines]


def test_duplicates_add_up_in_order():
    # (1 + tiny) - 1 keeps nothing of tiny, (1 - 1) + tiny all of it
    index = ("int32", (3,), [0, 0, 0])
    for updates, expected in (([1.0, 1e-9, -1.0], 0.0), ([1.0, -1.0, 1e-9], 1e-9)):
        got = run_program(
            gather.scatter_add, [index, ("float32", (1, 3, 1), updates)], (1, 1, 1), "float32"
        )
        assert got == pytest.approx([expected], rel=1e-6, abs=0)


def test_one_row_may_be_read_many_times():
    broadcast = Layout((2, 3, 4), (0, 4, 1), 0, 12)  # an expanded axis has stride 0
    x = [float(i) for i in range(12)]
    got = run_strided(
        gather.take,
        [("float32", broadcast, x + x), ("int64", dense((2,)), [2, 0])],
        dense((2, 2, 4)),
        "float32",
    )
    assert got == reference_take(x + x, [2, 0], (2, 3, 4))
