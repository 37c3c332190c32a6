"""The array functions against plain Python: values, special values, promotion, errors.

What a function is composed of does not depend on the device, so most tests run on the interpreter
of `reference.py`. Those that take `device` are about accuracy, special values and kernels.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import reference

import minigrad as mg

INF, NAN = math.inf, math.nan
RTOL = {"float32": 2e-6, "float64": 1e-14}


@pytest.fixture(autouse=True)
def interpreted(request: Any) -> Any:
    """Compute on the interpreter, unless the test names a device."""
    if "device" in request.fixturenames:
        yield
    else:
        undo = reference.install()
        yield
        undo()


def flat(values: Any) -> list[Any]:
    """The numbers in nested lists, in order."""
    return [v for row in values for v in flat(row)] if isinstance(values, list) else [values]


def assert_close(found: Any, expected: Any, rtol: float = 1e-6) -> None:
    """Equal shapes, and numbers equal within rtol (and the same infinities and NaNs)."""
    found = found.tolist() if isinstance(found, mg.Tensor) else found
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol)
        return
    if isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found)
    elif isinstance(expected, float) and not math.isinf(expected):
        assert math.isclose(found, expected, rel_tol=rtol, abs_tol=rtol * 1e-3), (found, expected)
    else:
        assert found == expected


def grid(shape: tuple[int, ...], seed: int = 0, low: float = -2.0, high: float = 2.0) -> Any:
    """Nested lists of distinct numbers that float32 represents."""
    n = math.prod(shape)
    values = [round((low + (high - low) * (i + 0.5) / n) * 256) / 256 for i in range(n)]
    random.Random(seed).shuffle(values)
    return nested(values, shape)


def nested(values: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    step = len(values) // shape[0] if shape[0] else 0
    return [nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


POSITIVE = [0.125, 0.5, 1.0, 2.0, 7.5, 300.0]
REAL = [-30.0, -2.5, -1.0, -0.75, -0.25, -0.125, 0.0, 0.0625, 0.5, 1.5, 2.5, 8.0]

UNARY: dict[str, tuple[Any, list[float]]] = {
    "negative": (lambda v: -v, REAL),
    "positive": (lambda v: v, REAL),
    "abs": (abs, REAL),
    "sign": (lambda v: float((v > 0) - (v < 0)), REAL),
    "square": (lambda v: v * v, REAL),
    "reciprocal": (lambda v: 1 / v, POSITIVE),
    "exp": (math.exp, REAL),
    "expm1": (math.expm1, REAL),
    "log": (math.log, POSITIVE),
    "log1p": (math.log1p, [-0.5, *POSITIVE]),
    "log2": (math.log2, POSITIVE),
    "log10": (math.log10, POSITIVE),
    "sqrt": (math.sqrt, POSITIVE),
    "rsqrt": (lambda v: 1 / math.sqrt(v), POSITIVE),
    "sin": (math.sin, REAL),
    "cos": (math.cos, REAL),
    "tan": (math.tan, REAL),
    "tanh": (math.tanh, REAL),
    "sinh": (math.sinh, REAL),
    "cosh": (math.cosh, REAL),
    "erf": (math.erf, REAL),
    "erfc": (math.erfc, REAL),
    "floor": (lambda v: float(math.floor(v)), REAL),
    "ceil": (lambda v: float(math.ceil(v)), REAL),
    "trunc": (lambda v: float(math.trunc(v)), REAL),
    "round": (lambda v: float(round(v)), REAL),
    "isnan": (math.isnan, [*REAL, INF, NAN]),
    "isinf": (math.isinf, [*REAL, INF, -INF, NAN]),
    "isfinite": (math.isfinite, [*REAL, INF, -INF, NAN]),
    "logical_not": (lambda v: v == 0, REAL),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: str, device: Any) -> None:
    reference, values = UNARY[name]
    x = mg.tensor(values, dtype, device)
    # tan multiplies the error of its argument near a pole; others are within a few ulp.
    assert_close(getattr(mg, name)(x), [reference(v) for v in values], RTOL[dtype] * 4)
    assert_close(getattr(x, name)(), getattr(mg, name)(x).tolist(), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["expm1", "log1p", "sinh"])
def test_small_arguments_keep_their_digits(name: str, dtype: str, device: Any) -> None:
    values = [s * 2.0**-k for k in range(3, 60, 4) for s in (1, -1)]
    found = getattr(mg, name)(mg.tensor(values, dtype, device)).tolist()
    for a, v in zip(found, values, strict=True):
        assert math.isclose(a, getattr(math, name)(v), rel_tol=8 * RTOL[dtype])


SPECIAL = [
    ("exp", [INF, -INF, NAN], [INF, 0.0, NAN]),
    ("expm1", [INF, -INF, NAN], [INF, -1.0, NAN]),
    ("log", [0.0, INF, -1.0], [-INF, INF, NAN]),
    ("log1p", [-1.0, INF, -2.0, NAN], [-INF, INF, NAN, NAN]),
    ("round", [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 8388609.0, INF],
     [0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 8388609.0, INF]),
    ("tanh", [INF, -INF], [1.0, -1.0]),
    ("sinh", [INF, -INF], [INF, -INF]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "expected"), SPECIAL)
def test_special_values(name: str, values: list[float], expected: list[float], device: Any) -> None:
    assert_close(getattr(mg, name)(mg.tensor(values, device=device)), expected)


def _fmod(a: float, b: float) -> float:
    return a % b


BINARY: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "floor_divide": lambda a, b: float(a // b),
    "remainder": _fmod,
    "maximum": max,
    "minimum": min,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "logical_and": lambda a, b: bool(a) and bool(b),
    "logical_or": lambda a, b: bool(a) or bool(b),
    "logical_xor": lambda a, b: bool(a) != bool(b),
    "logaddexp": lambda a, b: max(a, b) + math.log1p(math.exp(-abs(a - b))),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    left, right = [-2.5, 1.0, 0.0, 3.0], [2.0, 1.0, -4.0, 0.75]
    x, y = mg.tensor(left), mg.tensor(right)
    function, reference = getattr(mg, name), BINARY[name]
    assert_close(function(x, y), [reference(a, b) for a, b in zip(left, right, strict=True)])
    assert_close(function(x, 2.0), [reference(a, 2.0) for a in left])
    assert_close(function(-2.0, y), [reference(-2.0, b) for b in right])


def test_operators_are_the_functions() -> None:
    x, y = mg.tensor([5.0, -3.0]), mg.tensor([2.0, 2.0])
    assert (x + y).tolist() == [7.0, -1.0]
    assert (1 + x).tolist() == [6.0, -2.0]
    assert (x - y).tolist() == [3.0, -5.0]
    assert (1 - x).tolist() == [-4.0, 4.0]
    assert (x * 2).tolist() == (2 * x).tolist() == [10.0, -6.0]
    assert (x / y).tolist() == [2.5, -1.5]
    assert (15 / x).tolist() == [3.0, -5.0]
    assert (x // y).tolist() == [2.0, -2.0]
    assert (7 // y).tolist() == [3.0, 3.0]
    assert (x % y).tolist() == [1.0, 1.0]
    assert (7 % y).tolist() == [1.0, 1.0]
    assert (x**y).tolist() == [25.0, 9.0]
    assert (2**y).tolist() == [4.0, 4.0]
    assert (-x).tolist() == [-5.0, 3.0]
    assert abs(x).tolist() == [5.0, 3.0]
    assert (x > y).tolist() == (y < x).tolist() == [True, False]
    assert (x >= 5).tolist() == (x == 5).tolist() == [True, False]
    assert (x <= 5).tolist() == [True, True]
    assert (x != 5).tolist() == [False, True]


def test_bits() -> None:
    x, y = mg.tensor([12, 10]), mg.tensor([10, 3])
    assert (x & y).tolist() == [8, 2]
    assert (x | y).tolist() == [14, 11]
    assert (x ^ y).tolist() == [6, 9]
    assert (~x).tolist() == [-13, -11]
    assert (x & 8).tolist() == (8 & x).tolist() == [8, 8]
    assert (~(x > 11)).tolist() == [False, True]


def test_powers_become_cheaper_ops() -> None:
    x = mg.tensor([4.0, 0.25], "float64")
    for exponent, op in ((2, "mul"), (3, "mul"), (0.5, "sqrt"), (-0.5, "rsqrt"), (-1, "div")):
        y = x**exponent
        assert y.node.op.name == op
        assert y.tolist() == [4.0**exponent, 0.25**exponent]
    assert (x**1).node is x.node
    assert (x**2.5).tolist() == [32.0, 0.03125]
    assert (x**0).tolist() == [1.0, 1.0]
    assert (mg.tensor([3, -2]) ** 5).tolist() == [243, -32]
    assert (mg.tensor([3, -2]) ** 0).tolist() == [1, 1]


def test_remainder_of_infinity() -> None:
    assert (mg.tensor([5.0]) % INF).tolist() == [5.0]


def test_logaddexp_of_infinities() -> None:
    x, y = mg.tensor([-INF, INF, 1000.0]), mg.tensor([-INF, INF, 1000.0])
    assert_close(mg.logaddexp(x, y), [-INF, INF, 1000.0 + math.log(2)])


def test_clip_and_where() -> None:
    x = mg.tensor([-2.0, 0.5, 3.0])
    assert x.clip(-1, 1).tolist() == [-1.0, 0.5, 1.0]
    assert x.clip(max=1.0).tolist() == [-2.0, 0.5, 1.0]
    assert x.clip().tolist() == x.tolist()
    assert mg.where(x > 0, x, 0.0).tolist() == [0.0, 0.5, 3.0]
    assert mg.where(x > 0, 1, 0).tolist() == [0, 1, 1]
    assert mg.where(x > 0, 1, 0).dtype is mg.int64
    assert mg.where(x > 0, 1, 0.5).dtype is mg.float32
    assert mg.where(mg.tensor([[True], [False]]), x, -x).tolist() == [x.tolist(), (-x).tolist()]


# Promotion and broadcasting


PROMOTIONS = [
    ("int32", "int64", "int64"),
    ("uint8", "int32", "int32"),
    ("bool", "uint8", "uint8"),
    ("int64", "float32", "float32"),
    ("float32", "float64", "float64"),
]


@pytest.mark.parametrize(("a", "b", "expected"), PROMOTIONS)
def test_promotion(a: str, b: str, expected: str) -> None:
    x, y = mg.ones(2, a), mg.ones(2, b)
    assert (x * y).dtype.name == (y * x).dtype.name == expected
    assert mg.where(mg.tensor([True, False]), x, y).dtype.name == expected
    assert mg.concat([x, y]).dtype.name == expected


def test_numbers_take_the_tensors_dtype() -> None:
    assert (mg.ones(2, "uint8") + 1).dtype is mg.uint8
    assert (mg.ones(2, "float64") * 2.5).dtype is mg.float64
    assert (mg.ones(2, "float32") + True).dtype is mg.float32
    assert (mg.ones(2, "int32") * 2.5).dtype is mg.float32
    assert (mg.ones(2, "bool") + 1).dtype is mg.int64
    assert (mg.ones(2, "int64") / 2).dtype is mg.float32
    with pytest.raises(ValueError, match=r"add: expected a number that uint8 can hold, got 300\."):
        mg.ones(2, "uint8") + 300


def test_broadcasting() -> None:
    x, y = mg.tensor([[1.0], [2.0]]), mg.tensor([10.0, 20.0, 30.0])
    assert (x + y).tolist() == [[11.0, 21.0, 31.0], [12.0, 22.0, 32.0]]
    assert (x + mg.zeros((0, 1, 1))).shape == (0, 2, 1)
    with pytest.raises(
        ValueError,
        match=r"add: expected shapes that broadcast, got \(2, 3\) and \(2, 4\): axis -1 has "
        r"extents 3 and 4\. Line the axes up",
    ):
        mg.zeros((2, 3)) + mg.zeros((2, 4))


def test_refusals() -> None:
    x = mg.ones((2, 3))
    with pytest.raises(
        TypeError, match=r"add: expected a Tensor or a real number, got list\..*asarray"
    ):
        mg.add(x, [1.0, 2.0, 3.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"add: expected at least one Tensor, got int and int"):
        mg.add(1, 2)
    with pytest.raises(TypeError, match=r"exp: expected a Tensor, got float\. Make one with"):
        mg.exp(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"add: expected a uint or int or float dtype, got bool"):
        mg.ones(2, "bool") + mg.ones(2, "bool")
    with pytest.raises(TypeError, match=r"astype: expected one of bool, uint8, .*, got 'half'"):
        x.astype("half")
    with pytest.raises(ValueError, match=r"pow: expected an exponent >= 0 for int64, got -1"):
        mg.arange(3) ** -1
    with pytest.raises(TypeError, match=r"pow: expected a floating dtype or a Python integer"):
        mg.pow(mg.arange(3), mg.arange(3))


def test_astype() -> None:
    x = mg.tensor([-1.75, 0.0, 2.9])
    assert x.astype("int32").tolist() == [-1, 0, 2]
    assert x.astype(mg.bool).tolist() == [True, False, True]
    assert x.astype(mg.float64).dtype is mg.float64
    assert mg.tensor([True, False]).astype("float32").tolist() == [1.0, 0.0]


# Statistics


def reduce_reference(values: Any, shape: tuple[int, ...], axes: tuple[int, ...], f: Any) -> Any:
    """f over the listed axes of nested lists, the axes kept."""
    numbers = flat(values)
    groups: dict[Any, list[Any]] = {}
    for index, v in zip(itertools.product(*map(range, shape)), numbers, strict=True):
        key = tuple(0 if a in axes else i for a, i in enumerate(index))
        groups.setdefault(key, []).append(v)
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    return nested([f(g) for g in groups.values()], kept)


def _var(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / len(values)


REDUCTIONS = {
    "sum": math.fsum,
    "prod": math.prod,
    "mean": lambda v: math.fsum(v) / len(v),
    "var": _var,
    "std": lambda v: math.sqrt(_var(v)),
    "max": max,
    "min": min,
    "logsumexp": lambda v: math.log(math.fsum(map(math.exp, v))),
    "any": lambda v: any(x != 0 for x in v),
    "all": lambda v: all(x != 0 for x in v),
}


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, axis: Any) -> None:
    shape = (3, 5, 7)
    values = grid(shape)
    x = mg.tensor(values, "float64")
    axes = tuple(range(3)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(a % 3 for a in axes)
    expected = reduce_reference(values, shape, axes, REDUCTIONS[name])
    kept = getattr(mg, name)(x, axis=axis, keepdims=True)
    assert_close(kept, expected, 1e-11)
    dropped = getattr(x, name)(axis)
    assert dropped.shape == tuple(n for a, n in enumerate(shape) if a not in axes)
    assert_close(flat(dropped.tolist()), flat(expected), 1e-11)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_on_devices(name: str, device: Any) -> None:
    shape = (4, 9, 33)
    values = grid(shape)
    expected = reduce_reference(values, shape, (0, 2), REDUCTIONS[name])
    found = getattr(mg, name)(mg.tensor(values, device=device), (0, 2), keepdims=True)
    assert_close(found, expected, 3e-6)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_argmax(name: str) -> None:
    values = grid((4, 6))
    x = mg.tensor(values)
    best = max if name == "argmax" else min
    assert getattr(mg, name)(x, 1).tolist() == [row.index(best(row)) for row in values]
    columns = [list(c) for c in zip(*values, strict=True)]
    assert getattr(x, name)(axis=0, keepdims=True).tolist() == [[c.index(best(c)) for c in columns]]
    assert getattr(x, name)().item() == flat(values).index(best(flat(values)))
    assert getattr(x, name)(keepdims=True).shape == (1, 1)
    assert getattr(mg.tensor([3, 1, 1, 3]), name)().item() == (0 if name == "argmax" else 1)


def test_reductions_of_integers_and_booleans() -> None:
    assert mg.sum(mg.ones((2, 300), "bool"), 1).tolist() == [300, 300]
    assert mg.sum(mg.full(300, 255, "uint8")).item() == 300 * 255
    assert mg.sum(mg.ones(3, "int32")).dtype is mg.int64
    assert mg.sum(mg.ones(3, "int32"), dtype="float32").dtype is mg.float32
    assert mg.prod(mg.arange(1, 21)).item() == math.factorial(20)
    low = -(2**63)
    assert mg.min(mg.tensor([5, low, 7])).item() == low
    assert mg.max(mg.tensor([5, low, 7])).item() == 7
    assert mg.min(mg.tensor([5, 0, 7], "uint8")).item() == 0
    for name in ("mean", "var", "std", "logsumexp"):
        message = rf"{name}: expected a floating dtype, got int64\. Use astype\(float32\)\."
        with pytest.raises(TypeError, match=message):
            getattr(mg, name)(mg.arange(3))
    with pytest.raises(TypeError, match=r"max: expected a number dtype, got bool\. Use any\(\)"):
        mg.max(mg.ones(3, "bool"))


def test_empty_reductions() -> None:
    x = mg.zeros((0, 3))
    assert x.sum(0).tolist() == [0.0] * 3
    assert x.prod(0).tolist() == [1.0] * 3
    assert x.any(0).tolist() == [False] * 3
    assert x.all(0).tolist() == [True] * 3
    assert_close(x.mean(0), [NAN] * 3)
    with pytest.raises(ValueError, match=r"max: expected at least one element"):
        x.max(0)
    with pytest.raises(ValueError, match=r"argmax: expected at least one element"):
        x.argmax(0)


def test_variance_is_centred_first() -> None:
    """The sum of squares alone would give anything from -16 to 104 here."""
    rng = random.Random(1)
    x = mg.tensor([10_000.0 + rng.gauss(0, 1) for _ in range(1000)])
    expected = _var(x.tolist())
    assert_close(mg.var(x), expected, 1e-4)
    assert_close(mg.var(x, correction=1), expected * 1000 / 999, 1e-4)
    assert_close(mg.std(x), math.sqrt(expected), 1e-4)
    with pytest.raises(
        ValueError, match=r"var: expected more than 1 elements over axes \(0,\), got 1"
    ):
        mg.var(mg.ones(1), correction=1)


def test_logsumexp_of_extremes() -> None:
    x = mg.tensor([[1000.0, 1000.0], [-INF, -INF], [INF, 0.0], [-1000.0, -INF]])
    assert_close(mg.logsumexp(x, 1), [1000.0 + math.log(2), -INF, INF, -1000.0])


def test_prod_has_the_right_gradient_at_zero() -> None:
    x = mg.tensor([2.0, 0.0, 3.0, 4.0, 5.0], "float64", requires_grad=True)
    assert mg.gradients(x.prod(), x).tolist() == [0.0, 120.0, 0.0, 0.0, 0.0]
    mg.gradcheck(lambda t: t.prod(0), mg.tensor(grid((5, 3)), "float64"), order=2)


@pytest.mark.parametrize("name", ["var", "std", "logsumexp", "min", "max", "mean"])
def test_reductions_have_two_derivatives(name: str) -> None:
    x = mg.tensor(grid((3, 4), seed=3), "float64")
    mg.gradcheck(lambda t: getattr(mg, name)(t, 1), x, order=2)


def test_wrong_axes() -> None:
    x = mg.zeros((2, 3))
    with pytest.raises(ValueError, match=r"sum: expected an axis in -2\.\.1, got 2\."):
        x.sum(2)
    with pytest.raises(ValueError, match=r"sum: expected distinct axes, got \(0, -2\)\."):
        x.sum((0, -2))
    with pytest.raises(
        ValueError, match=r"mean: expected no axis for a tensor of shape \(\), got 0"
    ):
        mg.tensor(1.0).mean(0)
    with pytest.raises(TypeError, match=r"argmax: expected an integer axis, got float"):
        x.argmax(1.0)  # type: ignore[arg-type]


# Manipulation


def test_reshape_and_friends() -> None:
    x = mg.arange(24).reshape(2, 3, 4)
    assert x.reshape((4, -1)).shape == (4, 6)
    assert x.reshape(-1).tolist() == list(range(24))
    assert x.flatten().shape == (24,)
    assert x.flatten(1).shape == (2, 12)
    assert x.flatten(0, 1).shape == (6, 4)
    assert mg.tensor(1.0).flatten().shape == (1,)
    assert x.expand_dims(1).shape == (2, 1, 3, 4)
    assert x.expand_dims(-1).shape == (2, 3, 4, 1)
    assert x.reshape(1, 24, 1).squeeze().shape == (24,)
    assert x.reshape(1, 24, 1).squeeze(0).shape == (24, 1)
    assert mg.broadcast_to(mg.arange(3), (2, 3)).tolist() == [[0, 1, 2], [0, 1, 2]]
    a, b = mg.broadcast_arrays(mg.arange(3), mg.zeros((2, 1)))
    assert a.shape == b.shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"reshape: expected a shape of 24 elements .* got \(5, -1\)"
    ):
        x.reshape(5, -1)
    with pytest.raises(
        ValueError, match=r"squeeze: expected extent 1 on axis 0, got shape \(2, 3, 4\)"
    ):
        x.squeeze(0)
    with pytest.raises(
        ValueError, match=r"broadcast_to: expected a shape that \(3,\) broadcasts to"
    ):
        mg.broadcast_to(mg.arange(3), (3, 2))
    with pytest.raises(TypeError, match=r"reshape: expected integers, got"):
        x.reshape(2.0, 12)  # type: ignore[arg-type]


def test_transposes() -> None:
    x = mg.arange(6).reshape(2, 3)
    assert x.T.tolist() == x.mT.tolist() == [[0, 3], [1, 4], [2, 5]]
    y = mg.arange(24).reshape(2, 3, 4)
    assert y.permute_dims(2, 0, 1).shape == mg.permute_dims(y, (-1, 0, 1)).shape == (4, 2, 3)
    assert y.permute_dims(2, 0, 1)[3, 1, 2].item() == y[1, 2, 3].item()
    assert y.moveaxis(0, -1).shape == (3, 4, 2)
    assert mg.moveaxis(y, (0, 1), (2, 0)).shape == (3, 4, 2)
    with pytest.raises(ValueError, match=r"T: expected 2 axes, got shape \(2, 3, 4\)\. Use \.mT"):
        y.T  # noqa: B018
    with pytest.raises(
        ValueError, match=r"permute_dims: expected an order of the axes 0\.\.2, got"
    ):
        y.permute_dims(0, 1)


def test_joining_and_splitting() -> None:
    x, y = mg.tensor([[1, 2]]), mg.tensor([[3, 4], [5, 6]])
    assert mg.concat([x, y]).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert mg.concat([y, y], axis=-1).tolist() == [[3, 4, 3, 4], [5, 6, 5, 6]]
    assert mg.concat([x, y], axis=None).tolist() == [1, 2, 3, 4, 5, 6]
    assert mg.stack([y[0], y[1]], axis=1).tolist() == [[3, 5], [4, 6]]
    assert [t.tolist() for t in mg.unstack(y, axis=1)] == [[3, 5], [4, 6]]
    assert [t.shape for t in mg.split(mg.arange(10), 4)] == [(4,), (4,), (2,)]
    assert [t.tolist() for t in mg.split(mg.arange(5), [1, 4])] == [[0], [1, 2, 3, 4]]
    with pytest.raises(ValueError, match=r"concat: expected shapes alike except along axis 1"):
        mg.concat([x, y], axis=1)
    with pytest.raises(
        ValueError, match=r"stack: expected equal shapes, got \(1, 2\) and \(2, 2\)"
    ):
        mg.stack([x, y])
    with pytest.raises(ValueError, match=r"concat: expected at least one tensor"):
        mg.concat([])
    with pytest.raises(ValueError, match=r"split: expected sizes that add up to 5"):
        mg.split(mg.arange(5), [1, 3])


def test_moving_elements() -> None:
    x = mg.arange(6).reshape(2, 3)
    assert x.flip().tolist() == [[5, 4, 3], [2, 1, 0]]
    assert x.flip(1).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert x.roll(1, 1).tolist() == [[2, 0, 1], [5, 3, 4]]
    assert x.roll(-1).tolist() == [[1, 2, 3], [4, 5, 0]]
    assert mg.roll(x, (1, 1), (0, 1)).tolist() == [[5, 3, 4], [2, 0, 1]]
    assert mg.tile(mg.arange(2), (2, 2)).tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert mg.tile(x, 2).tolist() == [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]
    assert mg.repeat(x, 2, axis=0).tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert mg.arange(2).repeat(3).tolist() == [0, 0, 0, 1, 1, 1]
    assert mg.tril(mg.ones((2, 3, 3), "int32"), -1)[1].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert mg.triu(mg.ones((2, 3)), 1).tolist() == [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]


# Linear algebra


def _matmul(a: Any, b: Any) -> Any:
    return [
        [math.fsum(x * y for x, y in zip(r, c, strict=True)) for c in zip(*b, strict=True)]
        for r in a
    ]


def test_matmul(device: Any) -> None:
    a, b = grid((3, 4)), grid((4, 5), seed=1)
    x, y = mg.tensor(a, "float64", device), mg.tensor(b, "float64", device)
    expected = _matmul(a, b)
    assert_close(x @ y, expected, 1e-13)
    assert_close(x @ y[:, 0], [row[0] for row in expected], 1e-13)
    assert_close(x[0] @ y, expected[0], 1e-13)
    assert_close(x[0] @ y[:, 0], expected[0][0], 1e-13)
    batch = mg.stack([x, 2 * x])
    assert_close(batch @ y, [expected, (2 * (x @ y)).tolist()], 1e-13)
    assert_close(x @ mg.stack([y, y]), [expected, expected], 1e-13)
    assert_close(x[0] @ mg.stack([y, y]), [expected[0], expected[0]], 1e-13)
    left, right = batch.reshape(2, 1, 3, 4), mg.stack([y, y, y]).reshape(1, 3, 4, 5)
    assert (left @ right).shape == (2, 3, 3, 5)
    assert_close((left @ right)[0, 2], expected, 1e-13)
    assert (mg.arange(3) @ mg.arange(3)).item() == 5


def test_matmul_refuses() -> None:
    with pytest.raises(
        ValueError,
        match=r"matmul: expected equal inner extents, got 3 \(axis -1 of \(2, 3\)\) and 4 "
        r"\(axis -2 of \(4, 5\)\)\.",
    ):
        mg.zeros((2, 3)) @ mg.zeros((4, 5))
    with pytest.raises(ValueError, match=r"matmul: expected tensors of at least 1 axis"):
        mg.zeros(()) @ mg.zeros(3)
    with pytest.raises(TypeError, match=r"matmul: expected a Tensor, got int"):
        mg.matmul(mg.zeros((2, 3)), 2)  # type: ignore[arg-type]


def test_other_products() -> None:
    x, y = mg.arange(6).reshape(2, 3), mg.arange(12).reshape(3, 4)
    assert mg.tensordot(x, y, 1).tolist() == (x @ y).tolist()
    assert mg.tensordot(x, y, ([1], [0])).tolist() == (x @ y).tolist()
    assert mg.tensordot(x, x).item() == 55
    assert mg.tensordot(x, y, 0).shape == (2, 3, 3, 4)
    assert mg.vecdot(x, mg.arange(3)).tolist() == [5, 14]
    assert mg.vecdot(x, x, axis=0).tolist() == [9, 17, 29]
    assert mg.outer(mg.arange(2), mg.arange(3)).tolist() == [[0, 0, 0], [0, 1, 2]]
    assert mg.diagonal(y).tolist() == [0, 5, 10]
    assert mg.diagonal(y, 1).tolist() == [1, 6, 11]
    assert mg.diagonal(y, -1).tolist() == [4, 9]
    assert mg.diagonal(y, 9).shape == (0,)
    assert mg.trace(y).item() == 15
    with pytest.raises(ValueError, match=r"tensordot: expected equal extents on axes \(0,\)"):
        mg.tensordot(x, y, ([0], [0]))


EQUATIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("ij,jk", (3, 4), (4, 5)),
    ("ij->ji", (3, 4)),
    ("ij->", (3, 4)),
    ("ii->i", (4, 4)),
    ("ii", (4, 4)),
    ("i,j->ij", (3,), (4,)),
    ("i,i->i", (3,), (3,)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("bij,bjk->kib", (2, 3, 4), (2, 4, 5)),
    ("ij,kj,k->i", (3, 4), (5, 4), (5,)),
    ("ijk,ilm,njm,nlk->", (2, 3, 4), (2, 3, 5), (4, 3, 5), (4, 3, 4)),
    ("iij,jk->ik", (3, 3, 4), (4, 2)),
    ("ijk,k->ij", (2, 3, 4), (4,)),
    ("ab,cd->", (2, 3), (4, 5)),
    ("nchw,oc->nohw", (2, 3, 2, 2), (4, 3)),
    ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
    ("i...->...", (2, 3, 4)),
]


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda c: c[0])
def test_einsum(case: Any) -> None:
    equation, *shapes = case
    operands = [grid(s, seed=i) for i, s in enumerate(shapes)]
    found = mg.einsum(equation, *(mg.tensor(v, "float64") for v in operands))
    if "..." in equation:
        torch = pytest.importorskip("torch")
        tensors = [torch.tensor(v, dtype=torch.float64) for v in operands]
        assert_close(found, torch.einsum(equation, *tensors).tolist(), 1e-12)
    else:
        assert_close(found, _einsum(equation, shapes, operands), 1e-12)


def _einsum(equation: str, shapes: list[Any], operands: list[Any]) -> Any:
    """The definition: a loop over every label."""
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    extents = {c: n for t, s in zip(terms, shapes, strict=True) for c, n in zip(t, s, strict=True)}
    total: dict[Any, float] = dict.fromkeys(
        itertools.product(*(range(extents[c]) for c in output)), 0.0
    )
    for index in itertools.product(*map(range, extents.values())):
        at = dict(zip(extents, index, strict=True))
        product = 1.0
        for term, values in zip(terms, operands, strict=True):
            for c in term:
                values = values[at[c]]
            product *= values
        total[tuple(at[c] for c in output)] += product
    return nested(list(total.values()), tuple(extents[c] for c in output))


def test_einsum_refuses() -> None:
    x = mg.zeros((2, 3))
    with pytest.raises(ValueError, match=r"einsum: expected 2 operands for 'ij,jk', got 1"):
        mg.einsum("ij,jk", x)
    with pytest.raises(
        ValueError, match=r"einsum: expected one letter for each axis of shape \(2, 3\)"
    ):
        mg.einsum("ijk->i", x)
    with pytest.raises(ValueError, match=r"one extent for the label 'j' of 'ij,jk', got 3 and 2"):
        mg.einsum("ij,jk", x, x)
    with pytest.raises(
        ValueError, match=r"einsum: expected distinct labels of the operands after '->'"
    ):
        mg.einsum("ij->iz", x)


def test_products_have_two_derivatives() -> None:
    a, b = mg.tensor(grid((2, 3)), "float64"), mg.tensor(grid((4, 3), 1), "float64")
    mg.gradcheck(lambda x, y: mg.einsum("ij,kj,ij->ik", x, y, x), a, b, order=2)
    mg.gradcheck(lambda x, y: mg.outer(x[0], y[:, 1]) @ y[:, 0], a, b, order=2)


# Gathering


def test_take() -> None:
    x = mg.arange(12).reshape(3, 4)
    assert mg.take(x, mg.tensor([2, 0, -1]), axis=0).tolist() == x[[2, 0, 2]].tolist()
    assert mg.take(x, mg.tensor([[1, 0], [3, 3]]), axis=1).shape == (3, 2, 2)
    assert x.take(mg.tensor([5, -1])).tolist() == [5, 11]
    with pytest.raises(
        TypeError, match=r"take: expected integer indices, got float32\. Use astype"
    ):
        x.take(mg.tensor([1.0]))
    for wrong in (3, -4):
        with pytest.raises(IndexError, match=rf"take: expected indices in \[-3, 3\), got {wrong}"):
            mg.take(x, mg.tensor([0, wrong]), axis=0).tolist()


def test_take_along_axis() -> None:
    x = mg.arange(12).reshape(3, 4)
    index = mg.tensor([[0, -1], [1, 1], [3, 2]])
    assert mg.take_along_axis(x, index, 1).tolist() == [[0, 3], [5, 5], [11, 10]]
    assert mg.take_along_axis(x, mg.tensor([[1, 0, 2, 0]]), 0).tolist() == [[4, 1, 10, 3]]
    logits = mg.tensor(grid((3, 4)), requires_grad=True)
    labels = mg.tensor([2, 0, 3]).reshape(3, 1)
    g = mg.gradients(mg.take_along_axis(logits, labels, 1).sum(), logits)
    assert g.tolist() == mg.one_hot(labels[:, 0], 4).tolist()
    for wrong in (4, -5):
        with pytest.raises(IndexError, match=r"take: expected indices"):
            mg.take_along_axis(x, mg.tensor([[0], [wrong], [0]]), 1).tolist()
    with pytest.raises(ValueError, match=r"take_along_axis: expected indices with as many axes"):
        mg.take_along_axis(x, mg.tensor([0]), 1)
    with pytest.raises(
        ValueError, match=r"take_along_axis: expected indices of shape \(3, 2\) or 1"
    ):
        mg.take_along_axis(x, mg.zeros((2, 2), "int64"), 1)


def test_one_hot() -> None:
    assert mg.one_hot(mg.tensor([2, 0]), 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert mg.one_hot(mg.tensor([[1]]), 2, "int32").tolist() == [[[0, 1]]]


# Control


def test_stop_gradient_and_barrier() -> None:
    x = mg.tensor([2.0, 3.0], requires_grad=True)
    y = (mg.stop_gradient(x) * x).sum()
    assert mg.gradients(y, x).tolist() == [2.0, 3.0]
    assert mg.gradients((mg.barrier(x) * x).sum(), x).tolist() == [4.0, 6.0]


def test_checkpoint_has_the_same_gradient() -> None:
    x, w = mg.tensor([0.5, 1.5], requires_grad=True), mg.tensor(2.0, requires_grad=True)

    def f(t: Any, *, scale: float) -> Any:
        return mg.tanh(t * w) * scale, t + 1.0

    for g in (f, mg.checkpoint(f)):
        y, z = g(x, scale=3.0)
        found = mg.gradients((y * z).sum(), [x, w])
        y2, z2 = mg.tanh(x * w) * 3.0, x + 1.0
        for a, b in zip(found, mg.gradients((y2 * z2).sum(), [x, w]), strict=True):
            assert_close(a, b.tolist())
