"""Python's operators on Tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minigrad.functions import comparison, elementwise, linalg

if TYPE_CHECKING:
    from minigrad.functions.arguments import Operand
    from minigrad.graph import Number
    from minigrad.tensor import Tensor


def _reversed(f: Callable[[Operand, Operand], Tensor]) -> Callable[[Tensor, Number], Tensor]:
    """The operator with a number on its left: `2 - x` if `f` subtracts."""

    def operator(self: Tensor, other: Number) -> Tensor:
        return f(other, self)

    return operator


def _in_place(
    caller: str, f: Callable[[Operand, Operand], Tensor]
) -> Callable[[Tensor, Operand], Tensor]:
    """The operator that assigns: `x -= y` if `f` subtracts."""

    def operator(self: Tensor, other: Operand) -> Tensor:
        return self._update(caller, f(self, other))

    return operator


class Operators:
    """What `+`, `<`, `@`, `+=` and the others do to a Tensor."""

    __slots__ = ()

    __abs__ = elementwise.abs
    __add__ = elementwise.add
    __and__ = comparison.bitwise_and
    __floordiv__ = elementwise.floor_divide
    __ge__ = comparison.greater_equal
    __gt__ = comparison.greater
    __invert__ = comparison.bitwise_invert
    __le__ = comparison.less_equal
    __lt__ = comparison.less
    __matmul__ = linalg.matmul
    __mod__ = elementwise.remainder
    __mul__ = elementwise.multiply
    __neg__ = elementwise.negative
    __or__ = comparison.bitwise_or
    __pos__ = elementwise.positive
    __pow__ = elementwise.pow
    __sub__ = elementwise.subtract
    __truediv__ = elementwise.divide
    __xor__ = comparison.bitwise_xor

    __radd__ = _reversed(elementwise.add)
    __rand__ = _reversed(comparison.bitwise_and)
    __rfloordiv__ = _reversed(elementwise.floor_divide)
    __rmod__ = _reversed(elementwise.remainder)
    __rmul__ = _reversed(elementwise.multiply)
    __ror__ = _reversed(comparison.bitwise_or)
    __rpow__ = _reversed(elementwise.pow)
    __rsub__ = _reversed(elementwise.subtract)
    __rtruediv__ = _reversed(elementwise.divide)
    __rxor__ = _reversed(comparison.bitwise_xor)

    __iadd__ = _in_place("+=", elementwise.add)
    __iand__ = _in_place("&=", comparison.bitwise_and)
    __ifloordiv__ = _in_place("//=", elementwise.floor_divide)
    __imod__ = _in_place("%=", elementwise.remainder)
    __imul__ = _in_place("*=", elementwise.multiply)
    __ior__ = _in_place("|=", comparison.bitwise_or)
    __ipow__ = _in_place("**=", elementwise.pow)
    __isub__ = _in_place("-=", elementwise.subtract)
    __itruediv__ = _in_place("/=", elementwise.divide)
    __ixor__ = _in_place("^=", comparison.bitwise_xor)
