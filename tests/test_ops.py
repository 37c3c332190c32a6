"""Every primitive, compiled, against `reference.py`, `math` and finite differences."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import reference
from cases import FUNCTION_CASES, INTEGERS, PRIMITIVE_CASES, Case, store

from minigrad import graph, ops
from minigrad.autodiff import gradients
from minigrad.backend.geometry import Window
from minigrad.device import cpu
from minigrad.dtype import bool_, float32, float64, int32, int64, uint8
from minigrad.errors import GradientError
from minigrad.execution.compute import compute
from minigrad.graph import Node, const
from minigrad.tensor_base import wrap
from minigrad.testing import gradcheck

# Relative to the largest element. float32 kernels add in float32 within a block.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


def computed(node: Node) -> list[Any]:
    compute([node])
    return reference.read(node)


def agree(actual: list[Any], expected: list[Any], tolerance: float) -> bool:
    """Equal NaNs and infinities, and finite values within `tolerance` of the largest."""
    finite = [abs(e) for e in expected if math.isfinite(e)]
    allowed = tolerance * max([1.0, *finite])
    return len(actual) == len(expected) and all(
        (math.isnan(a) and math.isnan(e)) or a == e or abs(a - e) <= allowed
        for a, e in zip(actual, expected, strict=True)
    )


def check(node: Node, tolerance: float | None = None) -> None:
    """The compiled value is the reference's."""
    actual, expected = computed(node), reference.evaluate(node)
    if tolerance is None:
        tolerance = TOLERANCE.get(node.dtype.name, 0.0)
    assert agree(actual, expected, tolerance), f"{node}: {actual} instead of {expected}"


def _value_rows() -> list[Any]:
    rows = []
    for case in PRIMITIVE_CASES:
        floating = (float32, float64) if case.floating else ()
        rows += [
            pytest.param(case, d, id=f"{case.name}-{d.name}") for d in floating + case.integers
        ]
    return rows + [pytest.param(c, float32, id=c.name) for c in FUNCTION_CASES]


def _derivable() -> list[Any]:
    return [pytest.param(c, id=c.name) for c in PRIMITIVE_CASES + FUNCTION_CASES if c.order]


def test_every_primitive_has_a_row():
    missing = set(graph.PRIMITIVES) - {c.primitive for c in PRIMITIVE_CASES}
    assert not missing, f"tests/cases.py: no row for {sorted(missing)}"
    underived = {p.name for p in graph.PRIMITIVES.values() if p.vjp and p.kind != "leaf"}
    underived -= {c.primitive for c in PRIMITIVE_CASES if c.order == 2}
    assert not underived, f"tests/cases.py: no second derivative checked of {sorted(underived)}"


def test_reference_knows_every_primitive():
    elementwise = {c.primitive for c in cases.ELEMENTWISE if c.meaning}
    assert set(graph.PRIMITIVES) - {"stored"} == set(reference.MEANING) | elementwise


@pytest.mark.parametrize(("case", "dtype"), _value_rows())
def test_value(case: Case, dtype, device):
    check(case.f(*[wrap(n) for n in case.nodes(dtype, device)]).node)


@pytest.mark.parametrize("case", _derivable())
def test_derivatives(case: Case, device):
    gradcheck(case.f, *case.tensors(float64, device), order=case.order)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in PRIMITIVE_CASES if not c.order]
)
def test_no_derivative_by_decision(case: Case, device):
    nodes = case.nodes(float64 if case.floating else int64, device, requires_grad=True)
    y = case.f(*[wrap(n) for n in nodes]).node
    assert not y.needs_grad


# Each with the same function of Python's math module; their kernels are our own polynomials.
@pytest.mark.parametrize(
    ("name", "f", "low", "high"),
    [
        ("exp", math.exp, -80.0, 80.0),
        ("log", math.log, 1e-30, 1e30),
        ("tanh", math.tanh, -10.0, 10.0),
        ("erf", math.erf, -4.0, 4.0),
        ("sin", math.sin, -100.0, 100.0),
        ("cos", math.cos, -100.0, 100.0),
        ("sqrt", math.sqrt, 0.0, 1e20),
        ("rsqrt", lambda x: 1 / math.sqrt(x), 1e-20, 1e20),
    ],
)
@pytest.mark.parametrize("dtype", [float32, float64])
def test_elementary_function_to_a_few_units_in_the_last_place(name, f, low, high, dtype, device):
    n = 2001
    if low > 0:  # logarithmic grid
        points = [low * (high / low) ** (k / (n - 1)) for k in range(n)]
    else:
        points = [low + (high - low) * k / (n - 1) for k in range(n)]
    x = store(points, (n,), dtype, device)
    unit = 2.0**-23 if dtype is float32 else 2.0**-52
    y = computed(graph.PRIMITIVES[name](x))
    for point, value in zip(reference.read(x), y, strict=True):
        exact = f(point)
        # Next to a zero of sin the argument reduction limits the absolute error instead.
        assert abs(value - exact) <= 4 * unit * max(abs(exact), 1e-3), f"{name}({point}) = {value}"


