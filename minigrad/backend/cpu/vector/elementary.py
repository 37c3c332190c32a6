"""exp, log, sin, cos, tanh, erf and pow without branches or tables, so that LLVM vectorizes them.

A loop that calls libm is scalar as a whole: Numba's PyPI build has no vector library. These are
straight-line code in place of the call: reduce the argument to a small range, evaluate a
polynomial, undo the reduction (Muller 2016, "Elementary Functions", 3rd edition). The polynomials
are minimax ones, from Remez's exchange algorithm in 160-bit arithmetic; beside each stands its own
error. An x * c + d that must round once is an FMA: CPUs have had it since 2013, and on one without,
LLVM calls libm's, which is as right but slow.

Precision, as the largest error found, in units in the last place (ulp) of the exact value: over all
float32 (cos: one in 11), and over samples for pow and float64. Zeros, infinities, NaN, subnormals
and overflow are as in C99's annex F.

               exp    log    sin    cos    tanh   erf    pow
    float32    1.05   0.94   1.49   1.50   1.50   1.30   0.54
    float64    0.96   0.76   libm   libm   1.50   1.10   libm

sin, cos and pow of float64 stay libm's, right to 1 ulp but scalar: to reduce any float64 by
pi/2 takes 1200 bits of 2/pi, and a power needs its logarithm to 64 bits.
"""

from __future__ import annotations

import math

from minigrad.backend.cpu.vector.exact_float import Scalar, as_intrinsic, where

LN2_HIGH, LN2_LOW = 0.6931471824645996, -1.904654299957768e-09  # the high part is a float32
LN2_HIGH_64, LN2_LOW_64 = 0.6931471805599453, 2.3190468138462996e-17
_LN2_SHORT_64, _LN2_REST_64 = 0.6931471803691238, 1.9082149292705877e-10  # high part: 32 bits
# (exp(r) - 1 - r) / r**2 on |r| <= ln(2) / 2, relative to expm1(r): 2**-26 and 2**-61
EXP = (0.5, 0.166665405, 0.041666273, 0.00836691074, 0.00139470177)
EXP_64 = (
    0.5, 0.16666666666666677, 0.041666666666666706, 0.008333333333321149, 0.001388888888886595,
    0.0001984126988749523, 2.480158736232691e-05, 2.755724269927098e-06, 2.75572412361571e-07,
    2.5109604790570622e-08, 2.092491621976053e-09,
)  # fmt: skip
# (log(1 + f) - f) / f**2 on |f| <= 1/3: 2**-27
_LOG = (
    -0.5, 0.333332241, -0.249996886, 0.200100437, -0.166854665, 0.140109256, -0.121151164,
    0.139624178, -0.131917015,
)  # fmt: skip
# (log((1 + s) / (1 - s)) / s - 2) / s**2 in s**2, |s| <= 3 - 2 sqrt(2): 2**-58
_LOG_64 = (
    0.6666666666666735, 0.3999999999940824, 0.2857142874395737, 0.2222219839887307,
    0.18183574031730332, 0.1531378655293833, 0.14798740968540308,
)  # fmt: skip
# log2((1 + s) / (1 - s)) / s in s**2, same range: 2**-37
_LOG2 = (
    2.8853900817902525, 0.9617966731330372, 0.5770836251792266, 0.411670274991267,
    0.3407759986437931,
)  # fmt: skip
# 2**r on |r| <= 1/2: 2**-29
_EXP2 = (
    0.9999999999178217, 0.6931472070253825, 0.2402265151459889, 0.055503265435215665,
    0.009617993449380751, 0.001340070001266481, 0.0001547831769653006,
)  # fmt: skip
# (sin(r) / r - 1) / r**2 and (cos(r) - 1) / r**2, both in r**2, on |r| <= pi/4: 2**-37, 2**-33
_SIN = (-0.166666672, 0.00833332911, -0.000198393158, 2.71812178e-06)
_COS = (-0.5, 0.0416666456, -0.00138873525, 2.44366111e-05)
# (tanh(x) / x - 1) / x**2 in x**2 on |x| <= 0.3125: 2**-32 and 2**-59
_TANH = (-0.333333284, 0.133328259, -0.0538094528, 0.019890096)
_TANH_64 = (
    -0.333333333333332, 0.13333333333287462, -0.05396825391595288, 0.021869485649533345,
    -0.008863147232839071, 0.0035905489413455473, -0.0014393410838162532, 0.0004958074759992529,
)  # fmt: skip
# erf(x) / x - 1 in x**2 up to |x| = 0.89 (2**-26) and 1 (2**-57)
_ERF_NEAR = (0.128379151, -0.376125395, 0.112823002, -0.0267847572, 0.00502071669, -0.000613614044)
ERF_NEAR_64 = (
    0.12837916709551256, -0.3761263890318355, 0.11283791670945252, -0.026866170643276045,
    0.00522397760742236, -0.0008548325989655975, 0.00012055295319581227, -1.4924744650741032e-05,
    1.6447517574069751e-06, -1.6209175452722957e-07, 1.3722975521887176e-08,
    -7.801189474217437e-10,
)  # fmt: skip
# log(1 - erf(x)) from 0.85 to 4, in x, and from 0.99 to 6, in x - 1; error in erf 2**-28, 2**-59
_ERF_FAR = (
    -0.000114707625, -1.1280154, -0.636601686, -0.104447998, 0.0224789567, -0.00310717407,
    0.00020252679,
)  # fmt: skip
_ERF_FAR_64 = (
    -1.8496055099332482, -2.638967514234791, -0.8431072563585719, -0.041561098043647195,
    0.010033825391992157, -0.0019779026714945064, 0.00023732288592843198,
    2.627677687165488e-05, -2.7156970839965107e-05, 9.60583642881007e-06,
    -2.0565115109461677e-06, 1.4027775015093876e-07, 9.909647910293418e-08,
    -5.272416522652973e-08, 1.5133491506499062e-08, -2.9148874897173444e-09,
    3.760388162472923e-10, -2.953065398665453e-11, 1.0687792412873167e-12,
)  # fmt: skip
# The bits of 2/pi that matter to a float32 of a given size, see `_quarter_turns`: the size from
# which they are used, and two float64 that hold 107 bits.
_TWO_OVER_PI = (
    (0.0, 0.6366197723675814, -3.935735335036497e-17),
    (2.0**50, 2.568255326690366e-08, -5.434184107743751e-25),
    (2.0**76, 2.93709554037182e-16, 1.018166438749971e-32),
    (2.0**102, 6.074026489649846e-24, 3.1436547554916045e-40),
)

