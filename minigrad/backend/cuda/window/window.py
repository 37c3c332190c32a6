"""Windows over the last two axes of (A, B, H, W): sums, maxima and what maxima select.

There are as many windows as the output has room for, whatever padding is after x. Ties are decided
as on the CPU: see [Note: ties] in backend/cpu/window/window.py.

Floats of less than 32 bits are added up in float32, and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from minigrad.backend.checks import require_numeric
from minigrad.backend.cuda.kernel_text import IMPROVES, SUMS, KernelText, span
from minigrad.backend.cuda.prelude import THREADS
from minigrad.backend.cuda.window import window_kernels as kernels
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Pointer, Program
from minigrad.dtype import int32, uint8

MOST_UNROLLED = 16  # taps of a window that are compiled in, or elements of a cell
_PACK_BYTES = 16  # that a thread writes at once, at most
_AXES = ("h", "w")


def window_sum(
    program: Program,
    x: Operand,
    out: Operand,
    *,
    window: Window,
) -> None:
    """Sum every window of x, after spacing x's elements `input_dilation` apart and padding with 0.

    Shapes: x (A, B, H, W) -> out (A, B, OH, OW), one numeric dtype.
    """
    require_numeric("window_sum", x, out)
    if not out.size:
        return
    layout = _Windows(x, out, window)
    text = layout.text({"x": x}, out)
    if window.input_dilation == (1, 1):
        body = kernels.window_sum(layout.taps(text))
        text.launch(program, "window_sum", body, out.size, before=SUMS)
        return
    for name, axis in zip(_AXES, window.axes, strict=True):
        n, step = axis.input_dilation, axis.dilation
        shared = gcd(n, step)
        text.word(f"taps_{name}", axis.size)
        text.divisor(f"by_spacing_{name}", n)
        text.word(f"lift_{name}", -(-max(axis.padding[0], 0) // n) * n)
        text.word(f"turn_{name}", step % n)
        text.word(f"every_{name}", n // shared)
        text.word(f"step_{name}", step // shared)
    before = SUMS + kernels.SPACED
    text.launch(program, "window_sum", kernels.SPACED_SUM, out.size, before=before)


def window_max(
    program: Program,
    x: Operand,
    out: Operand,
    *,
    window: Window,
) -> None:
    """The maximum of every window of x; NaN propagates.

    Shapes: x (A, B, H, W) -> out (A, B, OH, OW), one numeric dtype.
    """
    require_numeric("window_max", x, out)
    if not out.size:
        return
    layout = _Windows(x, out, window)
    text = layout.text({"x": x}, out)
    body = kernels.window_max(layout.taps(text))
    text.launch(program, "window_max", body, out.size, before=_lowest(x))


def window_select(
    program: Program,
    x: Operand,
    u: Operand,
    out: Operand,
    *,
    window: Window,
) -> None:
    """The value of u at the maximum of every window of x.

    Shapes: x, u (A, B, H, W) -> out (A, B, OH, OW). u and out share a dtype; x's may differ.
    """
    require_numeric("window_select", x)
    require_numeric("window_select", u, out)
    if not out.size:
        return
    layout = _Windows(x, out, window)
    text = layout.text({"x": x, "u": u}, out)
    body = kernels.window_select(layout.taps(text))
    text.launch(program, "window_select", body, out.size, before=_lowest(x))


def window_scatter(
    program: Program,
    x: Operand,
    g: Operand,
    out: Operand,
    *,
    window: Window,
) -> None:
    """Add each g at the maximum of its window of x, to zeros: the adjoint of `window_select`.

    Windows that overlap add up in row-major order.
    Shapes: x (A, B, H, W), g (A, B, OH, OW) -> out (A, B, H, W). g and out share a dtype.
    """
    require_numeric("window_scatter", x)
    require_numeric("window_scatter", g, out)
    if not out.size:
        return
    layout = _Windows(x, g, window)
    apart = all(axis.size <= axis.stride and axis.dilation == 1 for axis in window.axes)
    if apart and prod(window.stride) <= MOST_UNROLLED:
        _scatter_cells(program, layout, g, out)
    else:
        _scatter_winners(program, layout, g, out)


def _scatter_cells(program: Program, layout: _Windows, g: Operand, out: Operand) -> None:
    """Windows that do not overlap: each writes the elements from its corner to the next one."""
    stride, low = layout.window.stride, layout.window.low
    firsts = [p // s for p, s in zip(low, stride, strict=True)]
    cells = [
        (n - 1 + p) // s - first + 1
        for n, p, s, first in zip(out.shape[2:], low, stride, firsts, strict=True)
    ]
    space = (*out.shape[:2], *cells)
    text = layout.text({"x": layout.x, "g": g}, out, space=space, fixed_stride=True)
    layout.taps(text)
    text.fixed("pack", _pack(out, stride[1], low[1]))
    text.word("first_row", firsts[0])
    text.word("first_column", firsts[1])
    text.word("rows", g.shape[2])
    text.word("columns", g.shape[3])
    before = _lowest(layout.x)
    text.launch(program, "window_scatter", kernels.CELLS, prod(space), before=before)


def _scatter_winners(program: Program, layout: _Windows, g: Operand, out: Operand) -> None:
    """First the winning tap of each window; then each element of x looks at the windows over it.

    So a window is searched once, not once for each of its elements.
    """
    taps = prod(layout.window.size)
    dtype = uint8 if taps <= 255 else int32
    kind, nobody = ("u8", 255) if dtype is uint8 else ("int", -1)
    slot = program.scratch_slot(g.size * dtype.itemsize)
    if g.size:
        text = layout.text({"x": layout.x}, None)
        text.types("out", kind, "int")
        text.pointer("out", Pointer(slot), "out_type", written=True)
        text.fixed("nobody", nobody)
        body = kernels.winners(layout.taps(text))
        text.launch(program, "window_winners", body, g.size, before=_lowest(layout.x))
    text = layout.text({"g": g}, out, space=out.shape)
    text.types("winner", kind, "int")
    text.pointer("winner", Pointer(slot), "winner_type", written=False)
    for name, axis in zip(_AXES, layout.window.axes, strict=True):
        text.word(f"taps_{name}", axis.size)
        text.divisor(f"by_stride_{name}", axis.stride)
        text.divisor(f"by_dilation_{name}", axis.dilation)
    text.word("rows", g.shape[2])
    text.word("columns", g.shape[3])
    before = SUMS + kernels.AT_MOST
    text.launch(program, "window_scatter", kernels.GATHER, out.size, before=before)


@dataclass(frozen=True)
class _Windows:
    """Where windows lie on x, one for each element of `windows`, and how a kernel is told."""

    x: Operand
    windows: Operand
    window: Window

    def text(
        self,
        operands: dict[str, Operand],
        out: Operand | None,
        *,
        space: tuple[int, ...] | None = None,
        fixed_stride: bool = False,
    ) -> KernelText:
        """A kernel with a thread for each point of `space`, by default of the windows."""
        space = space or self.windows.shape
        written = {} if out is None else {"out": out}
        # A last block's threads may lie beyond the last point.
        reach = max(self._reach(), 2 * prod(space) + THREADS, 2 * self.windows.size)
        text = KernelText(max(reach, span(self.x, *operands.values(), *written.values())))
        for name, operand in operands.items():
            text.operand(name, operand)
        if out is not None:
            text.operand("out", out, written=True)
        for name, n in zip(("depth", "rows", "columns"), space[1:], strict=True):
            text.divisor(f"by_{name}", n)
        text.word("height", self.x.shape[2])
        text.word("width", self.x.shape[3])
        for name, axis in zip(_AXES, self.window.axes, strict=True):
            (text.fixed if fixed_stride else text.word)(f"stride_{name}", axis.stride)
            text.word(f"dilation_{name}", axis.dilation)
            text.word(f"padding_{name}", axis.padding[0])
        return text

    def taps(self, text: KernelText) -> bool:
        """Tell a kernel the window's size; gives whether that is compiled in."""
        unrolled = prod(self.window.size) <= MOST_UNROLLED
        for name, n in zip(_AXES, self.window.size, strict=True):
            (text.fixed if unrolled else text.word)(f"taps_{name}", n)
        return unrolled

    def _reach(self) -> int:
        """More than any row or column that a kernel thinks of, inside x or not."""
        extents = zip(self.window.axes, self.windows.shape[2:], self.x.shape[2:], strict=True)
        positions = [
            (m + 2) * axis.stride
            + (axis.size + 1) * axis.dilation
            + sum(map(abs, axis.padding))
            + (n + 2) * axis.input_dilation
            for axis, m, n in extents
        ]
        return max(*positions, prod(self.window.size))


def _lowest(x: Operand) -> str:
    """What a maximum starts with: the lowest value of x's type, and the order of values."""
    value = {
        "uint8": "0",
        "int32": "(-2147483647 - 1)",
        "int64": "(-9223372036854775807ll - 1)",
    }.get(x.dtype.name, "-as_float(0x7F800000u)")
    return f"DEVICE x_value lowest() {{ return {value}; }}\n" + IMPROVES


def _pack(out: Operand, cell: int, low: int) -> int:
    """How many elements of a cell's row are written at once; a cell is within out or outside."""
    steps = (*out.strides[:3], out.offset, out.shape[3], low)
    fits = cell in (2, 4) and cell * out.dtype.itemsize <= _PACK_BYTES
    return cell if fits and out.strides[3] == 1 and all(n % cell == 0 for n in steps) else 1