SPECIAL = [0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e30, -1e30, math.inf, -math.inf, math.nan]
UNARY, BINARY = (
    [
        c.primitive
        for c in cases.ELEMENTWISE
        if c.meaning and c.special and c.floating and len(c.inputs) == count
    ]
    for count in (1, 2)
)


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("name", UNARY)
def test_special_values(name, dtype, device):
    check(graph.PRIMITIVES[name](store(SPECIAL, (len(SPECIAL),), dtype, device)))


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("name", BINARY)
def test_special_pairs(name, dtype, device):
    pairs = [(a, b) for a in SPECIAL for b in SPECIAL]
    a, b = (store([p[k] for p in pairs], (len(pairs),), dtype, device) for k in range(2))
    check(graph.PRIMITIVES[name](a, b))


@pytest.mark.parametrize("name", ["sum", "max"])
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
def test_special_values_in_reductions(name, special, device):
    rows = [1.0, special, 3.0, special, special, special, -math.inf, 2.0, math.inf]
    check(graph.PRIMITIVES[name](store(rows, (3, 3), float32, device), axes=(1,)))


def test_nan_is_the_maximum(device):
    x = store([1.0, math.nan, 3.0, math.nan], (1, 4), float64, device)
    assert computed(ops.argmax(x, axis=1)) == [1]
    assert math.isnan(computed(ops.max_(x, axes=(1,)))[0])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around(dtype, device):
    bits = 8 * dtype.itemsize
    top = 2**bits - 1 if dtype is uint8 else 2 ** (bits - 1) - 1
    a = store([top, top, 2, 0], (4,), dtype, device)
    b = store([1, top, 3, 1], (4,), dtype, device)
    for op in (ops.add, ops.sub, ops.mul):
        check(op(a, b))
    check(ops.neg(a))
    check(ops.sum_(a, axes=(0,)))


def test_casts_truncate_towards_zero(device):
    x = store([-2.7, -0.3, 0.0, 0.3, 2.7], (5,), float64, device)
    assert computed(ops.cast(x, dtype=int64)) == [-2, 0, 0, 0, 2]
    assert computed(ops.cast(x, dtype=bool_)) == [True, True, False, True, True]
    assert computed(ops.cast(store([-1, 300], (2,), int32, device), dtype=uint8)) == [255, 44]


def test_cast_carries_the_gradient_in_the_dtype_of_its_input(device):
    x = store([1.0, 2.0], (2,), float32, device, needs_grad=True)
    y = ops.cast(x, dtype=float64)
    (g,) = gradients([y], [x], [const(0.5, float64, device, (2,))])
    assert g.dtype is float32
    assert computed(g) == [0.5, 0.5]


def test_random_bits_are_philox(device):
    # Known answers: Random123, kat_vectors, philox4x32 10.
    state = store([0, 0], (2,), int64, device)
    unsigned = [v % 2**32 for v in computed(ops.random_bits(state, shape=(4,)))]
    assert unsigned == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    state = store([2**63 - 1, 2**62 + 2**32 - 1], (2,), int64, device)
    check(ops.random_bits(state, shape=(11,)))


def test_random_bits_continue_where_the_counter_says(device):
    seed = 1234567890123
    first = computed(ops.random_bits(store([seed, 0], (2,), int64, device), shape=(16,)))
    later = computed(ops.random_bits(store([seed, 2], (2,), int64, device), shape=(2, 4)))
    assert later == first[8:]