# Added to a number of smaller size, these leave no bits behind the point: the sum's low bits are
# the nearest integer. Unlike a conversion, that has a result for NaN, too.
ROUND, ROUND_64 = 1.5 * 2.0**23, 1.5 * 2.0**52


def exponent_and_rest(x: Scalar, bias: int) -> tuple[Scalar, Scalar]:
    """(k, r) with x = n * ln(2) + r, |r| <= ln(2) / 2, and n + bias in the integer k's low bits."""
    if x.is_double:
        fraction, high, low = ROUND_64 + bias, LN2_HIGH_64, LN2_LOW_64
    else:
        fraction, high, low = ROUND + bias, LN2_HIGH, LN2_LOW
    shifted = x.times_plus(1 / math.log(2), fraction)
    n = shifted - fraction
    return shifted.bits(), n.times_plus(-low, n.times_plus(-high, x))


def expm1_near_zero(r: Scalar) -> Scalar:
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    return (r * r).times_plus(r.polynomial(EXP_64 if r.is_double else EXP), r)


def power_of_two(k: Scalar) -> Scalar:
    """2**n, from an integer whose low bits are n + bias; the shift drops those above."""
    return (k << (52 if k.is_double else 23)).number()


def exp(x: Scalar) -> Scalar:
    """The exponential of x = n ln(2) + r: that of r times 2**n."""
    # 2**n in two factors: a result may be subnormal, and 2**128 exp(r) still be in range.
    limits, bias = ((-750.0, 710.0), 1023) if x.is_double else ((-106.0, 90.0), 127)
    k, r = exponent_and_rest(x.clamped(*limits), 2 * bias)
    half = k >> 1
    return (expm1_near_zero(r) + 1.0) * power_of_two(half) * power_of_two(k.minus(half))


def _exp_normal(x: Scalar) -> Scalar:
    """exp(x) where neither it nor x is extreme."""
    k, r = exponent_and_rest(x, 1023 if x.is_double else 127)
    return (expm1_near_zero(r) + 1.0) * power_of_two(k)


