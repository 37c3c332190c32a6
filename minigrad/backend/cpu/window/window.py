"""Windows over the last two axes of (A, B, H, W): sums, maxima and what maxima select.

Column o of the output sees, under tap j of the window, column o * stride + j * dilation - padding
of x; rows likewise. Negative padding crops. The output's shape is given, by its operand.

[Note: ties] The maximum of a window is its first one in row-major order; the first NaN beats every
number. `window_select` and `window_scatter` find it again from x, so no index array exists.
Padding is never selected: a window without a single element of x has the lowest value of the type
(-inf) as its maximum, selects 0 and scatters nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

from minigrad.backend.checks import require_numeric
from minigrad.backend.cpu import kernel_text
from minigrad.backend.cpu.runtime.jit import compile_kernel
from minigrad.backend.cpu.window import window_kernels as kernels
from minigrad.backend.launch import Operand, Program

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # (low, high) of rows, then of columns

_INT32_REACH = 2**31  # planes that span fewer elements are indexed by int32
_LOWEST = {"uint8": "0", "int32": "-(2**31)", "int64": "-(2**63)"}


def window_sum(
    program: Program,
    x: Operand,
    out: Operand,
    *,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    input_dilation: Pair,
) -> None:
    """Sum every window of x, after spacing x's elements `input_dilation` apart and padding with 0.

    Its adjoint is itself with stride and input_dilation exchanged and the low padding
    dilation * (size - 1) - padding.
    Shapes: x (A, B, H, W) -> out (A, B, OH, OW), one numeric dtype.
    """
    require_numeric("window_sum", x, out)
    operands = {"x": x, "out": out}
    if input_dilation == (1, 1) and _in_pairs(x, out, size, stride, padding, dilation, out):
        _launch_pairs(program, "pair_sum", operands, out, out.shape[2])
        return
    if _spreads_pairs(x, out, size, stride, padding, dilation, input_dilation):
        _launch_pairs(program, "pair_spread", operands, x, -(-out.shape[2] // 2))
        return
    # Columns of the output `phases` apart see x's columns `every` apart through the same taps.
    shared = gcd(stride[1], input_dilation[1])
    phases, every = input_dilation[1] // shared, stride[1] // shared
    firsts, ends, masks = [], [], []
    for phase in range(phases):
        spaced = [phase * stride[1] + j * dilation[1] - padding[1][0] for j in range(size[1])]
        columns = [c // input_dilation[1] for c in spaced if c % input_dilation[1] == 0]
        firsts += [c * x.strides[3] for c in columns]
        ends.append(len(firsts))
        count = -(-(out.shape[3] - phase) // phases)
        masks += _masks(columns, every, x.shape[3], count, kernels.lanes_of(x, out))
    load = _load(x, every)
    sizes = _sizes(x, out, size, stride, padding, dilation, every) | {
        "taps_w": ends[-1],
        "spacing_h": input_dilation[0],
        "phases": phases,
    }
    rows = prod(out.shape[:3])
    work = out.size * prod(size)
    body, tail = kernels.window_sum(load), (*firsts, *ends, *masks)
    _launch(program, f"window_sum_{load}", operands, sizes, tail, body, rows, work)


def window_max(
    program: Program,
    x: Operand,
    out: Operand,
    *,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> None:
    """The maximum of every window of x; NaN propagates. See [Note: ties].

    Shapes: x (A, B, H, W) -> out (A, B, OH, OW), one numeric dtype.
    """
    require_numeric("window_max", x, out)
    operands = {"x": x, "out": out}
    if _in_pairs(x, out, size, stride, padding, dilation, out):
        _launch_pairs(program, "pair_max", operands, out, out.shape[2])
        return
    load = _load(x, stride[1])
    sizes = _sizes(x, out, size, stride, padding, dilation, stride[1])
    taps = _taps(operands, x, out, size, stride, padding, dilation)
    rows, work = prod(out.shape[:3]), out.size * prod(size)
    lowest = {"LOWEST": _LOWEST.get(x.dtype.name, 'float("-inf")')}
    body = kernels.window_max(load)
    _launch(program, f"window_max_{load}", operands, sizes, taps, body, rows, work, lowest)


def window_select(
    program: Program,
    x: Operand,
    u: Operand,
    out: Operand,
    *,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> None:
    """The value of u at the maximum of every window of x. See [Note: ties].

    Shapes: x, u (A, B, H, W) -> out (A, B, OH, OW). u and out share a dtype; x's may differ.
    """
    require_numeric("window_select", x)
    require_numeric("window_select", u, out)
    operands = {"x": x, "u": u, "out": out}
    if u.dtype == x.dtype and _in_pairs(x, out, size, stride, padding, dilation, u, out):
        _launch_pairs(program, "pair_select", operands, out, out.shape[2])
        return
    load = _load(x, stride[1])
    sizes = _sizes(x, out, size, stride, padding, dilation, stride[1])
    sizes |= {"row_step": u.strides[2], "column_step": u.strides[3] * stride[1]}
    taps = _taps(operands, u, out, size, stride, padding, dilation)
    name, constants = _index(x, u)
    rows, work = prod(out.shape[:3]), 2 * out.size * prod(size)
    body = kernels.window_select(load)
    name = f"window_select_{load}_{name}"
    _launch(program, name, operands, sizes, taps, body, rows, work, constants)


def window_scatter(
    program: Program,
    x: Operand,
    g: Operand,
    out: Operand,
    *,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> None:
    """Add each g at the maximum of its window of x, to zeros: the adjoint of `window_select`.

    Windows that overlap add up in row-major order, so the result does not depend on the threads.
    See [Note: ties].
    Shapes: x (A, B, H, W), g (A, B, OH, OW) -> out (A, B, H, W). g and out share a dtype.
    """
    require_numeric("window_scatter", x)
    require_numeric("window_scatter", g, out)
    operands = {"x": x, "g": g, "out": out}
    if g.dtype == x.dtype and _in_pairs(x, g, size, stride, padding, dilation, g, out):
        _launch_pairs(program, "pair_scatter", operands, g, -(-out.shape[2] // 2))
        return
    load = _load(x, stride[1])
    sizes = _sizes(x, g, size, stride, padding, dilation, stride[1])
    sizes |= {"row_step": out.strides[2], "column_step": out.strides[3] * stride[1]}
    taps = _taps(operands, out, g, size, stride, padding, dilation)
    name, constants = _index(x, out)
    planes = out.shape[0] * out.shape[1]
    work = out.size + 2 * g.size * prod(size)
    body = kernels.window_scatter(load)
    name = f"window_scatter_{load}_{name}"
    _launch(program, name, operands, sizes, taps, body, planes, work, constants)


# ---- structure: which kernel serves


def _in_pairs(
    x: Operand,
    windows: Operand,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    *others: Operand,
) -> bool:
    """Whether the kernels for 2 x 2 windows at stride 2 of dense rows of floats apply."""
    return (
        size == stride == (2, 2)
        and dilation == (1, 1)
        and (padding[0][0], padding[1][0]) == (0, 0)
        and windows.shape[2:] == (x.shape[2] // 2, x.shape[3] // 2)
        and x.dtype.is_floating
        and all(o.strides[3] == 1 for o in (x, *others))
    )


def _spreads_pairs(
    x: Operand,
    out: Operand,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    input_dilation: Pair,
) -> bool:
    """Whether this sum is the transpose of that over 2 x 2 windows at stride 2."""
    return (
        size == input_dilation == (2, 2)
        and stride == dilation == (1, 1)
        and (padding[0][0], padding[1][0]) == (1, 1)
        and x.shape[2:] == (out.shape[2] // 2, out.shape[3] // 2)
        and x.dtype.is_floating
        and x.strides[3] == out.strides[3] == 1
    )


def _load(x: Operand, every: int) -> str:
    """How a tap reads x's columns `every` apart: see kernels.TAP_LOADS."""
    step = x.strides[3] * every if x.dtype.is_floating else 0  # integers: one kernel is enough
    return {1: "unit", 2: "pairs"}.get(step, "any")


