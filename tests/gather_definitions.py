"""Gathers along the middle axis of (A, R, B) as plain Python defines them; random problems."""

from __future__ import annotations

import math
from itertools import product
from math import prod

from hypothesis import strategies as st

NAN, INF = math.nan, math.inf
DTYPES = ("float32", "float64", "int32", "int64", "uint8", "bool")
INDEX_DTYPES = ("int32", "int64")


def values(draw, dtype, n):
    element = {"bool": st.booleans(), "uint8": st.sampled_from((0, 1, 200, 255))}.get(
        dtype, st.integers(-3, 3)
    )
    if dtype.startswith("float"):
        element = st.sampled_from((0.0, 1.0, 2.5, -INF, NAN))
    return draw(st.lists(element, min_size=n, max_size=n))


def reference_take(x, indices, shape):
    a, r, b = shape
    return [x[(i * r + j % r) * b + k] for i, j, k in product(range(a), indices, range(b))]


def reference_scatter_add(indices, updates, shape):
    a, r, b = shape
    total = [0] * prod(shape)
    for plane, (i, index), k in product(range(a), enumerate(indices), range(b)):
        total[(plane * r + index % r) * b + k] += updates[(plane * len(indices) + i) * b + k]
    return total


def reference_argmax(x, shape):
    a, r, b = shape
    places = []
    for plane, column in product(range(a), range(b)):
        line = [x[(plane * r + i) * b + column] for i in range(r)]
        first_nan = next((i for i, v in enumerate(line) if v != v), None)
        places.append(line.index(max(line)) if first_nan is None else first_nan)
    return places


@st.composite
def lookups(draw):
    """A shape (A, R, B), indices into R (none if it is empty), and their dtype."""
    shape = (draw(st.integers(0, 3)), draw(st.integers(0, 6)), draw(st.integers(0, 20)))
    index = st.integers(-shape[1], shape[1] - 1) if shape[1] else st.nothing()
    indices = draw(st.lists(index, max_size=7 if shape[1] else 0))
    return shape, indices, draw(st.sampled_from(INDEX_DTYPES))