def tanh(x: Scalar) -> Scalar:
    """Near 0, x + x**3 P(x**2); farther out expm1(2 |x|) / (expm1(2 |x|) + 2), with x's sign."""
    near, end, bias = (_TANH_64, 20.0, 1023) if x.is_double else (_TANH, 10.0, 127)
    size = x.call("fabs")
    z = size * size
    below = (size * z).times_plus(z.polynomial(near), size)
    limited = size.clamped(0.0, end)  # beyond, it rounds to 1
    k, r = exponent_and_rest(limited + limited, bias)
    scale = power_of_two(k)
    expm1 = scale.times_plus(expm1_near_zero(r), scale - 1.0)
    # Near 0 the quotient's three roundings would add up to 2.4 ulp.
    above = expm1 / (expm1 + 2.0)
    return where(size < 0.3125, below, above).call("copysign", x)


def log_single(x: Scalar) -> Scalar:
    """log(2**e (1 + f)) = e ln(2) + log(1 + f), |f| <= 1/3."""
    tiny = x < 2.0**-126
    offset = 0x3F2AAAAB  # the bits of 2/3
    bits = where(tiny, x * 2.0**23, x).bits().minus(offset)
    exponent = bits.shifted_signed(23).converted()
    exponent = where(tiny, exponent - 23.0, exponent)
    f = (bits & 0x7FFFFF).plus(offset).number() - 1.0
    return _log_special(x, log_of_parts(exponent, f))


def log_double(x: Scalar) -> Scalar:
    """As `log_single`, with 1 + f from sqrt(1/2) to sqrt(2)."""
    tiny = x < 2.0**-1022
    exponent, f = _split_double(where(tiny, x * 2.0**54, x))
    return _log_special(x, log_of_parts(where(tiny, exponent - 54.0, exponent), f))


def log_of_parts(exponent: Scalar, f: Scalar, rest: Scalar | None = None) -> Scalar:
    """log(1 + f + rest) + exponent * ln(2), where `rest` is less than f's last place.

    In float64 as fdlibm's e_log.c: f - f**2 / 2 + s (f**2 / 2 + R(s**2)), s = f / (2 + f).
    """
    if not f.is_double:
        square, polynomial = f * f, f.polynomial(_LOG)
        if rest is None:
            result = square.times_plus(polynomial, f)
        else:
            result = square.times_plus(polynomial, rest) + f
        return exponent.times_plus(LN2_HIGH, result)
    s, half = f / (f + 2.0), f * f * 0.5
    z = s * s
    correction = s * (z.times_plus(z.polynomial(_LOG_64), half))
    if rest is not None:
        correction = correction + rest
    correction = exponent.times_plus(_LN2_REST_64, correction)
    return exponent.times_plus(_LN2_SHORT_64, f - (half - correction))


def _split_double(x: Scalar) -> tuple[Scalar, Scalar]:
    """(e, f) with x = 2**e (1 + f), 1 + f from sqrt(1/2) to sqrt(2), for a normal x > 0."""
    offset = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
    bits = x.bits().minus(offset)
    # Few CPUs convert 64-bit integers: write the exponent into the low bits of 2**52 instead.
    biased = bits.plus(1024 << 52) >> 52
    exponent = (biased | 0x4330000000000000).number() - (2.0**52 + 1024)
    return exponent, (bits & 0xFFFFFFFFFFFFF).plus(offset).number() - 1.0


def _log_special(x: Scalar, result: Scalar) -> Scalar:
    """The logarithm of x, given `result` for 0 < x < inf."""
    result = where(x < math.inf, result, x)
    at_most_zero = where(x.equals(0.0), x.of(-math.inf), math.nan)
    return where(x.of(0.0) < x, result, at_most_zero)


def _quarter_turns(x: Scalar) -> tuple[Scalar, Scalar]:
    """(q, r) with x = q * pi/2 + r, |r| <= pi/4, for a float32 x; q is right modulo 4.

    Payne & Hanek 1983, in float64. |x| >= 2**50 is a multiple of 2**27, so the bits of 2/pi from
    2**-25 up only add multiples of 4 to q: they are left out. What stays of x * 2/pi is small
    enough for its integer to be exact.
    """
    x = x.as_double()
    size = x.call("fabs")
    _, high, low = (x.of(c) for c in _TWO_OVER_PI[0])
    for start, next_high, next_low in _TWO_OVER_PI[1:]:
        smaller = size < start
        high, low = where(smaller, high, next_high), where(smaller, low, next_low)
    first = x.times_plus(high, ROUND_64)
    rest = x.times_plus(low, x.times_plus(high, -(first - ROUND_64)))
    second = rest + ROUND_64  # `low` may have moved it past 1/2
    rest = rest - (second - ROUND_64)
    quarters = first.bits().low_half().plus(second.bits().low_half())
    return quarters, (rest * (math.pi / 2)).as_single()


