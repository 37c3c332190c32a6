"""expm1, log1p, sigmoid, softplus, erfc and gelu, which are small where their parts are not.

Composed of exp, log, tanh and erf each would be the difference of two numbers of about one size
somewhere, or the logarithm or power of a rounded number. These keep their digits everywhere. How
they are made, and how errors are stated, is said in `elementary`. Those of float32 were found over
one in 17 of all (erfc, gelu, sigmoid: one in 67, and every one where that found most), subnormal
results included:

               expm1  log1p  sigmoid  softplus  erfc   gelu
    float32    1.18   1.14   1.75     1.35      2.35   1.87
    float64    1.1    0.8    1.5      0.9       4.9    3.5
"""

from __future__ import annotations

import math

from minigrad.backend.cpu.vector.elementary import (
    ERF_NEAR_64,
    EXP,
    EXP_64,
    LN2_HIGH,
    LN2_HIGH_64,
    LN2_LOW,
    LN2_LOW_64,
    ROUND,
    ROUND_64,
    expm1_near_zero,
    exponent_and_rest,
    log_of_parts,
    power_of_two,
)
from minigrad.backend.cpu.vector.exact_float import Scalar, as_intrinsic, where

# The normal distribution's tail: log(Phi(-a)) + a**2 / 2 from 0 to 2.75 and from there to 14.4,
# less a short number, in a - center: 2**-28. The centers are short, too, with few bits lost in the
# difference; 8119 / 5741 is sqrt(2) to 2**-27, so that erfc's, less by sqrt(2), are as short.
_TAIL_SPLIT = 2.75
_TAIL_NEAR = (8119 / 8192, 5741 / 8192, -1.3359375, (
    -0.0003966738, -0.52691412, 0.100071341, -0.0196063872, 0.00331735983, -0.00040733206,
    1.07685428e-05, 1.17234968e-05, -3.63750632e-06, 4.41680839e-07,
))  # fmt: skip
_TAIL_FAR = (6 * 8119 / 8192, 6 * 5741 / 8192, -2.728515625, (
    0.00025469932, -0.159775153, 0.0121817933, -0.00118513603, 0.00012430911, -1.33279345e-05,
    1.42360068e-06, -1.49414348e-07, 1.53481725e-08, -1.51545121e-09, 1.32853867e-10,
    -8.95465473e-12, 3.8465734e-13, -7.59768733e-15,
))  # fmt: skip
# Phi(-a) exp(a**2 / 2) (a + 4) in (a - 4) / (a + 4) from a = 0 to 39, relative: 2**-55
_TAIL_64 = (
    0.7552851304157515, -0.6078966419718921, 0.38713740074221203, -0.18652185795965875,
    0.06039657489101907, -0.007540188966691418, -0.003479692368641555, 0.001630818457118413,
    0.0001333443228733435, -0.0002310949312098929, -1.908312023321184e-06, 3.514466427631372e-05,
    7.168421409535813e-07, -5.920094437597926e-06, -6.300745279378147e-07, 1.0213661927685293e-06,
    2.723330923285447e-07, -1.546757249724265e-07, -8.587067223410686e-08, 1.3005199047179553e-08,
    1.984853390764955e-08, 2.065304737524974e-09, -2.5708909570972716e-09, -7.596094123044987e-10,
)  # fmt: skip
# ln(2) in two parts, the high one so short that a multiple of it is exact
_LN2_SHORT, _LN2_REST = 0.693145751953125, 1.4286068203094172e-06


def expm1(x: Scalar) -> Scalar:
    """For x = n ln(2) + r, 2**n times that of r, and 2**n - 1."""
    limits, high, low, fraction, polynomial = (
        ((-50.0, 710.0), LN2_HIGH_64, LN2_LOW_64, ROUND_64 + 1022, EXP_64)
        if x.is_double
        else ((-50.0, 89.0), LN2_HIGH, LN2_LOW, ROUND + 126, EXP)
    )
    limited = x.clamped(*limits)
    shifted = limited.times_plus(1 / math.log(2), fraction)
    n = shifted - fraction
    # r in two parts: for n = 1 its rounding would count twice in a difference as small as 0.41.
    r_high, r_low = n.times_plus(-high, limited), n * -low
    r = r_high + r_low
    rest = (r * r).times_plus(r.polynomial(polynomial), r_low)
    half = power_of_two(shifted.bits())  # 2**n / 2: 2**n may overflow where the result does not
    result = half.times_plus(rest, half.times_plus(r_high, half - 0.5))
    tiny = x.call("fabs") < (2.0**-54 if x.is_double else 2.0**-25)
    return where(tiny, x, result + result)  # halving a subnormal number loses a bit