def _empty_rows() -> list[tuple[str, Any]]:
    def dot(shape_a, shape_b):
        return lambda s: ops.dot(s(*shape_a), s(*shape_b), batch=((), ()), contract=((1,), (0,)))

    def conv(shape, kernel, stride=1):
        return lambda s: ops.conv(
            s(*shape), s(*kernel), window=Window(kernel[2:], (stride, stride)), groups=1
        )

    window = {"axes": (0, 1), "window": Window((2, 2), stride=(2, 1))}
    return [
        ("map", lambda s: ops.exp(s(0, 3))),
        ("sum of nothing", lambda s: ops.sum_(s(2, 0), axes=(1,))),
        ("sum of no rows", lambda s: ops.sum_(s(0, 3), axes=(1,))),
        ("max of no rows", lambda s: ops.max_(s(0, 3), axes=(1,))),
        ("reshape", lambda s: ops.reshape(s(0, 3), shape=(3, 0, 2))),
        ("expand", lambda s: ops.expand(s(1, 3), shape=(0, 3))),
        ("slice", lambda s: ops.narrow(s(2, 3), 1, 2, 2)),
        ("pad", lambda s: ops.pad(s(0, 2), low=(1, 0), high=(2, 0), interior=(3, 1))),
        ("concat", lambda s: ops.concat(s(2, 0), s(2, 3), axis=1)),
        ("flip", lambda s: ops.flip(s(0, 3), axes=(0,))),
        ("dot over nothing", dot((2, 0), (0, 3))),
        ("dot of no rows", dot((0, 2), (2, 3))),
        ("conv of no images", conv((0, 2, 3, 3), (2, 2, 2, 2))),
        ("conv without room", conv((1, 2, 2, 2), (2, 2, 3, 3))),
        ("conv without room, strided", conv((1, 1, 2, 2), (1, 1, 3, 3), stride=2)),
        ("conv of no channels", conv((1, 0, 3, 3), (2, 0, 2, 2))),
        (
            "window_sum without room",
            lambda s: ops.window_sum(s(1, 3), **window),
        ),
        ("window_max without room", lambda s: ops.window_max(s(1, 3), **window)),
        ("window_max of no rows", lambda s: ops.window_max(s(0, 3), **window)),
    ]


@pytest.mark.parametrize(("label", "build"), _empty_rows(), ids=[r[0] for r in _empty_rows()])
def test_empty_axes(label, build, device):
    made: list[Node] = []

    def sample(*shape: int) -> Node:
        values = cases.real(*shape).values(f"{label}{shape}", float64)
        made.append(store(values, shape, float64, device, needs_grad=True))
        return made[-1]

    y = build(sample)
    check(y)
    cotangent = cases.real(*y.shape).values(label, float64)
    for x, g in zip(
        made, gradients([y], made, [store(cotangent, y.shape, float64, device)]), strict=True
    ):
        assert g is not None
        assert (g.shape, g.dtype) == (x.shape, x.dtype)
        check(g)


def test_maximum_and_max_share_ties_equally(device):
    a = store([1.0, 2.0, 2.0], (3,), float64, device, needs_grad=True)
    b = store([1.0, 2.0, 0.0], (3,), float64, device, needs_grad=True)
    ones = const(1.0, float64, device, (3,))
    for op, expected in ((ops.maximum, [0.5, 0.5, 1.0]), (ops.minimum, [0.5, 0.5, 0.0])):
        to_a, to_b = gradients([op(a, b)], [a, b], [ones])
        assert computed(to_a) == expected
        assert computed(to_b) == [1.0 - v for v in expected]
    (g,) = gradients([ops.max_(a, axes=(0,))], [a], [const(1.0, float64, device, (1,))])
    assert computed(g) == [0.0, 0.5, 0.5]


def test_derivatives_at_kinks_and_poles(device):
    x = store([0.0], (1,), float64, device, needs_grad=True)
    one = const(1.0, float64, device, (1,))

    def derivative(y: Node) -> float:
        (g,) = gradients([y], [x], [one])
        return computed(g)[0]

    assert derivative(ops.abs_(x)) == 0.0
    assert derivative(ops.sqrt(x)) == math.inf
    assert derivative(ops.pow_(x, ops.like(2.0, x))) == 0.0
    exponent = store([2.0], (1,), float64, device, needs_grad=True)
    to_x, to_exponent = gradients([ops.pow_(x, exponent)], [x, exponent], [one])
    assert computed(to_x) == computed(to_exponent) == [0.0]


def test_negative_indices_count_from_the_end(device):
    x = store([1.0, 2.0, 3.0], (3,), float32, device)
    index = store([-1, 0, -3], (3,), int64, device)
    assert computed(ops.take(x, index, axis=0)) == [3.0, 1.0, 1.0]
    check(ops.scatter_add(index, x, size=4, axis=0))


@pytest.mark.parametrize("bad", [-5, 4])
def test_index_out_of_range(bad, device):
    x = store([1.0] * 4, (4,), float32, device)
    index = store([0, bad], (2,), int64, device)
    updates = store([1.0] * 2, (2,), float32, device)
    with pytest.raises(IndexError, match=f"{bad}"):
        computed(ops.take(x, index, axis=0))
    with pytest.raises(IndexError, match=f"{bad}"):
        computed(ops.scatter_add(index, updates, size=4, axis=0))