def _sine_of_quarters(quarters: Scalar, r: Scalar) -> Scalar:
    """sin(quarters * pi/2 + r)."""
    z = r * r
    sine = (z * r).times_plus(z.polynomial(_SIN), r)
    cosine = z.times_plus(z.polynomial(_COS), 1.0)
    result = where((quarters & 1).is_zero(), sine, cosine)
    return (result.bits() ^ ((quarters & 2) << 30)).number()


def sin_single(x: Scalar) -> Scalar:
    """The sine of a float32."""
    result = _sine_of_quarters(*_quarter_turns(x))
    return where(x.call("fabs") < 2.0**-12, x, result)  # which keeps -0, too


def cos_single(x: Scalar) -> Scalar:
    """The cosine of a float32, as the sine a quarter turn on."""
    quarters, r = _quarter_turns(x)
    return _sine_of_quarters(quarters.plus(1), r)


def erf(x: Scalar) -> Scalar:
    """Near 0, x + x P(x**2); farther out 1 - exp(Q(|x|)), with x's sign."""
    near, far, origin, split, end = (
        (ERF_NEAR_64, _ERF_FAR_64, 1.0, 1.0, 6.0)
        if x.is_double
        else (_ERF_NEAR, _ERF_FAR, 0.0, 0.875, 4.0)
    )
    size = x.call("fabs")
    tail = (size.clamped(split, end) - origin).polynomial(far)
    above = (-(_exp_normal(tail) - 1.0)).call("copysign", x)
    below = x.times_plus((x * x).polynomial(near), x)
    return where(size < split, below, above)


def pow_single(x: Scalar, y: Scalar) -> Scalar:
    """2**(y log2(|x|)) in float64, so that one rounding counts; special cases as C99 F.10.4.4."""
    size, wide_y = x.call("fabs"), y.as_double()
    exponent, f = _split_double(size.as_double())
    s = f / (f + 2.0)
    logarithm = s.times_plus((s * s).polynomial(_LOG2), exponent)
    logarithm = _log_special(size.as_double(), logarithm)
    t = (wide_y * logarithm).clamped(-200.0, 200.0)
    shifted = t + ROUND_64
    fraction = t - (shifted - ROUND_64)
    scaled = fraction.polynomial(_EXP2).bits().plus(shifted.bits() << 52).number()
    result = scaled.as_single()

    half_y = y * 0.5
    is_integer = y.call("floor").equals(y)
    is_even = half_y.call("floor").equals(half_y)
    negative_and_odd = where(is_integer, where(is_even, y.of(0.0), x), 0.0)
    result = result.call("copysign", negative_and_odd)
    no_power = where(x.of(-math.inf) < x, where(x < 0.0, x.of(math.nan), result), result)
    result = where(is_integer, result, no_power)
    size_is_one_at_infinity = where(size.equals(1.0), y.call("fabs"), 0.0).equals(math.inf)
    result = where(size_is_one_at_infinity, x.of(1.0), result)
    result = where(x.equals(1.0), x.of(1.0), result)
    return where(y.equals(0.0), x.of(1.0), result)


def _from_libm(name: str):
    """The function of the C library, which LLVM calls once for each lane."""
    return lambda x, *others: x.call(name, *others)


exp_of = as_intrinsic("exp_of", 1, exp, exp)
log_of = as_intrinsic("log_of", 1, log_single, log_double)
sin_of = as_intrinsic("sin_of", 1, sin_single, _from_libm("sin"))
cos_of = as_intrinsic("cos_of", 1, cos_single, _from_libm("cos"))
tanh_of = as_intrinsic("tanh_of", 1, tanh, tanh)
erf_of = as_intrinsic("erf_of", 1, erf, erf)
pow_of = as_intrinsic("pow_of", 2, pow_single, _from_libm("pow"))

__all__ = ["cos_of", "erf_of", "exp_of", "log_of", "pow_of", "sin_of", "tanh_of"]
