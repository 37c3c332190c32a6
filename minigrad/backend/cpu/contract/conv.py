"""Lowering of convolutions to launches: the choice of algorithm, tables and scratch.

The semantics are those of XLA's conv_general_dilated, so a convolution and both of its gradients
are instances of the one function `conv2d`. What runs is chosen by structure:

* forward: row lowering and an offset table (see conv_kernels); backward-data with stride 1, too,
  since the weight packer takes any strides;
* phased: an input with inserted zeros (backward-data of a strided convolution), by phases;
* gradient: a large "kernel" and a small output (backward-weight): see conv_gradient;
* plane: integers, depthwise, empty contractions; a plain loop nest, right for every parameter.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, product, starmap
from operator import mul
from typing import Any

from minigrad.backend.checks import require_convolution
from minigrad.backend.cpu.contract import conv_kernels as kernels
from minigrad.backend.cpu.contract.axis import Axis
from minigrad.backend.cpu.contract.conv_gradient import gradient
from minigrad.backend.cpu.contract.conv_launch import (
    Convolution,
    aligned,
    constant_table,
    dense,
    divide_up,
    is_run,
    launch,
    named,
)
from minigrad.backend.cpu.contract.row_lowering import RowLowering
from minigrad.backend.cpu.kernel_text import shares
from minigrad.backend.cpu.machine import vector_registers
from minigrad.backend.cpu.nests.loops import emit as loop_nest
from minigrad.backend.cpu.vector.builder import lanes
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Pointer, Program
from minigrad.backend.loopnest import copying

_MAX_GROUP_LAUNCHES = 16  # more groups than this are not lowered one by one
_MIN_GROUP_PRODUCTS = 16  # weights of a group; with fewer, tiles would be mostly idle

Term = tuple[int, int, int]  # of an output's sum: input channel, row, column


def conv2d(
    program: Program, x: Operand, w: Operand, out: Operand, *, window: Window, groups: int
) -> None:
    """Append the launches of a cross-correlation of x with w.

    Operands may have any strides. `out` must not overlap x or w; all of it is written, whatever it
    held.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW) -> out (N, O, OH, OW).
    Raises: ValueError if shapes or parameters do not fit together; TypeError if dtypes differ.
    """
    require_convolution(x, w, out, window, groups)
    if out.size == 0:
        return
    rows, columns = map(Axis, x.shape[2:], out.shape[2:], window.axes)
    few = groups <= _MAX_GROUP_LAUNCHES and w.size >= groups * _MIN_GROUP_PRODUCTS
    if not x.dtype.is_floating or 0 in (x.size, w.size) or (groups > 1 and not few):
        _plane(program, Convolution(x, w, out, rows, columns), groups)
        return
    for g in range(groups):
        operands = _part(x, 1, g, groups), _part(w, 0, g, groups), _part(out, 1, g, groups)
        _one_group(program, Convolution(*operands, rows, columns))


def _part(operand: Operand, axis: int, index: int, parts: int) -> Operand:
    """One of `parts` equal slices along an axis."""
    size = operand.shape[axis] // parts
    shape = (*operand.shape[:axis], size, *operand.shape[axis + 1 :])
    return replace(
        operand, shape=shape, offset=operand.offset + index * size * operand.strides[axis]
    )


def _one_group(program: Program, conv: Convolution) -> None:
    """A nonempty floating-point convolution."""
    rows, columns, out = conv.rows, conv.columns, conv.out
    spaced = max(rows.window.input_dilation, columns.window.input_dilation) > 1
    if rows.taps * columns.taps > rows.out * columns.out:
        gradient(program, conv)
    elif spaced and rows.window.stride == columns.window.stride == 1:
        _phased(program, conv)
    elif is_run(out):
        _forward(program, conv)
    else:
        run = dense(program, out)
        _forward(program, replace(conv, out=run))
        loop_nest(program, copying(run, out))


def _pixel_tile(dtype: str, pixels: int, channels: int) -> tuple[int, int]:
    """(rows, vectors) of the tile that wastes least on this many pixels and output channels."""
    many = vector_registers() == 32
    tiles = [(8, 3), (6, 4)] if many else [(6, 2), (4, 3)]
    if channels <= 3:
        tiles.append((3, 7) if many else (3, 4))

    def cost(tile: tuple[int, int]) -> float:
        rows, vectors = tile
        full, left = divmod(divide_up(pixels, lanes(dtype)), vectors)
        # A left-over vector has too few accumulators to hide the latency of a multiply-add: two of
        # them start in each of its four cycles.
        return divide_up(channels, rows) * rows * (full * vectors + max(1.35, 8 / rows) * left)

    return min(tiles, key=cost)


def _pack(program: Program, w: Operand, terms: list[Term], tile_rows: int, packed: Pointer) -> None:
    """Pack the weights of `terms` into panels of `tile_rows` output channels."""
    panels = divide_up(w.shape[0], tile_rows)
    places = [sum(map(mul, term, w.strides[1:])) for term in terms]
    values = {
        "w": w.pointer,
        "out_step": w.strides[0],
        "out_channels": w.shape[0],
        "rows": tile_rows,
        "k_extent": len(terms),
        "places": constant_table(program, places),
        "packed": packed,
    }
    tasks = shares(w.shape[0] * len(terms), panels)
    launch(program, kernels.pack, [w.dtype.name], kernels.PACK, values, panels, tasks)


def _forward(program: Program, conv: Convolution) -> None:
    w, out, item = conv.w, conv.out, conv.item
    channels = w.shape[1]
    tile = _pixel_tile(conv.dtype, conv.rows.out * conv.columns.out, w.shape[0])
    # By rows, so that the terms with a range of filter rows are neighbours.
    taps = product(range(conv.rows.taps), range(conv.columns.taps))
    terms = [(c, row, column) for row, column in taps for c in range(channels)]
    k_extent, panels = len(terms), divide_up(w.shape[0], tile[0])
    packed = Pointer(program.scratch_slot(panels * tile[0] * k_extent * item))
    _pack(program, w, terms, tile[0], packed)
    lowering = RowLowering(program, conv.x, conv.rows, conv.columns, work=conv.work)
    offsets = starmap(lowering.tap_offset, terms)
    ranges = [k_extent // conv.rows.taps * row for row in conv.rows.tap_ranges()]
    values = lowering.values | {
        "k_extent": k_extent,
        "packed": packed,
        "panels": panels,
        "offsets": constant_table(program, offsets),
        "row_ranges": constant_table(program, ranges),
        "out": out.pointer,
        "out_image_bytes": out.strides[0] * item,
        "out_channel": out.strides[1],
        "out_channels": w.shape[0],
    }
    parameters, tasks = (conv.dtype, *tile), lowering.tasks
    launch(program, kernels.forward, parameters, kernels.FORWARD, values, tasks, tasks)


def _phased(program: Program, conv: Convolution) -> None:
    """A convolution of stride 1 with a dilated input, phase by phase on one lowered input."""
    w, out, item = conv.w, conv.out, conv.item
    spacings = conv.rows.window.input_dilation, conv.columns.window.input_dilation
    rows, row_phases = conv.rows.phases()
    columns, column_phases = conv.columns.phases()
    tile = _pixel_tile(conv.dtype, rows.out * columns.out, w.shape[0])
    panels = divide_up(w.shape[0], tile[0])
    work = conv.work // (spacings[0] * spacings[1])
    lowering = RowLowering(program, conv.x, rows, columns, work=work, allow_direct=False)
    row_bytes = panels * tile[0] * item  # of packed weights for each term
    packed = program.scratch_slot(row_bytes * w.shape[1] * conv.rows.taps * conv.columns.taps)
    phases, packed_bytes = [], 0
    for row_taps, column_taps in product(row_phases, column_phases):
        # A tap of w, and the tap of the undilated axis that it is.
        pairs = [(row, column) for column in column_taps for row in row_taps]
        terms = [(c, row, column) for c in range(w.shape[1]) for row, column in pairs]
        offsets = [lowering.tap_offset(c, row, column) for c, (_, row), (_, column) in terms]
        phases += [len(terms), constant_table(program, offsets), packed_bytes]
        if terms:
            places = [(c, row, column) for c, (row, _), (column, _) in terms]
            _pack(program, w, places, tile[0], Pointer(packed, packed_bytes))
        packed_bytes += row_bytes * len(terms)
    product_row = divide_up(lowering.band_rows * columns.out, lanes(conv.dtype))
    product_row *= lanes(conv.dtype)
    product_bytes = aligned(spacings[1] * tile[0] * product_row * item)
    values = lowering.values | {
        "phases": constant_table(program, phases),
        "row_dilation": spacings[0],
        "column_dilation": spacings[1],
        "packed": Pointer(packed),
        "panels": panels,
        "products": Pointer(program.scratch_slot(lowering.tasks * product_bytes)),
        "product_bytes": product_bytes,
        "product_row": product_row,
        "out": out.pointer,
        "out_channels": w.shape[0],
        "out_height": conv.rows.out,
        "out_width": conv.columns.out,
    }
    names = "out_image_bytes out_channel_bytes out_row_bytes out_step_bytes"
    values |= named(names, [step * item for step in out.strides])
    parameters, tasks = (conv.dtype, *tile), lowering.tasks
    launch(program, kernels.phased, parameters, kernels.PHASED, values, tasks, tasks)


def _plane(program: Program, conv: Convolution, groups: int) -> None:
    """Any convolution, straight from the definition."""
    x, w, out, rows, columns = conv.x, conv.w, conv.out, conv.rows, conv.columns
    units = out.shape[0] * out.shape[1]
    tasks = shares(conv.work, units)
    plane_bytes = aligned(rows.out * columns.out * conv.item) + 64
    values: dict[str, Any] = {
        "x": x.pointer,
        "w": w.pointer,
        "out": out.pointer,
        "out_channels": out.shape[1],
        "group_channels": out.shape[1] // groups,
        "channels": w.shape[1],
        "row_meetings": constant_table(program, chain.from_iterable(rows.meetings())),
        "column_meetings": constant_table(program, chain.from_iterable(columns.meetings())),
        "planes": Pointer(program.scratch_slot(tasks * plane_bytes)),
        "plane_bytes": plane_bytes,
        "units": units,
        "tasks": tasks,
    }
    values |= named("rows columns height width", (rows.taps, columns.taps, rows.out, columns.out))
    values |= named("row_stride row_source", rows.window.steps)
    values |= named("column_stride column_source", columns.window.steps)
    values |= named("image_step channel_step row_step column_step", x.strides)
    values |= named("w_out w_channel w_row w_column", w.strides)
    values |= named("out_image out_channel out_row out_column", out.strides)
    launch(program, kernels.plane, (conv.dtype, conv.item), kernels.PLANE, values, tasks, tasks)
