"""Floating-point arithmetic that fast-math leaves alone, for code that counts its rounding errors.

Kernels are compiled with `reassoc` and `contract` (native.FASTMATH): `(x + big) - big`, which
rounds x to an integer, would be simplified to x. Numba gives those flags to every instruction that
has none of its own, so each sum, product and quotient here carries one flag that cannot change it.
(Calls, such as to `llvm.fma`, get all flags: nothing is simplified across them while their
neighbours do not allow it.) A `Scalar` is a number in LLVM's IR with Python's operators; LLVM makes
vectors of it together with the loop around it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minigrad.backend.cpu.vector.builder import call_llvm

# `arcp` (divide by multiplying with the reciprocal) says nothing about a sum or product, `contract`
# (fuse a product and a sum) nothing about a quotient.
_SUM_OR_PRODUCT, _QUOTIENT = ("arcp",), ("contract",)


class Scalar:
    """A float32, a float64, or the bits of one as an integer of the same width."""

    def __init__(self, builder: ir.IRBuilder, value: Any):
        self.builder, self.value = builder, value

    @property
    def is_double(self) -> bool:
        """Whether this is a float64 or the bits of one."""
        return str(self.value.type) in ("double", "i64")

    @property
    def _float(self) -> ir.Type:
        return ir.DoubleType() if self.is_double else ir.FloatType()

    def of(self, x: Scalar | float) -> Scalar:
        """`x` itself, or the number as a constant of this value's type."""
        if isinstance(x, Scalar):
            return x
        return Scalar(self.builder, ir.Constant(self.value.type, x))

    def _binary(self, operation: str, other: Scalar | float, **flags: Any) -> Scalar:
        emit = getattr(self.builder, operation)
        return Scalar(self.builder, emit(self.value, self.of(other).value, **flags))

    def call(self, name: str, *others: Scalar | float) -> Scalar:
        """LLVM's intrinsic `name` of this value and `others`."""
        suffix = "f64" if self.is_double else "f32"
        arguments = [self.value, *(self.of(x).value for x in others)]
        result = call_llvm(self.builder, f"{name}.{suffix}", self.value.type, arguments)
        return Scalar(self.builder, result)

    # Floating point

    def __add__(self, other: Scalar | float) -> Scalar:
        return self._binary("fadd", other, flags=_SUM_OR_PRODUCT)

    def __sub__(self, other: Scalar | float) -> Scalar:
        return self._binary("fsub", other, flags=_SUM_OR_PRODUCT)

    def __mul__(self, other: Scalar | float) -> Scalar:
        return self._binary("fmul", other, flags=_SUM_OR_PRODUCT)

    def __truediv__(self, other: Scalar | float) -> Scalar:
        return self._binary("fdiv", other, flags=_QUOTIENT)

    def __neg__(self) -> Scalar:
        return Scalar(self.builder, self.builder.fneg(self.value))

    def times_plus(self, factor: Scalar | float, term: Scalar | float) -> Scalar:
        """The sum self * factor + term, rounded once."""
        return self.call("fma", factor, term)

    def polynomial(self, coefficients: tuple[float, ...]) -> Scalar:
        """c[0] + c[1] * self + c[2] * self**2 + ..., by Horner's rule."""
        result = self.of(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            result = result.times_plus(self, c)
        return result

    def __lt__(self, other: Scalar | float) -> Scalar:
        return Scalar(
            self.builder, self.builder.fcmp_ordered("<", self.value, self.of(other).value)
        )

    def equals(self, other: Scalar | float) -> Scalar:
        """Whether the two are equal; false when one is NaN."""
        return Scalar(
            self.builder, self.builder.fcmp_ordered("==", self.value, self.of(other).value)
        )

    def clamped(self, low: float, high: float) -> Scalar:
        """At least `low` and at most `high`; NaN stays NaN."""
        below = where(self < low, self.of(low), self)
        return where(below.of(high) < below, below.of(high), below)

    def as_double(self) -> Scalar:
        """This float32 as a float64."""
        return Scalar(self.builder, self.builder.fpext(self.value, ir.DoubleType()))

    def as_single(self) -> Scalar:
        """This float64 rounded to a float32."""
        return Scalar(self.builder, self.builder.fptrunc(self.value, ir.FloatType()))

    # Bits

    def bits(self) -> Scalar:
        """The representation, as an integer of the same width."""
        return Scalar(self.builder, self.builder.bitcast(self.value, _integer(self.is_double)))

    def number(self) -> Scalar:
        """The float that has these bits."""
        return Scalar(self.builder, self.builder.bitcast(self.value, self._float))

    def converted(self) -> Scalar:
        """This signed integer as the float of the same width."""
        return Scalar(self.builder, self.builder.sitofp(self.value, self._float))

    def low_half(self) -> Scalar:
        """The low 32 bits of 64."""
        return Scalar(self.builder, self.builder.trunc(self.value, _integer(False)))

    def plus(self, other: Scalar | int) -> Scalar:
        """The sum of integers, modulo 2 to the width."""
        return self._binary("add", other)

    def minus(self, other: Scalar | int) -> Scalar:
        """The difference of integers, modulo 2 to the width."""
        return self._binary("sub", other)

    def __lshift__(self, count: int) -> Scalar:
        return self._binary("shl", count)

    def __rshift__(self, count: int) -> Scalar:
        """Shift in zeros."""
        return self._binary("lshr", count)

    def shifted_signed(self, count: int) -> Scalar:
        """Shift right by `count`, keeping the sign."""
        return self._binary("ashr", count)

    def __and__(self, other: Scalar | int) -> Scalar:
        return self._binary("and_", other)

    def __or__(self, other: Scalar | int) -> Scalar:
        return self._binary("or_", other)

    def __xor__(self, other: Scalar | int) -> Scalar:
        return self._binary("xor", other)

    def is_zero(self) -> Scalar:
        """Whether the integer is 0."""
        return Scalar(self.builder, self.builder.icmp_unsigned("==", self.value, self.of(0).value))


def _integer(is_double: bool) -> ir.IntType:
    return ir.IntType(64 if is_double else 32)


def where(condition: Scalar, a: Scalar, b: Scalar | float) -> Scalar:
    """`a` where the condition holds, else `b`; both are computed."""
    return Scalar(a.builder, a.builder.select(condition.value, a.value, a.of(b).value))


def as_intrinsic(name: str, arity: int, single: Any, double: Any):
    """A function of one or two floats of one type, for use in Numba code.

    `single` and `double` build it from Values, for float32 and float64.
    """

    def signature_and_codegen(*arguments: Any):
        kind = arguments[0]
        if kind not in (types.float32, types.float64) or any(a != kind for a in arguments):
            return None  # a typing error, which names the argument types
        build = single if kind == types.float32 else double

        def codegen(context, builder, signature, args):
            return build(*(Scalar(builder, x) for x in args)).value

        return kind(*arguments), codegen

    def unary(typingctx, x):
        return signature_and_codegen(x)

    def binary(typingctx, x, y):
        return signature_and_codegen(x, y)

    function = unary if arity == 1 else binary
    function.__name__ = function.__qualname__ = name
    return intrinsic(function)
