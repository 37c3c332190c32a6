"""What elementwise ops do to Python numbers: IEEE 754 instead of Python's exceptions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def total(f: Callable[..., float]) -> Callable[..., float]:
    """f with NaN where Python raises for a value outside the domain."""

    def wrapped(*args: float) -> float:
        try:
            return f(*args)
        except ValueError:
            return math.nan

    return wrapped


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def log(x: float) -> float:
    return -math.inf if x == 0 else total(math.log)(x)


def expm1(x: float) -> float:
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def log1p(x: float) -> float:
    return -math.inf if x == -1 else total(math.log1p)(x)


def sigmoid(x: float) -> float:
    return (math.exp(x) if x < 0 else 1.0) / (1.0 + math.exp(-abs(x)))


def div(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a) or math.isnan(b):
        return math.nan
    return math.copysign(math.inf, math.copysign(1.0, a) * math.copysign(1.0, b))


def pow(a: float, b: float) -> float:
    odd = math.isfinite(b) and b == math.floor(b) and b % 2 == 1
    if a == 0 and b < 0:
        return math.copysign(math.inf, a) if odd else math.inf
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and odd else math.inf
    except ValueError:
        return math.nan


def sign(x: Any) -> Any:
    return x if math.isnan(x) else type(x)((x > 0) - (x < 0))


def floor(x: float) -> float:
    return math.copysign(math.floor(x), x) if math.isfinite(x) else x


def floor_divide(a: Any, b: Any) -> Any:
    if isinstance(a, int):
        return a // b if b else 0
    if b == 0 or not (math.isfinite(a) and math.isfinite(b)):
        return floor(div(a, b))
    return a // b


def maximum(a: Any, b: Any) -> Any:
    return a if math.isnan(a) or a >= b else b


def minimum(a: Any, b: Any) -> Any:
    return a if math.isnan(a) or a <= b else b


def softplus(x: float) -> float:
    return maximum(x, 0.0) + math.log1p(math.exp(-abs(x)))


def gelu(x: float) -> float:
    return 0.0 if x == -math.inf else x * 0.5 * math.erfc(-x * math.sqrt(0.5))


def rsqrt(x: float) -> float:
    return div(1.0, sqrt(x))


def bitwise_invert(x: Any) -> Any:
    return not x if isinstance(x, bool) else ~x


def where(condition: bool, a: Any, b: Any) -> Any:
    return a if condition else b


sqrt, sin, cos = total(math.sqrt), total(math.sin), total(math.cos)