def log1p(x: Scalar) -> Scalar:
    """As `log`, with what 1 + x rounds off."""
    result = where(x < math.inf, _log1p_finite(x), x)
    at_most_minus_one = where(x.equals(-1.0), x.of(-math.inf), math.nan)
    result = where(x.of(-1.0) < x, result, at_most_minus_one)
    return where(x.equals(0.0), x, result)  # keeps -0


def _log1p_finite(x: Scalar, rest: Scalar | None = None) -> Scalar:
    """log(1 + x + rest) for -1 < x < inf; `rest` is less than x's last place.

    As 2**e (1 + f): f = x / 2**e + (1 / 2**e - 1). The term in parentheses is exact, or as good as
    -1; the sum of the two is exact but for 1 <= e <= 2, when the second is larger.
    """
    bits = (x + 1.0).bits()
    if x.is_double:
        bits = bits.minus(0x3FE6A09E667F3BCD)  # of sqrt(1/2)
        shift = bits & 0xFFF0000000000000
        # Few CPUs convert 64-bit integers: write the exponent into the low bits of 2**52 instead.
        biased = (shift.plus(1024 << 52) >> 52) | 0x4330000000000000
        exponent = biased.number() - (2.0**52 + 1024)
    else:
        shift = bits.minus(0x3F2AAAAB) & 0xFF800000  # the bits of 2/3
        exponent = shift.shifted_signed(23).converted()
    scaled = x.bits().minus(shift).number()
    scale = x.of(4.0).bits().minus(shift).number() * 0.25  # 2**-e, from a number that is normal
    offset = scale - 1.0
    f = scaled + offset
    lost = scaled - (f - offset)
    return log_of_parts(exponent, f, lost if rest is None else rest.times_plus(scale, lost))