def _errors() -> list[tuple[str, Any, type[Exception], str]]:
    def f(*shape: int, dtype=float32) -> Node:
        return const(0, dtype, cpu, shape)

    def dot(a, b):
        return ops.dot(a, b, batch=((), ()), contract=((1,), (0,)))

    def conv(x, w, groups=1):
        return ops.conv(x, w, window=Window(w.shape[2:]), groups=groups)

    index = f(2, dtype=int64)
    return [
        (
            "shapes",
            lambda: ops.add(f(2), f(3)),
            ValueError,
            r"add: expected equal shapes, got \(2,\), \(3,\)",
        ),
        (
            "dtypes",
            lambda: ops.add(f(2), f(2, dtype=float64)),
            TypeError,
            "got float32, float64. Promote",
        ),
        (
            "kind",
            lambda: ops.exp(f(2, dtype=int32)),
            TypeError,
            "exp: expected a float dtype, got int32",
        ),
        (
            "condition",
            lambda: ops.where(f(2), f(2), f(2)),
            TypeError,
            "where: expected a bool dtype",
        ),
        (
            "sum of bools",
            lambda: ops.sum_(f(2, dtype=bool_), axes=(0,)),
            TypeError,
            "sum: expected a number",
        ),
        (
            "axis",
            lambda: ops.sum_(f(2), axes=(1,)),
            ValueError,
            r"sum: expected distinct axes in 0..0, got \(1,\)",
        ),
        (
            "max of nothing",
            lambda: ops.max_(f(2, 0), axes=(1,)),
            ValueError,
            "max: expected at least one",
        ),
        (
            "argmax of nothing",
            lambda: ops.argmax(f(2, 0), axis=1),
            ValueError,
            "argmax: expected at least one",
        ),
        (
            "reshape",
            lambda: ops.reshape(f(2, 3), shape=(4,)),
            ValueError,
            "reshape: expected a shape of 6 elements",
        ),
        (
            "permute",
            lambda: ops.permute(f(2, 3), axes=(0, 0)),
            ValueError,
            "permute: expected an order",
        ),
        (
            "expand",
            lambda: ops.expand(f(2, 3), shape=(2, 4)),
            ValueError,
            "expand: expected extents of 1",
        ),
        (
            "slice",
            lambda: ops.narrow(f(3), 0, 2, 4),
            ValueError,
            "slice: expected 0 <= start <= stop <= 3",
        ),
        (
            "pad",
            lambda: ops.pad(f(3), low=(-1,), high=(0,), interior=(0,)),
            ValueError,
            "pad: expected amounts",
        ),
        (
            "concat",
            lambda: ops.concat(f(2, 3), f(2, 2), axis=0),
            ValueError,
            "concat: expected inputs alike",
        ),
        (
            "take",
            lambda: ops.take(f(2), f(2), axis=0),
            TypeError,
            "take: expected 1-D integer indices",
        ),
        (
            "take axis",
            lambda: ops.take(f(2), index, axis=1),
            ValueError,
            "take: expected an axis in 0..0",
        ),
        (
            "scatter",
            lambda: ops.scatter_add(index, f(3), size=4, axis=0),
            ValueError,
            "scatter_add: expected one",
        ),
        ("dot extents", lambda: dot(f(2, 3), f(2, 3)), ValueError, "dot: expected equal extents"),
        (
            "dot dtypes",
            lambda: dot(f(2, 3), f(3, 2, dtype=float64)),
            TypeError,
            "dot: expected one number dtype",
        ),
        (
            "conv groups",
            lambda: conv(f(1, 3, 4, 4), f(2, 3, 2, 2), groups=2),
            ValueError,
            "groups=2",
        ),
        (
            "window",
            lambda: ops.window_max(f(2, 3), axes=(0, 0), window=Window((1, 1))),
            ValueError,
            "window_max: expected two axes",
        ),
        (
            "maxima of spaced elements",
            lambda: ops.window_max(
                f(2, 3), axes=(0, 1), window=Window((1, 1), input_dilation=(2, 1))
            ),
            ValueError,
            "window_max: expected no input dilation",
        ),
        (
            "conv of another size",
            lambda: ops.conv(f(1, 3, 4, 4), f(2, 3, 2, 2), window=Window((2, 3)), groups=1),
            ValueError,
            r"conv: expected a window of size \(2, 2\), got \(2, 3\)",
        ),
        (
            "state",
            lambda: ops.random_bits(f(2), shape=(3,)),
            TypeError,
            r"random_bits: expected a state of int64\[2\]",
        ),
    ]


@pytest.mark.parametrize(
    ("label", "build", "kind", "text"), _errors(), ids=[e[0] for e in _errors()]
)
def test_errors_when_the_graph_is_built(label, build, kind, text):
    with pytest.raises(kind, match=text):
        build()


def test_gradient_error_names_the_op_without_a_derivative(device):
    x = store([1.0, 2.0], (1, 2), float64, device, needs_grad=True)
    y = ops.cast(ops.argmax(x, axis=1), dtype=float64)
    with pytest.raises(
        GradientError, match=r"input float64\[1, 2\] through differentiable.*argmax"
    ):
        gradients([y], [x], [const(1.0, float64, device, (1, 1))])
