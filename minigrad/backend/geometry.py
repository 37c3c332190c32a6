"""Where a sliding window lies: all that convolutions, pooling and their gradients have in common.

Window number o meets, under its tap k, position o * stride + k * dilation - low of its input, `low`
being the padding before it. Input i is at position i * input_dilation; all other positions, those
of the padding included, hold nothing (a zero in a sum). Negative padding crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import NamedTuple

Pair = tuple[int, int]


def _spaced(n: int, step: int) -> int:
    """Positions from the first to the last of n elements that lie `step` apart."""
    return (n - 1) * step + 1 if n else 0


class WindowAxis(NamedTuple):
    """A window along one axis, in elements; `padding` is (before, after)."""

    size: int  # taps
    stride: int
    padding: Pair
    dilation: int
    input_dilation: int

    @property
    def reach(self) -> int:
        """Positions from the first tap to the last."""
        return (self.size - 1) * self.dilation

    @property
    def steps(self) -> Pair:
        """(windows, inputs) from where a tap meets an input to where it meets its next."""
        common = gcd(self.stride, self.input_dilation)
        return self.input_dilation // common, self.stride // common

    def windows(self, inputs: int) -> int:
        """How many windows fit on so many inputs; 0 when none does."""
        room = _spaced(inputs, self.input_dilation) + sum(self.padding)
        room -= _spaced(self.size, self.dilation)
        return room // self.stride + 1 if room >= 0 else 0

    def adjoint(self, inputs: int) -> WindowAxis:
        """The window over windows that gives back each of the inputs what it gave."""
        low = self.reach - self.padding[0]
        needed = (inputs - 1) * self.input_dilation + self.reach + 1
        high = needed - _spaced(self.windows(inputs), self.stride) - low
        return WindowAxis(self.size, self.input_dilation, (low, high), self.dilation, self.stride)

    def exchanged(self, inputs: int) -> WindowAxis:
        """The same meetings with windows as taps and taps as windows: what weights' gradients sum.

        It has as many windows as this one has taps.
        """
        windows, low = self.windows(inputs), self.padding[0]
        needed = self.reach + _spaced(windows, self.stride)
        high = needed - _spaced(inputs, self.input_dilation) - low
        return WindowAxis(windows, self.dilation, (low, high), self.stride, self.input_dilation)


class Window(NamedTuple):
    """A window over two axes, rows first: see WindowAxis."""

    size: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    input_dilation: Pair = (1, 1)

    @property
    def axes(self) -> tuple[WindowAxis, WindowAxis]:
        """The window along the rows' axis and along the columns'."""
        rows, columns = zip(*self, strict=True)
        return WindowAxis(*rows), WindowAxis(*columns)

    @property
    def low(self) -> Pair:
        """The padding before each axis."""
        return self.padding[0][0], self.padding[1][0]

    def windows(self, inputs: Sequence[int]) -> Pair:
        """How many windows fit on so many inputs of each axis."""
        rows, columns = self.axes
        return rows.windows(inputs[0]), columns.windows(inputs[1])

    def adjoint(self, inputs: Sequence[int]) -> Window:
        """See WindowAxis.adjoint."""
        return self._along(WindowAxis.adjoint, inputs)

    def exchanged(self, inputs: Sequence[int]) -> Window:
        """See WindowAxis.exchanged."""
        return self._along(WindowAxis.exchanged, inputs)

    def _along(
        self, change: Callable[[WindowAxis, int], WindowAxis], inputs: Sequence[int]
    ) -> Window:
        return Window(*zip(*map(change, self.axes, inputs), strict=True))