def _index(x: Operand, target: Operand) -> tuple[str, dict[str, str]]:
    """The index type for elements of a plane of `target`, and the constants of an argmax kernel."""
    reach = sum((n - 1) * abs(s) for n, s in zip(target.shape[2:], target.strides[2:], strict=True))
    index = "int32" if reach < _INT32_REACH else "int64"
    lowest = _LOWEST.get(x.dtype.name, 'float("-inf")')
    return index, {
        "LOWEST": lowest,
        "index_type": f"types.{index}",
        "load_index": f"load_{index}",
        "NOWHERE": _LOWEST[index],
    }


# ---- tables


def _sizes(
    x: Operand,
    windows: Operand,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    every: int,
) -> dict[str, int]:
    return {
        "rows": windows.shape[2],
        "columns": windows.shape[3],
        "depth": x.shape[1],
        "height": x.shape[2],
        "width": x.shape[3],
        "x_step": x.strides[3] * every,
        "taps_h": size[0],
        "taps_w": size[1],
        "stride_h": stride[0],
        "dilation_h": dilation[0],
        "padding_h": padding[0][0],
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
    operands: dict[str, Operand],
    target: Operand,
    windows: Operand,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> list[int]:
    """Each tap's first element in a row of x, and of `target` if that is another; the masks."""
    x = operands["x"]
    columns = [j * dilation[1] - padding[1][0] for j in range(size[1])]
    words = [c * x.strides[3] for c in columns]
    if target is not x:
        words += [c * target.strides[3] for c in columns]
    lanes = kernels.lanes_of(*operands.values())
    return words + _masks(columns, stride[1], x.shape[3], windows.shape[3], lanes)


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
