"""Windows over the last two axes of (A, B, H, W): sums, maxima and what maxima select.

There are as many windows as the output has room for, whatever padding is after x.

[Note: ties] The maximum of a window is its first one in row-major order; the first NaN beats every
number. `window_select` and `window_scatter` find it again from x, so no index array exists.
Padding is never selected: a window without a single element of x has the lowest value of the type
(-inf) as its maximum, selects 0 and scatters nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from minigrad.backend.checks import require_numeric
from minigrad.backend.cpu import kernel_text
from minigrad.backend.cpu.runtime.jit import compile_kernel
from minigrad.backend.cpu.window import window_kernels as kernels
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Program

_INT32_REACH = 2**31  # planes that span fewer elements are indexed by int32
_LOWEST = {"uint8": "0", "int32": "-(2**31)", "int64": "-(2**63)"}


def window_sum(program: Program, x: Operand, out: Operand, *, window: Window) -> None:
    """The sum of every window of x.

    Shapes: x (A, B, H, W) -> out (A, B, OH, OW), one numeric dtype.
    """
    require_numeric("window_sum", x, out)
    operands = {"x": x, "out": out}
    if _in_pairs(x, out, window, out):
        _launch_pairs(program, "pair_sum", operands, out, out.shape[2])
        return
    if _spreads_pairs(x, out, window):
        _launch_pairs(program, "pair_spread", operands, x, -(-out.shape[2] // 2))
        return
    # Columns of the output `phases` apart see x's columns `every` apart through the same taps.
    across = window.axes[1]
    phases, every = across.steps
    firsts, ends, masks = [], [], []
    for phase in range(phases):
        start = phase * across.stride - across.padding[0]
        spaced = [start + j * across.dilation for j in range(across.size)]
        columns = [c // across.input_dilation for c in spaced if c % across.input_dilation == 0]
        firsts += [c * x.strides[3] for c in columns]
        ends.append(len(firsts))
        count = -(-(out.shape[3] - phase) // phases)
        masks += _masks(columns, every, x.shape[3], count, kernels.lanes_of(x, out))
    load = _load(x, every)
    sizes = _sizes(x, out, window, every) | {
        "taps_w": ends[-1],
        "spacing_h": window.input_dilation[0],
        "phases": phases,
    }
    rows, work = prod(out.shape[:3]), out.size * prod(window.size)
    body, tail = kernels.window_sum(load), (*firsts, *ends, *masks)
    _launch(program, f"window_sum_{load}", operands, sizes, tail, body, rows, work)


def window_max(program: Program, x: Operand, out: Operand, *, window: Window) -> None:
    """The maximum of every window of x; NaN propagates. See [Note: ties].

    Shapes: x (A, B, H, W) -> out (A, B, OH, OW), one numeric dtype.
    """
    require_numeric("window_max", x, out)
    operands = {"x": x, "out": out}
    if _in_pairs(x, out, window, out):
        _launch_pairs(program, "pair_max", operands, out, out.shape[2])
        return
    every = window.stride[1]
    load, sizes = _load(x, every), _sizes(x, out, window, every)
    rows, work = prod(out.shape[:3]), out.size * prod(window.size)
    taps, body = _taps(operands, x, out, window), kernels.window_max(load)
    lowest = {"LOWEST": _lowest(x)}
    _launch(program, f"window_max_{load}", operands, sizes, taps, body, rows, work, lowest)


def window_select(
    program: Program, x: Operand, u: Operand, out: Operand, *, window: Window
) -> None:
    """The value of u at the maximum of every window of x. See [Note: ties].

    Shapes: x, u (A, B, H, W) -> out (A, B, OH, OW). u and out share a dtype; x's may differ.
    """
    require_numeric("window_select", x)
    require_numeric("window_select", u, out)
    operands = {"x": x, "u": u, "out": out}
    if u.dtype == x.dtype and _in_pairs(x, out, window, u, out):
        _launch_pairs(program, "pair_select", operands, out, out.shape[2])
        return
    rows, work = prod(out.shape[:3]), 2 * out.size * prod(window.size)
    _launch_argmax(program, kernels.window_select, operands, u, out, window, rows, work)


def window_scatter(
    program: Program, x: Operand, g: Operand, out: Operand, *, window: Window
) -> None:
    """Add each g at the maximum of its window of x, to zeros: the adjoint of `window_select`.

    Windows that overlap add up in row-major order, so the result does not depend on the threads.
    See [Note: ties].
    Shapes: x (A, B, H, W), g (A, B, OH, OW) -> out (A, B, H, W). g and out share a dtype.
    """
    require_numeric("window_scatter", x)
    require_numeric("window_scatter", g, out)
    operands = {"x": x, "g": g, "out": out}
    if g.dtype == x.dtype and _in_pairs(x, g, window, g, out):
        _launch_pairs(program, "pair_scatter", operands, g, -(-out.shape[2] // 2))
        return
    planes, work = prod(out.shape[:2]), out.size + 2 * g.size * prod(window.size)
    _launch_argmax(program, kernels.window_scatter, operands, out, g, window, planes, work)


# ---- structure: which kernel serves


def _in_pairs(x: Operand, windows: Operand, window: Window, *others: Operand) -> bool:
    """Whether the kernels for 2 x 2 windows at stride 2 of dense rows of floats apply."""
    return (
        window == Window((2, 2), (2, 2), window.padding)
        and window.low == (0, 0)
        and windows.shape[2:] == (x.shape[2] // 2, x.shape[3] // 2)
        and x.dtype.is_floating
        and all(o.strides[3] == 1 for o in (x, *others))
    )


def _spreads_pairs(x: Operand, out: Operand, window: Window) -> bool:
    """Whether this sum is the transpose of that over 2 x 2 windows at stride 2."""
    return (
        window == Window((2, 2), padding=window.padding, input_dilation=(2, 2))
        and window.low == (1, 1)
        and x.shape[2:] == (out.shape[2] // 2, out.shape[3] // 2)
        and x.dtype.is_floating
        and x.strides[3] == out.strides[3] == 1
    )


def _load(x: Operand, every: int) -> str:
    """How a tap reads x's columns `every` apart: see kernels.TAP_LOADS."""
    step = x.strides[3] * every if x.dtype.is_floating else 0  # integers: one kernel is enough
    return {1: "unit", 2: "pairs"}.get(step, "any")


