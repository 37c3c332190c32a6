"""expm1, log1p, sigmoid, softplus, erfc and gelu without branches or tables.

Each is small somewhere, and composed of exp, log, tanh and erf it would be the difference of two
numbers that are not: these keep their digits there. For how they are made see `elementary`.
"""

from __future__ import annotations

import math

from minigrad.backend.cpu.elementary import (
    _LN2_HIGH,
    _LN2_HIGH_64,
    _LN2_LOW,
    _LN2_LOW_64,
    _LN2_REST_64,
    _LN2_SHORT_64,
    _LOG,
    _LOG_64,
    _EXP,
    _EXP_64,
    _ROUND,
    _ROUND_64,
    _exponent_and_rest,
    _expm1_near_zero,
    _power_of_two,
)
from minigrad.backend.cpu.exact_float import Value, as_intrinsic, where

# log(T(a)) + a**2 / 2
_NEAR = (-1.3408203125, 1.0, (-0.000201330331, -0.525135279, 0.099548772, -0.0194884874, 0.00329923583, -0.000406704232, 1.14663262e-05, 1.14543418e-05, -3.58725879e-06, 4.38138017e-07))
_FAR = (-2.736328125, 6.0, (-0.000440822681, -0.158482596, 0.0119938096, -0.0011589285, 0.000120806333, -1.28797565e-05, 1.3688408e-06, -1.43029467e-07, 1.46438284e-08, -1.44575163e-09, 1.27343594e-10, -8.65663877e-12, 3.7568535e-13, -7.49990924e-15))


def expm1(x: Value) -> Value:
    end, high, low, fraction, bias, polynomial = (
        ((-50.0, 710.0), _LN2_HIGH_64, _LN2_LOW_64, _ROUND_64, 1022, _EXP_64) if x.is_double
        else ((-50.0, 89.0), _LN2_HIGH, _LN2_LOW, _ROUND, 126, _EXP))
    limited = x.clamped(*end)
    shifted = limited.times_plus(1 / math.log(2), fraction + bias)
    n = shifted - (fraction + bias)
    r_high = n.times_plus(-high, limited)
    r_low = n * -low
    r = r_high + r_low
    rest = (r * r).times_plus(r.polynomial(polynomial), r_low)
    half = _power_of_two(shifted.bits())
    result = half.times_plus(rest, half.times_plus(r_high, half - 0.5))
    result = result + result
    return where(x.call("fabs") < (2.0**-54 if x.is_double else 2.0**-25), x, result)


def _log1p_single(x: Value, low: Value | None) -> Value:
    offset = 0x3F2AAAAB
    shift = (x + 1.0).bits().minus(offset) & 0xFF800000
    exponent = shift.shifted_signed(23).converted()
    scaled = x.bits().minus(shift).number()
    inverse = (x.of(4.0).bits().minus(shift)).number() * 0.25
    base = inverse - 1.0
    f = base + scaled
    rest = scaled - (f - base)
    if low is not None:
        rest = low.times_plus(inverse, rest)
    result = (f * f).times_plus(f.polynomial(_LOG), rest) + f
    return exponent.times_plus(_LN2_HIGH, result)


def _log1p_double(x: Value, low: Value | None) -> Value:
    offset = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
    bits = (x + 1.0).bits().minus(offset)
    shift = bits & 0xFFF0000000000000
    exponent = (bits.plus(1024 << 52) >> 52 | 0x4330000000000000).number() - (2.0**52 + 1024)
    scaled = x.bits().minus(shift).number()
    inverse = (x.of(4.0).bits().minus(shift)).number() * 0.25
    base = inverse - 1.0
    f = base + scaled
    rest = scaled - (f - base)
    if low is not None:
        rest = low.times_plus(inverse, rest)
    s, half = f / (f + 2.0), f * f * 0.5
    z = s * s
    correction = s * (z.times_plus(z.polynomial(_LOG_64), half)) + rest
    correction = exponent.times_plus(_LN2_REST_64, correction)
    return exponent.times_plus(_LN2_SHORT_64, f - (half - correction))


def _log1p_any(x, low=None):
    return (_log1p_double if x.is_double else _log1p_single)(x, low)


def log1p(x: Value) -> Value:
    result = where(x < math.inf, _log1p_any(x), x)
    result = where(x.of(-1.0) < x, result, where(x.equals(-1.0), x.of(-math.inf), math.nan))
    return where(x.equals(0.0), x, result)


def _exp_of_minus(size):
    limits, bias = ((-750.0, 0.0), 1023) if size.is_double else ((-106.0, 0.0), 127)
    k, r = _exponent_and_rest((-size).clamped(*limits), 2 * bias)
    p = _expm1_near_zero(r)
    high = p + 1.0
    low = p - (high - 1.0)
    half = k >> 1
    first, second = _power_of_two(half), _power_of_two(k.minus(half))
    return high * first * second, low * first * second


def sigmoid(x: Value) -> Value:
    e, _ = _exp_of_minus(x.call("fabs"))
    return where(x < 0.0, e, x.of(1.0)) / (e + 1.0) + where(x<math.inf, x.of(0.0), x*0.0)


def sigmoid2(x: Value) -> Value:
    e, low = _exp_of_minus(x.call("fabs"))
    d = e + 1.0
    d_low = e - (d - 1.0) + low
    top = where(x < 0.0, e, x.of(1.0)) 
    top_low = where(x < 0.0, low, x.of(0.0)) 
    y = x.of(1.0) / d
    q = top * y
    rest = q.times_plus(-d, top) + (-q).times_plus(d_low, top_low)
    return rest.times_plus(y, q)


def softplus(x: Value) -> Value:
    e, low = _exp_of_minus(x.call("fabs"))
    return where(x < 0.0, x.of(0.0), x) + _log1p_any(e, low)


def gelu_single(x):
    size = x.call("fabs").clamped(0.0, 14.5)
    square = size * size
    p, s, t = _tail(size, square * 0.5, size.times_plus(size, -square) * 0.5, 1.0)
    h = p.times_plus(size, size) * s * t
    return where(x < 0.0, x.of(0.0), x) - h


def _tail(size, high, low, scale):
    near = size < 2.75 / scale
    def part(table):
        c0, center, c = table
        v = size - center / scale
        return v.polynomial(tuple(q * scale**i for i, q in enumerate(c)))
    n0 = where(near, part(_NEAR), part(_FAR))
    c0 = where(near, size.of(_NEAR[0]), _FAR[0])
    bias = _ROUND + 254
    shifted = (c0 - high + n0).times_plus(1 / math.log(2), bias)
    n = shifted - bias
    short = 0.693145751953125
    k = n.times_plus(-short, c0)
    r = (k - high) + (n.times_plus(-(math.log(2) - short), n0) - low)
    kbits = shifted.bits()
    half = kbits >> 1
    return _expm1_near_zero(r), _power_of_two(half), _power_of_two(kbits.minus(half))

gelu_of = as_intrinsic("gelu_of", 1, gelu_single, gelu_single)
expm1_of = as_intrinsic("expm1_of", 1, expm1, expm1)
log1p_of = as_intrinsic("log1p_of", 1, log1p, log1p)
sigmoid_of = as_intrinsic("sigmoid_of", 1, sigmoid, sigmoid)
sigmoid2_of = as_intrinsic("sigmoid2_of", 1, sigmoid2, sigmoid2)
softplus_of = as_intrinsic("softplus_of", 1, softplus, softplus)
