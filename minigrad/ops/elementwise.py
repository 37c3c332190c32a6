"""Elementwise primitives. All inputs have one shape: broadcasting is an explicit `expand`.

Conventions at kinks: ties in `maximum` and `minimum` share the gradient equally, `abs'(0) = 0`,
`sqrt'(0)` is infinite (hence eps inside the root).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minigrad.dtype import DType, bool_
from minigrad.graph import Node, Primitive, Shape, const_value, like, register, zeros_like

__all__ = [
    "abs_",
    "add",
    "bitwise_and",
    "bitwise_invert",
    "bitwise_or",
    "bitwise_xor",
    "cast",
    "cos",
    "div",
    "equal",
    "erf",
    "erfc",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "gelu",
    "less",
    "less_equal",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "mul",
    "neg",
    "pow_",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "sqrt",
    "sub",
    "tanh",
    "where",
]


def _same_shape(name: str, *inputs: Node) -> Shape:
    shape = inputs[0].shape
    for n in inputs[1:]:
        if n.shape != shape:
            got = ", ".join(str(i.shape) for i in inputs)
            raise ValueError(f"{name}: expected equal shapes, got {got}. Broadcast first.")
    return shape


def _require(name: str, node: Node, *kinds: str) -> None:
    if node.dtype.kind not in kinds:
        raise TypeError(
            f"{name}: expected a {' or '.join(kinds)} dtype, got {node.dtype.name}. Use astype()."
        )


def _map(
    name: str,
    kinds: tuple[str, ...],
    cost: int,
    vjp: Callable[..., Any] | None = None,
    out: DType | None = None,
) -> Primitive:
    def infer(*inputs: Node) -> tuple[Shape, DType]:
        shape = _same_shape(name, *inputs)
        dtype = inputs[0].dtype
        for n in inputs:
            _require(name, n, *kinds)
            if n.dtype is not dtype:
                got = ", ".join(i.dtype.name for i in inputs)
                raise TypeError(f"{name}: expected equal dtypes, got {got}. Promote first.")
        return shape, out or dtype

    return register(Primitive(name, "map", infer, vjp, cost))


_FLOAT = ("float",)
_NUMBER = ("uint", "int", "float")
_ANY = ("bool", *_NUMBER)
_BITS = ("bool", "uint", "int")


def _zero(g: Node, y: Node, *inputs: Node) -> tuple[None, ...]:
    """Piecewise constant: the derivative is zero wherever it exists."""
    return (None,) * len(inputs)


def _share_ties(g: Node, a: Node, b: Node, wins: Node) -> tuple[Node, Node]:
    half = where(equal(a, b), g * 0.5, zeros_like(g))
    to_a = where(wins, g, half)
    return to_a, g - to_a


def _pow_vjp(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node | None]:
    exponent = const_value(b)
    if exponent is not None:
        return g * (b * pow_(a, like(exponent - 1, b))) if exponent != 0 else zeros_like(g), None
    zero = zeros_like(b)
    to_a = where(equal(b, zero), zero, g * b * pow_(a, b - 1.0))
    # y log a -> 0 as a -> 0 for b > 0; the product alone would give 0 * -inf.
    to_b = where(equal(a, zero), zero, g * y * log(a))
    return to_a, to_b


_ERF_SLOPE = 2.0 / math.sqrt(math.pi)


def _gelu_vjp(g: Node, y: Node, x: Node) -> tuple[Node]:
    """Phi(x) + x phi(x), the normal distribution's function and density."""
    phi = exp(-0.5 * (x * x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return (g * (0.5 * erfc(x * -math.sqrt(0.5)) + x * phi),)


# expm1, log1p, erfc, sigmoid, softplus and gelu are primitives although other ops could express
# them: composed, their small values would lose digits to cancellation, and each step would round.
# Their gradient rules avoid cancellation, too: sigmoid's is not y (1 - y), nor expm1's y + 1.

# In each row: the name, the kinds of dtypes it takes, its cost in additions, its gradient rule.
# fmt: off
neg     = _map("neg", _NUMBER, 1, lambda g, y, x: (-g,))
exp     = _map("exp", _FLOAT, 30, lambda g, y, x: (g * y,))
log     = _map("log", _FLOAT, 30, lambda g, y, x: (g / x,))
expm1   = _map("expm1", _FLOAT, 30, lambda g, y, x: (g * exp(x),))
log1p   = _map("log1p", _FLOAT, 30, lambda g, y, x: (g / (x + 1.0),))
sqrt    = _map("sqrt", _FLOAT, 10, lambda g, y, x: (g * 0.5 / y,))
rsqrt   = _map("rsqrt", _FLOAT, 10, lambda g, y, x: (-0.5 * g * (y * y * y),))
sin     = _map("sin", _FLOAT, 30, lambda g, y, x: (g * cos(x),))
cos     = _map("cos", _FLOAT, 30, lambda g, y, x: (-(g * sin(x)),))
tanh    = _map("tanh", _FLOAT, 30, lambda g, y, x: (g * (1.0 - y * y),))
erf     = _map("erf", _FLOAT, 30, lambda g, y, x: (g * _ERF_SLOPE * exp(-(x * x)),))
erfc    = _map("erfc", _FLOAT, 30, lambda g, y, x: (g * -_ERF_SLOPE * exp(-(x * x)),))
sigmoid = _map("sigmoid", _FLOAT, 30, lambda g, y, x: (g * (y * sigmoid(-x)),))
softplus = _map("softplus", _FLOAT, 30, lambda g, y, x: (g * sigmoid(x),))
gelu    = _map("gelu", _FLOAT, 30, _gelu_vjp)
abs_    = _map("abs", _NUMBER, 1, lambda g, y, x: (g * sign(x),))
sign    = _map("sign", _NUMBER, 1, _zero)
floor   = _map("floor", _FLOAT, 1, _zero)

add     = _map("add", _NUMBER, 1, lambda g, y, a, b: (g, g))
sub     = _map("sub", _NUMBER, 1, lambda g, y, a, b: (g, -g))
mul     = _map("mul", _NUMBER, 1, lambda g, y, a, b: (g * b, g * a))
div     = _map("div", _FLOAT, 10, lambda g, y, a, b: (g / b, -(g * y / b)))
pow_    = _map("pow", _FLOAT, 30, _pow_vjp)
maximum = _map("maximum", _NUMBER, 1, lambda g, y, a, b: _share_ties(g, a, b, less(b, a)))
minimum = _map("minimum", _NUMBER, 1, lambda g, y, a, b: _share_ties(g, a, b, less(a, b)))
floor_divide = _map("floor_divide", _NUMBER, 10, _zero)

less       = _map("less", _ANY, 1, out=bool_)
less_equal = _map("less_equal", _ANY, 1, out=bool_)
equal      = _map("equal", _ANY, 1, out=bool_)

# On bools these are the logical operations. Random numbers need the bits of integers.
bitwise_and    = _map("bitwise_and", _BITS, 1)
bitwise_or     = _map("bitwise_or", _BITS, 1)
bitwise_xor    = _map("bitwise_xor", _BITS, 1)
bitwise_invert = _map("bitwise_invert", _BITS, 1)
# fmt: on


def _where_infer(condition: Node, a: Node, b: Node) -> tuple[Shape, DType]:
    _require("where", condition, "bool")
    if a.dtype is not b.dtype:
        raise TypeError(f"where: expected equal dtypes, got {a.dtype.name}, {b.dtype.name}.")
    return _same_shape("where", condition, a, b), a.dtype


def _where_vjp(g: Node, y: Node, condition: Node, a: Node, b: Node) -> tuple[None, Node, Node]:
    zero = zeros_like(g)
    return None, where(condition, g, zero), where(condition, zero, g)


where = register(Primitive("where", "map", _where_infer, _where_vjp, cost=1))


def _cast_vjp(g: Node, y: Node, x: Node, *, dtype: DType) -> tuple[Node | None]:
    return (cast(g, dtype=x.dtype) if x.dtype.is_floating and dtype.is_floating else None,)


cast = register(Primitive("cast", "map", lambda x, *, dtype: (x.shape, dtype), _cast_vjp, cost=1))
