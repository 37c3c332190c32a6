"""Elementwise functions of the Array API. Python numbers are weak: they take the tensor's dtype."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.dtype import DType, as_dtype
from minigrad.functions.arguments import as_float, as_truth, as_type, node_of, number, pair
from minigrad.functions.comparison import isfinite, maximum, minimum, where
from minigrad.graph import Node, like, zeros_like
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Operand
    from minigrad.tensor import Tensor

__all__ = [
    "abs",
    "add",
    "astype",
    "ceil",
    "cos",
    "cosh",
    "divide",
    "erf",
    "erfc",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "multiply",
    "negative",
    "positive",
    "pow",
    "reciprocal",
    "remainder",
    "round",
    "rsqrt",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "subtract",
    "tan",
    "tanh",
    "trunc",
]


# Arithmetic


def add(x1: Operand, x2: Operand) -> Tensor:
    """x1 + x2."""
    return wrap(ops.add(*pair("add", x1, x2)))


def subtract(x1: Operand, x2: Operand) -> Tensor:
    """x1 - x2."""
    return wrap(ops.sub(*pair("subtract", x1, x2)))


def multiply(x1: Operand, x2: Operand) -> Tensor:
    """x1 * x2."""
    return wrap(ops.mul(*pair("multiply", x1, x2)))


def divide(x1: Operand, x2: Operand) -> Tensor:
    """x1 / x2. Two integers give float32."""
    a, b = pair("divide", x1, x2)
    return wrap(ops.div(as_float(a), as_float(b)))


def floor_divide(x1: Operand, x2: Operand) -> Tensor:
    """The largest integer not above x1 / x2."""
    return wrap(ops.floor_divide(*pair("floor_divide", x1, x2)))


def remainder(x1: Operand, x2: Operand) -> Tensor:
    """x1 - floor(x1 / x2) * x2: the sign is x2's, as in Python."""
    a, b = pair("remainder", x1, x2)
    quotient = ops.floor_divide(a, b)
    rest = a - quotient * b
    if a.dtype.is_floating:  # 0 * inf is not 0: 5 % inf is 5
        rest = ops.where(ops.equal(quotient, zeros_like(a)), a, rest)
    return wrap(rest)


def pow(x1: Operand, x2: Operand) -> Tensor:
    """x1 to the power x2.

    The exponents 2, 3, 0.5, -0.5 and -1 become the ops they name, which cost less and have simpler
    derivatives. Integers take a Python integer >= 0 as the exponent.
    """
    if isinstance(x1, TensorBase) and not isinstance(x2, TensorBase):
        exponent = number("pow", x2)
        x = node_of("pow", x1)
        if x.dtype.kind != "float" and isinstance(exponent, int):
            return wrap(_integer_power(x, exponent))
        x = as_float(x)
        if exponent == 1:
            return wrap(x)
        if exponent == 2:
            return wrap(ops.mul(x, x))
        if exponent == 3:
            return wrap(ops.mul(ops.mul(x, x), x))
        if exponent == 0.5:
            return wrap(ops.sqrt(x))
        if exponent == -0.5:
            return wrap(ops.rsqrt(x))
        if exponent == -1:
            return wrap(ops.div(like(1.0, x), x))
        return wrap(ops.pow_(x, like(exponent, x)))
    a, b = pair("pow", x1, x2)
    if not a.dtype.is_floating:
        raise TypeError(
            f"pow: expected a floating dtype or a Python integer exponent, got {a.dtype.name}. "
            "Use astype(float32)."
        )
    return wrap(ops.pow_(a, b))


def _integer_power(x: Node, exponent: int) -> Node:
    if exponent < 0:
        raise ValueError(
            f"pow: expected an exponent >= 0 for {x.dtype.name}, got {exponent}. "
            "Use astype(float32)."
        )
    result, square_ = like(1, x), x
    while exponent:
        if exponent & 1:
            result = ops.mul(result, square_)
        exponent >>= 1
        square_ = ops.mul(square_, square_) if exponent else square_
    return result


def negative(x: Tensor) -> Tensor:
    """-x."""
    return wrap(ops.neg(node_of("negative", x)))


def positive(x: Tensor) -> Tensor:
    """+x: the same values."""
    return wrap(node_of("positive", x))


def abs(x: Tensor) -> Tensor:
    """The absolute value; its derivative at 0 is 0."""
    return wrap(ops.abs_(node_of("abs", x)))


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return wrap(ops.sign(node_of("sign", x)))


def square(x: Tensor) -> Tensor:
    """x times x."""
    node = node_of("square", x)
    return wrap(ops.mul(node, node))


def reciprocal(x: Tensor) -> Tensor:
    """1 / x."""
    node = as_float(node_of("reciprocal", x))
    return wrap(ops.div(like(1.0, node), node))


# Exponentials, roots, trigonometry