def _lowest(x: Operand) -> str:
    return _LOWEST.get(x.dtype.name, 'float("-inf")')


# ---- tables


def _sizes(x: Operand, windows: Operand, window: Window, every: int) -> dict[str, int]:
    return {
        "rows": windows.shape[2],
        "columns": windows.shape[3],
        "depth": x.shape[1],
        "height": x.shape[2],
        "width": x.shape[3],
        "x_step": x.strides[3] * every,
        "taps_h": window.size[0],
        "taps_w": window.size[1],
        "stride_h": window.stride[0],
        "dilation_h": window.dilation[0],
        "padding_h": window.low[0],
    }


def _masks(columns: list[int], every: int, width: int, count: int, lanes: int) -> list[int]:
    """For each block of `lanes` outputs, the word of each tap: which of them see x there.

    Output o, of `count`, sees columns[j] + o * every under tap j.
    """
    bounds = [(-(c // every), -((c - width) // every)) for c in columns]
    return [
        kernels.mask_word(low - block, min(high, count) - block, lanes)
        for block in range(0, count, lanes)
        for low, high in bounds
    ]


def _taps(
    operands: dict[str, Operand], target: Operand, windows: Operand, window: Window
) -> list[int]:
    """Each tap's first element in a row of x, and of `target` if that is another; the masks."""
    x = operands["x"]
    columns = [j * window.dilation[1] - window.low[1] for j in range(window.size[1])]
    words = [c * x.strides[3] for c in columns]
    if target is not x:
        words += [c * target.strides[3] for c in columns]
    lanes = kernels.lanes_of(*operands.values())
    return words + _masks(columns, window.stride[1], x.shape[3], windows.shape[3], lanes)


def _launch_argmax(
    program: Program,
    body: Callable[[str], str],
    operands: dict[str, Operand],
    target: Operand,
    windows: Operand,
    window: Window,
    extent: int,
    work: int,
) -> None:
    """Launch a kernel that finds each window's maximum in x, and its place in `target`."""
    x, every = operands["x"], window.stride[1]
    load = _load(x, every)
    sizes = _sizes(x, windows, window, every)
    sizes |= {"row_step": target.strides[2], "column_step": target.strides[3] * every}
    tail = _taps(operands, target, windows, window)
    reach = sum((n - 1) * abs(s) for n, s in zip(target.shape[2:], target.strides[2:], strict=True))
    index = "int32" if reach < _INT32_REACH else "int64"  # of elements of a plane of `target`
    constants = {
        "LOWEST": _lowest(x),
        "index_type": f"types.{index}",
        "load_index": f"load_{index}",
        "NOWHERE": _LOWEST[index],
    }
    name = f"{body.__name__}_{load}_{index}"
    _launch(program, name, operands, sizes, tail, body(load), extent, work, constants)


def _launch_pairs(
    program: Program, name: str, operands: dict[str, Operand], windows: Operand, rows: int
) -> None:
    """Launch a kernel over row pairs; `rows` pairs a plane, counting a last row alone as one."""
    whole = next(o for o in operands.values() if o is not windows)
    sizes = {
        "rows": rows,
        "columns": windows.shape[3],
        "depth": whole.shape[1],
        "height": whole.shape[2],
        "width": whole.shape[3],
    }
    extent = whole.shape[0] * whole.shape[1] * rows
    work = 2 * whole.size
    _launch(program, name, operands, sizes, (), kernels.PAIRS[name], extent, work)


def _launch(
    program: Program,
    name: str,
    operands: dict[str, Operand],
    sizes: dict[str, int],
    tail: Sequence[int],
    body: str,
    extent: int,
    work: int,
    constants: dict[str, Any] | None = None,
) -> None:
    if not operands["out"].size:
        return
    constants = {"LANES": kernels.lanes_of(*operands.values())} | (constants or {})
    imports = kernels.imports(operands)
    text = kernel_text.source(operands, sizes, body, imports=imports, constants=constants)
    kinds = "_".join(dict.fromkeys(operand.dtype.name for operand in operands.values()))
    args = (*kernel_text.words(operands), *sizes.values(), *tail)
    kernel = compile_kernel(f"{name}_{kinds}", text)
    program.launch(kernel, args, extent, kernel_text.shares(work, extent))