def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + 2**n exp(r)) for -x = n ln(2) + r, extended by 2**(-n/2): nothing overflows."""
    limits, bias = ((-750.0, 750.0), 1023) if x.is_double else ((-106.0, 106.0), 127)
    k, r = exponent_and_rest((-x).clamped(*limits), 2 * bias)
    half = k >> 1
    scale = power_of_two(k.minus(half))
    one = power_of_two(half.of(2 * bias).minus(half))
    total = scale + one
    lost = one - (total - scale)  # a whole ulp of the denominator where exp(-x) is about 2**24
    return one / (scale.times_plus(expm1_near_zero(r), lost) + total)


def softplus(x: Scalar) -> Scalar:
    """max(x, 0) + log1p(exp(-|x|)), the exponential with what its rounding lost."""
    limits, bias = ((-750.0, 0.0), 1023) if x.is_double else ((-106.0, 0.0), 127)
    k, r = exponent_and_rest((-x.call("fabs")).clamped(*limits), 2 * bias)
    p = expm1_near_zero(r)
    e = p + 1.0
    rest = p - (e - 1.0)
    half = k >> 1
    first, second = power_of_two(half), power_of_two(k.minus(half))
    return _positive_part(x) + _log1p_finite(e * first * second, rest * first * second)


def _positive_part(x: Scalar) -> Scalar:
    """max(x, -0), NaN for NaN."""
    return where(x < 0.0, x.of(-0.0), x)


def _squared(x: Scalar) -> tuple[Scalar, Scalar]:
    """x**2, rounded and what that lost."""
    square = x * x
    return square, x.times_plus(x, -square)


def gelu_single(x: Scalar) -> Scalar:
    """max(x, 0) - |x| Phi(-|x|)."""
    size = x.call("fabs").clamped(0.0, 14.5)
    square, lost = _squared(size)
    p, first, second = _tail_single(size, square * 0.5, lost * 0.5, for_erfc=False)
    return _positive_part(x) - p.times_plus(size, size) * first * second


def erfc_single(x: Scalar) -> Scalar:
    """2 Phi(-sqrt(2) |x|), or 2 less that."""
    size = x.call("fabs").clamped(0.0, 10.2)
    p, first, second = _tail_single(size, *_squared(size), for_erfc=True)
    tail = (p + 1.0) * first * second
    return where(x < 0.0, -(tail - 2.0), tail)


def _tail_single(
    x: Scalar, half_square: Scalar, lost: Scalar, for_erfc: bool
) -> tuple[Scalar, Scalar, Scalar]:
    """(p, s, t) with Phi(-x) = (1 + p) s t; for erfc, 2 Phi(-sqrt(2) x).

    The exponential of c0 + c1 v + v**2 Q(v) - half_square - lost, v = x - center. The first two
    and the fourth are large; less n ln(2), they cancel with one small error.
    """
    scale = math.sqrt(2) if for_erfc else 1.0

    def piece(center: float, center_for_erfc: float, c0: float, rest: tuple[float, ...]):
        v = (x - center_for_erfc) * scale if for_erfc else x - center
        low, c1, *q = rest
        return v, x.of(c0), x.of(c1), (v * v).times_plus(v.polynomial(tuple(q)), low)

    near = x < _TAIL_SPLIT / scale
    pieces = zip(piece(*_TAIL_NEAR), piece(*_TAIL_FAR), strict=True)
    v, c0, c1, rest = (where(near, a, b) for a, b in pieces)
    fraction = ROUND + 254 + for_erfc  # twice the bias: `s` and `t` carry it once each
    shifted = (v.times_plus(c1, c0 - half_square) + rest).times_plus(1 / math.log(2), fraction)
    n = shifted - fraction
    constant = n.times_plus(-_LN2_SHORT, c0)
    difference = constant - half_square  # exact unless half_square is the smaller
    lost = lost - ((constant - difference) - half_square)
    r_high = v.times_plus(c1, difference)
    r_low = n.times_plus(-_LN2_REST, rest) - lost
    r = r_high + r_low
    p = (r * r).times_plus(r.polynomial(EXP), r_low - (r - r_high)) + r
    k = shifted.bits()
    half = k >> 1
    return p, power_of_two(half), power_of_two(k.minus(half))


def gelu_double(x: Scalar) -> Scalar:
    """max(x, 0) - |x| Phi(-|x|)."""
    size = x.call("fabs").clamped(0.0, 39.0)
    square, lost = _squared(size)
    return _positive_part(x) - _tail_double(size, square * 0.5, lost * 0.5, 4.0, 1.0, size)


def erfc_double(x: Scalar) -> Scalar:
    """2 Phi(-sqrt(2) |x|), or 2 less that."""
    size = x.call("fabs").clamped(0.0, 27.5)
    root = math.sqrt(2)
    tail = _tail_double(size, *_squared(size), 4.0 / root, root, size.of(1.0))
    near = x.of(1.0) - x.times_plus((x * x).polynomial(ERF_NEAR_64), x)
    return where(size < 0.75, near, where(x < 0.0, -(tail - 2.0), tail))


def _tail_double(
    x: Scalar, square: Scalar, lost: Scalar, k: float, scale: float, factor: Scalar
) -> Scalar:
    """exp(-square - lost) * factor * scale * P(t) / (x + k), with t = (x - k) / (x + k)."""
    above, below = x - k, x + k
    inverse = x.of(1.0) / below

    def divided(a: Scalar) -> Scalar:
        quotient = a * inverse
        return quotient.times_plus(-below, a).times_plus(inverse, quotient)

    m = divided(divided(above).polynomial(tuple(c * scale for c in _TAIL_64)) * factor)
    n, r = exponent_and_rest(-square, 2046)
    half = n >> 1
    result = expm1_near_zero(r - lost).times_plus(m, m)
    return result * power_of_two(half) * power_of_two(n.minus(half))


expm1_of = as_intrinsic("expm1_of", 1, expm1, expm1)
log1p_of = as_intrinsic("log1p_of", 1, log1p, log1p)
sigmoid_of = as_intrinsic("sigmoid_of", 1, sigmoid, sigmoid)
softplus_of = as_intrinsic("softplus_of", 1, softplus, softplus)
erfc_of = as_intrinsic("erfc_of", 1, erfc_single, erfc_double)
gelu_of = as_intrinsic("gelu_of", 1, gelu_single, gelu_double)

__all__ = ["erfc_of", "expm1_of", "gelu_of", "log1p_of", "sigmoid_of", "softplus_of"]
