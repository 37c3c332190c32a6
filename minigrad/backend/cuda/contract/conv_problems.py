"""A convolution as products of pixels by channels: see [Note: convolution as a product].

[Note: phases] Zeros inserted into x (backward-data of a strided convolution) are never multiplied.
An output meets real inputs at every so-many-th tap only, and which ones repeats along the outputs:
those that agree form a convolution without inserted zeros, of every so-many-th output with every
so-many-th tap. There is a problem for each such phase of the rows and of the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd, prod

from minigrad.backend.cuda.prelude import divisor_words
from minigrad.backend.geometry import Window, WindowAxis
from minigrad.backend.launch import Operand

SECTOR = 8  # elements that memory moves at once: 32 bytes of float32


@dataclass(frozen=True)
class Phase:
    """Outputs first_out + j * out_step and taps first_tap + k * tap_step of one spatial axis.

    They meet at input start + j * out_input + k * tap_input, if there is one.
    """

    outs: int
    first_out: int
    out_step: int
    taps: int
    first_tap: int
    tap_step: int
    start: int
    out_input: int
    tap_input: int


def phases(axis: WindowAxis, windows: int) -> Iterator[Phase]:
    """What so many windows along one axis consist of, where zeros have been inserted into x."""
    spacing = axis.input_dilation
    out_step, in_step = axis.steps
    tap_step = spacing // gcd(axis.dilation, spacing)
    for first in range(min(out_step, windows)):
        position = first * axis.stride - axis.padding[0]
        meets = [
            k
            for k in range(min(tap_step, axis.size))
            if (position + k * axis.dilation) % spacing == 0
        ]
        first_tap = meets[0] if meets else 0
        yield Phase(
            outs=-(-(windows - first) // out_step),
            first_out=first,
            out_step=out_step,
            taps=-(-(axis.size - first_tap) // tap_step) if meets else 0,
            first_tap=first_tap,
            tap_step=tap_step,
            start=(position + first_tap * axis.dilation) // spacing,
            out_input=in_step,
            tap_input=tap_step * axis.dilation // spacing,
        )


@dataclass(frozen=True)
class PlaceAxis:
    """One axis of pixels or products: how far a step moves in x and in out (or w)."""

    extent: int
    x: int
    other: int
    row: int = 0
    column: int = 0


PlaceAxes = tuple[PlaceAxis, PlaceAxis, PlaceAxis]


def _ordered(*axes: PlaceAxis) -> PlaceAxes:
    """The axis along which x is densest innermost; axes of one step are outermost."""
    a, b, c = sorted(axes, key=lambda a: (a.extent == 1, abs(a.x), abs(a.other)), reverse=True)
    return a, b, c


@dataclass(frozen=True)
class Problem:
    """One product of a group. Offsets are in elements."""

    x: int
    w: int
    out: int
    pixel_axes: PlaceAxes
    product_axes: PlaceAxes
    row: int  # of the first pixel and product, in x
    column: int

    @property
    def pixels(self) -> int:
        """Images by output rows by output columns."""
        return prod(a.extent for a in self.pixel_axes)

    @property
    def products(self) -> int:
        """Terms of an output: channels of a group by taps."""
        return prod(a.extent for a in self.product_axes)

    def reach(self) -> int:
        """A bound on the offsets, pixels and products, which indices must be able to hold."""
        both = (*self.pixel_axes, *self.product_axes)
        x, pixels, products = (
            sum(abs(step) * a.extent for a, step in steps)
            for steps in (
                [(a, a.x) for a in both],
                [(a, a.other) for a in self.pixel_axes],
                [(a, a.other) for a in self.product_axes],
            )
        )
        return max(x, pixels, products, self.pixels, self.products)

    def words(self) -> tuple[int, ...]:
        """The words of both sets of axes: see `conv_kernels`."""
        return (
            *_words(self.pixel_axes, self.row, self.column),
            *_words(self.product_axes, 0, 0),
        )


def _words(axes: PlaceAxes, row: int, column: int) -> tuple[int, ...]:
    _, middle, last = axes
    return (
        *divisor_words(max(last.extent, 1)),
        *divisor_words(max(middle.extent, 1)),
        *(a.x for a in axes),
        *(a.other for a in axes),
        *(a.row for a in axes),
        *(a.column for a in axes),
        row,
        column,
        middle.extent,
        last.extent,
    )


def problems(x: Operand, w: Operand, out: Operand, window: Window) -> list[Problem]:
    """The products that one group consists of; each output belongs to one of them.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW), out (N, O, OH, OW).
    """
    both = map(phases, window.axes, out.shape[2:])
    return [_problem(x, w, out, rows, columns) for rows, columns in product(*both)]


def _problem(x: Operand, w: Operand, out: Operand, r: Phase, c: Phase) -> Problem:
    xs, ws, outs = x.strides, w.strides, out.strides
    pixel_axes = _ordered(
        PlaceAxis(x.shape[0], xs[0], outs[0]),
        PlaceAxis(r.outs, r.out_input * xs[2], r.out_step * outs[2], row=r.out_input),
        PlaceAxis(c.outs, c.out_input * xs[3], c.out_step * outs[3], column=c.out_input),
    )
    product_axes = _ordered(
        PlaceAxis(w.shape[1], xs[1], ws[1]),
        PlaceAxis(r.taps, r.tap_input * xs[2], r.tap_step * ws[2], row=r.tap_input),
        PlaceAxis(c.taps, c.tap_input * xs[3], c.tap_step * ws[3], column=c.tap_input),
    )
    return Problem(
        x=r.start * xs[2] + c.start * xs[3],
        w=r.first_tap * ws[2] + c.first_tap * ws[3],
        out=r.first_out * outs[2] + c.first_out * outs[3],
        pixel_axes=pixel_axes,
        product_axes=product_axes,
        row=r.start,
        column=c.start,
    )


def sectors(extents_and_steps: Iterable[tuple[int, int]], window: int) -> float:
    """About how many sectors of memory each element takes that threads side by side load.

    The axes, innermost first, are (extent, step in elements); `window` threads are side by side.
    """
    length, first = 1, 0
    for extent, step in extents_and_steps:
        if extent <= 1:  # a phase without products has an axis of none
            continue
        if length == 1:
            length, first = extent, abs(step)
        elif abs(step) == first * length:
            length *= extent
        else:
            break
    return min(1.0, first / SECTOR) + 1 / min(length, window)


def packs(problem: Problem, lanes: int, *offsets: int) -> bool:
    """Whether each `lanes` pixels in a row, from a multiple of it on, are one pack in out.

    `offsets` are how far out moves for other reasons.
    """
    row, rest, within = 1, [problem.out, *offsets], True
    for a in reversed(problem.pixel_axes):
        if a.extent == 1:
            continue
        within = within and a.other == row
        if within:
            row *= a.extent
        else:
            rest.append(a.other)
    return row % lanes == 0 and all(o % lanes == 0 for o in rest)