def exp(x: Tensor) -> Tensor:
    """e to the power x."""
    return wrap(ops.exp(as_float(node_of("exp", x))))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, accurate near 0."""
    return wrap(ops.expm1(as_float(node_of("expm1", x))))


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return wrap(ops.log(as_float(node_of("log", x))))


def log1p(x: Tensor) -> Tensor:
    """log(1 + x), accurate near 0."""
    return wrap(ops.log1p(as_float(node_of("log1p", x))))


def log2(x: Tensor) -> Tensor:
    """The logarithm to base 2."""
    return wrap(ops.log(as_float(node_of("log2", x))) / math.log(2.0))


def log10(x: Tensor) -> Tensor:
    """The logarithm to base 10."""
    return wrap(ops.log(as_float(node_of("log10", x))) / math.log(10.0))


def logaddexp(x1: Operand, x2: Operand) -> Tensor:
    """log(exp(x1) + exp(x2)), without overflow."""
    high, low = maximum(x1, x2), minimum(x1, x2)
    finite = isfinite(high)  # two equal infinities: their difference is not 0
    gap = where(finite, subtract(low, high), 0.0)
    return where(finite, add(high, wrap(ops.softplus(as_float(gap.node)))), high)


def sqrt(x: Tensor) -> Tensor:
    """The square root; its derivative at 0 is infinite."""
    return wrap(ops.sqrt(as_float(node_of("sqrt", x))))


def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x)."""
    return wrap(ops.rsqrt(as_float(node_of("rsqrt", x))))


def sin(x: Tensor) -> Tensor:
    """The sine of x in radians."""
    return wrap(ops.sin(as_float(node_of("sin", x))))


def cos(x: Tensor) -> Tensor:
    """The cosine of x in radians."""
    return wrap(ops.cos(as_float(node_of("cos", x))))


def tan(x: Tensor) -> Tensor:
    """The tangent of x in radians."""
    node = as_float(node_of("tan", x))
    return wrap(ops.sin(node) / ops.cos(node))


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return wrap(ops.tanh(as_float(node_of("tanh", x))))


def sinh(x: Tensor) -> Tensor:
    """The hyperbolic sine."""
    node = as_float(node_of("sinh", x))
    return wrap(ops.tanh(node) * _cosh(node))  # (exp(x) - exp(-x)) / 2 would cancel near 0


def cosh(x: Tensor) -> Tensor:
    """The hyperbolic cosine."""
    return wrap(_cosh(as_float(node_of("cosh", x))))


def _cosh(x: Node) -> Node:
    return (ops.exp(x) + ops.exp(-x)) * 0.5


def erf(x: Tensor) -> Tensor:
    """The error function."""
    return wrap(ops.erf(as_float(node_of("erf", x))))


def erfc(x: Tensor) -> Tensor:
    """1 - erf(x), accurate where erf(x) is near 1."""
    return wrap(ops.erfc(as_float(node_of("erfc", x))))


# Rounding; integers are round already


def floor(x: Tensor) -> Tensor:
    """The largest integer not above x."""
    node = node_of("floor", x)
    return wrap(ops.floor(node) if node.dtype.is_floating else node)


def ceil(x: Tensor) -> Tensor:
    """The smallest integer not below x."""
    node = node_of("ceil", x)
    return wrap(-ops.floor(-node) if node.dtype.is_floating else node)


def trunc(x: Tensor) -> Tensor:
    """x without its fraction."""
    node = node_of("trunc", x)
    return wrap(ops.sign(node) * ops.floor(ops.abs_(node)) if node.dtype.is_floating else node)


def round(x: Tensor) -> Tensor:
    """The nearest integer; halves go to the even one."""
    node = node_of("round", x)
    if not node.dtype.is_floating:
        return wrap(node)
    below = ops.floor(node)
    # Exact, where x + 0.5 would be rounded. At infinity it is NaN, which is not above a half.
    fraction = node - below
    half = like(0.5, node)
    is_odd = ops.bitwise_invert(ops.equal(ops.floor(below * 0.5) * 2.0, below))
    tie_up = ops.bitwise_and(ops.equal(fraction, half), is_odd)
    up = ops.bitwise_or(ops.less(half, fraction), tie_up)
    return wrap(ops.where(up, below + 1.0, below))


def astype(x: Tensor, dtype: DType | str) -> Tensor:
    """The values in another dtype; floats are truncated towards zero when they become integers."""
    node, target = node_of("astype", x), as_dtype(dtype, "astype")
    if target.kind == "bool":
        return wrap(as_truth(node))
    return wrap(as_type(node, target))


class ElementwiseMethods:
    """The functions above as methods of a Tensor."""

    __slots__ = ()

    abs = abs
    add = add
    astype = astype
    ceil = ceil
    cos = cos
    cosh = cosh
    divide = divide
    erf = erf
    erfc = erfc
    exp = exp
    expm1 = expm1
    floor = floor
    floor_divide = floor_divide
    log = log
    log1p = log1p
    log2 = log2
    log10 = log10
    logaddexp = logaddexp
    multiply = multiply
    negative = negative
    positive = positive
    pow = pow
    reciprocal = reciprocal
    remainder = remainder
    round = round
    rsqrt = rsqrt
    sign = sign
    sin = sin
    sinh = sinh
    sqrt = sqrt
    square = square
    subtract = subtract
    tan = tan
    tanh = tanh
    trunc = trunc
