"""Windows over the last two axes of (A, B, H, W) as plain Python defines them; random problems."""

from __future__ import annotations

import math
from itertools import product
from math import prod

from hypothesis import strategies as st

from minigrad.backend.geometry import Window

NAN, INF = math.nan, math.inf
FLOATS, DTYPES = ("float32", "float64"), ("float32", "float64", "int32", "uint8")
LOWEST = {"float32": -INF, "float64": -INF, "int32": -(2**31), "int64": -(2**63), "uint8": 0}
PAIRS = Window((2, 2), stride=(2, 2))


def out_length(n, size, stride, padding, dilation, input_dilation=1):
    spaced = (n - 1) * input_dilation + 1 if n else 0
    return max((spaced + sum(padding) - (size - 1) * dilation - 1) // stride + 1, 0)


def out_shape(shape, window):
    tail = zip(shape[2:], *window, strict=True)
    return (*shape[:2], *(out_length(*axis) for axis in tail))


def windows(shape, out, window):
    """For each output element, the flat places of x that its window holds, in row-major order."""
    size, stride, padding, dilation, input_dilation = window
    height, width = shape[2:]
    for plane, row, column in product(range(prod(out[:2])), range(out[2]), range(out[3])):
        places = []
        for i, j in product(range(size[0]), range(size[1])):
            y, rest_y = divmod(row * stride[0] + i * dilation[0] - padding[0][0], input_dilation[0])
            z, rest_z = divmod(
                column * stride[1] + j * dilation[1] - padding[1][0], input_dilation[1]
            )
            if not rest_y and not rest_z and 0 <= y < height and 0 <= z < width:
                places.append((plane * height + y) * width + z)
        yield places


def first_maximum(x, places):
    best = None
    for place in places:
        if best is None or x[place] > x[best] or (x[place] != x[place] and x[best] == x[best]):
            best = place
    return best


def same(got, expected):
    return len(got) == len(expected) and all(
        a == b or (a != a and b != b) for a, b in zip(got, expected, strict=True)
    )


def wrapped(dtype, value):
    return value % 256 if dtype == "uint8" else value


def reference_sum(dtype, x, shape, out, window):
    # float() keeps inf - inf a NaN; the values are small integers, so any order is exact
    return [wrapped(dtype, sum(x[p] for p in places)) for places in windows(shape, out, window)]


def reference_max(dtype, x, shape, out, window):
    chosen = [first_maximum(x, places) for places in windows(shape, out, window)]
    return [LOWEST[dtype] if p is None else x[p] for p in chosen]


def reference_select(x, u, shape, out, window):
    chosen = [first_maximum(x, places) for places in windows(shape, out, window)]
    return [0 if p is None else u[p] for p in chosen]


def reference_scatter(dtype, x, g, shape, out, window):
    total = [0] * prod(shape)
    for value, places in zip(g, windows(shape, out, window), strict=True):
        if places:
            place = first_maximum(x, places)
            total[place] = wrapped(dtype, total[place] + value)
    return total


def pairs_of(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def problems(draw, input_dilation=False):
    """A shape and its windows, with a non-negative output."""
    shape = (*draw(pairs_of(0, 2)), *draw(pairs_of(0, 9)))
    window = Window(
        size=draw(pairs_of(1, 4)),
        stride=draw(pairs_of(1, 4)),
        padding=draw(st.tuples(pairs_of(-2, 3), pairs_of(-2, 3))),
        dilation=draw(pairs_of(1, 2)),
        input_dilation=draw(pairs_of(1, 4)) if input_dilation else (1, 1),
    )
    return shape, out_shape(shape, window), window


def values(draw, dtype, n, special=True):
    """Few distinct values, so that ties are frequent."""
    if dtype in FLOATS and special:
        element = st.sampled_from((0.0, 1.0, 2.0, -3.0, NAN, -INF))
    elif dtype == "uint8":
        element = st.sampled_from((0, 1, 200, 255))
    else:
        element = st.integers(-3, 3)
    return draw(st.lists(element, min_size=n, max_size=n))
