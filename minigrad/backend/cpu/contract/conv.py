"""Lowering of convolutions to launches: the choice of algorithm, tables and scratch.

The semantics are those of XLA's conv_general_dilated, so a convolution and both of its gradients
are instances of the one function `conv2d`. What runs is chosen by structure:

* forward: row lowering and an offset table (see conv_kernels); backward-data with stride 1, too,
  since the weight packer takes any strides;
* phased: an input with inserted zeros (backward-data of a strided convolution), by phases;
* gradient: a large "kernel" and a small output (backward-weight): a sum over images and pixels;
* plane: integers, depthwise, empty contractions; a plain loop nest, right for every parameter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, product, starmap
from operator import mul
from typing import Any

from minigrad.backend.checks import require_convolution
from minigrad.backend.cpu import machine
from minigrad.backend.cpu.contract import conv_kernels as kernels
from minigrad.backend.cpu.contract.axis import Axis
from minigrad.backend.cpu.contract.row_lowering import (
    RowLowering,
    aligned,
    compiled,
    constant_table,
    divide_up,
    is_run,
)
from minigrad.backend.cpu.kernel_text import shares
from minigrad.backend.cpu.machine import vector_registers
from minigrad.backend.cpu.vector.builder import lanes
from minigrad.backend.launch import Operand, Pointer, Program, contiguous_strides

_MAX_GROUP_LAUNCHES = 16  # groups lowered one by one, if each has enough channels for a tile
_MIN_GROUP_PRODUCTS = 16
_DOT_CHANNELS = 32  # up to here pixels fill the lanes of a weight gradient better than channels

Tap = tuple[int, int]  # row, column
Product = tuple[int, int, int]  # input channel, row, column


@dataclass(frozen=True)
class Convolution:
    """A convolution of one group with checked shapes."""

    x: Operand  # (N, C, H, W)
    w: Operand  # (O, C, KH, KW)
    out: Operand  # (N, O, OH, OW)
    rows: Axis
    columns: Axis

    @property
    def dtype(self) -> str:
        """The name of the operands' common dtype."""
        return self.x.dtype.name

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return self.x.dtype.itemsize

    @property
    def taps(self) -> list[Tap]:
        """The filter's taps in the order in which they are summed."""
        return [
            (row, column) for column in range(self.columns.taps) for row in range(self.rows.taps)
        ]

    @property
    def work(self) -> int:
        """Multiply-adds, inserted zeros included."""
        return self.x.shape[0] * self.w.size * self.rows.out * self.columns.out


def conv2d(
    program: Program,
    x: Operand,
    w: Operand,
    out: Operand,
    *,
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    input_dilation: tuple[int, int],
    kernel_dilation: tuple[int, int],
    groups: int,
) -> None:
    """Append the launches of a cross-correlation of x with w.

    x is dilated by `input_dilation` (zeros inserted), then padded by (low, high) on each axis
    (negative crops); w is dilated by `kernel_dilation`. Operands may have any strides. `out` must
    not overlap x or w; all of it is written, whatever it held.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW) -> out (N, O, OH, OW).
    Raises: ValueError if shapes or parameters do not fit together; TypeError if dtypes differ.
    """
    require_convolution(x, w, out, groups)
    parameters = zip(stride, padding, input_dilation, kernel_dilation, strict=True)
    rows, columns = (
        _axis(sizes, *values)
        for sizes, values in zip(
            zip(x.shape[2:], w.shape[2:], out.shape[2:], strict=True), parameters, strict=True
        )
    )
    if out.size == 0:
        return
    few = groups <= _MAX_GROUP_LAUNCHES and w.size >= groups * _MIN_GROUP_PRODUCTS
    if not x.dtype.is_floating or 0 in (x.size, w.size) or (groups > 1 and not few):
        _plane(program, Convolution(x, w, out, rows, columns), groups)
        return
    for g in range(groups):
        operands = _part(x, 1, g, groups), _part(w, 0, g, groups), _part(out, 1, g, groups)
        _one_group(program, Convolution(*operands, rows, columns))


def _axis(
    sizes: tuple[int, int, int],
    stride: int,
    padding: tuple[int, int],
    input_dilation: int,
    kernel_dilation: int,
) -> Axis:
    """The axis of (input, filter, output) `sizes`, with the output's size checked."""
    if min(stride, input_dilation, kernel_dilation) < 1:
        raise ValueError(
            f"conv2d: expected stride and dilations of at least 1, got stride={stride}, "
            f"input_dilation={input_dilation}, kernel_dilation={kernel_dilation}. "
            "Pass 1 for none."
        )
    size, taps, out = sizes
    padded = max(0, (size - 1) * input_dilation + 1) + sum(padding)
    extent = (taps - 1) * kernel_dilation + 1 if taps else 0
    expected = (padded - extent) // stride + 1 if padded >= extent else 0
    if out != expected:
        raise ValueError(
            f"conv2d: expected an output of size {expected} for an input of size {size}, {taps} "
            f"taps and padding {padding}, got {out}. It is (padded - extent) // stride + 1."
        )
    return Axis(size, taps, out, stride, padding[0], input_dilation, kernel_dilation)


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
    if rows.taps * columns.taps > rows.out * columns.out:
        _gradient(program, conv)
    elif max(rows.input_dilation, columns.input_dilation) > 1 == rows.stride == columns.stride:
        _phased(program, conv)
    elif is_run(out):
        _forward(program, conv)
    else:
        dense = _dense(program, out)
        _forward(program, replace(conv, out=dense))
        _copy(program, dense, out)


def _launch(
    program: Program,
    make: Callable[..., str],
    parameters: Iterable[Any],
    fields: Iterable[str],
    values: Mapping[str, Any],
    extent: int,
    tasks: int,
) -> None:
    """Launch the kernel `make(*parameters)` with its table's fields filled from `values`."""
    words = tuple(values[field] for field in fields)
    program.launch(compiled(make, *parameters), words, extent, tasks)


def _dense(program: Program, like: Operand) -> Operand:
    """Row-major scratch of the shape and dtype of `like`."""
    slot = program.scratch_slot(like.size * like.dtype.itemsize)
    return Operand(slot, like.dtype, like.shape, contiguous_strides(like.shape))


def _strides(fields: str, strides: Iterable[int]) -> dict[str, int]:
    return dict(zip(fields.split(), strides, strict=True))


def _copy(program: Program, x: Operand, out: Operand) -> None:
    extent, *inner = x.shape
    values = {"x": x.pointer, "out": out.pointer, **_strides("n1 n2 n3", inner)}
    values |= _strides("x0 x1 x2 x3", x.strides) | _strides("out0 out1 out2 out3", out.strides)
    tasks = shares(x.size, extent)
    _launch(program, kernels.copy, [x.dtype.name], kernels.COPY, values, extent, tasks)


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


def _pack(
    program: Program, w: Operand, products: list[Product], tile_rows: int, packed: Pointer
) -> None:
    """Pack the weights of `products` into panels of `tile_rows` output channels."""
    panels = divide_up(w.shape[0], tile_rows)
    places = [sum(map(mul, place, w.strides[1:])) for place in products]
    values = {
        "w": w.pointer,
        "out_step": w.strides[0],
        "out_channels": w.shape[0],
        "rows": tile_rows,
        "k_extent": len(products),
        "places": constant_table(program, places),
        "packed": packed,
    }
    tasks = shares(w.shape[0] * len(products), panels)
    _launch(program, kernels.pack, [w.dtype.name], kernels.PACK, values, panels, tasks)


def _forward(program: Program, conv: Convolution) -> None:
    w, out, item = conv.w, conv.out, conv.item
    channels = w.shape[1]
    tile = _pixel_tile(conv.dtype, conv.rows.out * conv.columns.out, w.shape[0])
    # By rows, so that the products with a range of filter rows are neighbours.
    taps = product(range(conv.rows.taps), range(conv.columns.taps))
    products = [(c, row, column) for row, column in taps for c in range(channels)]
    k_extent, panels = len(products), divide_up(w.shape[0], tile[0])
    packed = Pointer(program.scratch_slot(panels * tile[0] * k_extent * item))
    _pack(program, w, products, tile[0], packed)
    lowering = RowLowering(program, conv.x, conv.rows, conv.columns, work=conv.work)
    offsets = list(starmap(lowering.tap_offset, products))
    windows = [k_extent // conv.rows.taps * row for row in conv.rows.tap_windows()]
    values = lowering.values | {
        "k_extent": k_extent,
        "packed": packed,
        "panels": panels,
        "offsets": constant_table(program, offsets),
        "row_windows": constant_table(program, windows),
        "out": out.pointer,
        "out_image_bytes": out.strides[0] * item,
        "out_channel": out.strides[1],
        "out_channels": w.shape[0],
    }
    parameters, tasks = (conv.dtype, *tile), lowering.tasks
    _launch(program, kernels.forward, parameters, kernels.FORWARD, values, tasks, tasks)


def _phased(program: Program, conv: Convolution) -> None:
    """A convolution of stride 1 with a dilated input, phase by phase on one lowered input."""
    w, out, item = conv.w, conv.out, conv.item
    channels = w.shape[1]
    rows, row_phases = conv.rows.phases()
    columns, column_phases = conv.columns.phases()
    tile = _pixel_tile(conv.dtype, rows.out * columns.out, w.shape[0])
    panels = divide_up(w.shape[0], tile[0])
    work = conv.work // (conv.rows.input_dilation * conv.columns.input_dilation)
    lowering = RowLowering(program, conv.x, rows, columns, work=work, allow_direct=False)
    row_bytes = panels * tile[0] * item  # of packed weights for each product
    packed = program.scratch_slot(row_bytes * channels * len(conv.taps))
    phases, packed_bytes = [], 0
    for row_taps in row_phases:
        for column_taps in column_phases:
            pairs = [(row, column) for column in column_taps for row in row_taps]
            offsets = [
                lowering.tap_offset(c, row, column)
                for c in range(channels)
                for (_, row), (_, column) in pairs
            ]
            phases += [len(offsets), constant_table(program, offsets), packed_bytes]
            if pairs:
                products = [
                    (c, row, column) for c in range(channels) for (row, _), (column, _) in pairs
                ]
                _pack(program, w, products, tile[0], Pointer(packed, packed_bytes))
            packed_bytes += row_bytes * len(offsets)
    product_row = divide_up(lowering.band_rows * columns.out, lanes(conv.dtype))
    product_row *= lanes(conv.dtype)
    product_bytes = aligned(conv.columns.input_dilation * tile[0] * product_row * item)
    values = lowering.values | {
        "phases": constant_table(program, phases),
        "row_dilation": conv.rows.input_dilation,
        "column_dilation": conv.columns.input_dilation,
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
    values |= _strides(names, [step * item for step in out.strides])
    parameters, tasks = (conv.dtype, *tile), lowering.tasks
    _launch(program, kernels.phased, parameters, kernels.PHASED, values, tasks, tasks)


def _dot_tile(channels: int, taps: int) -> tuple[int, int]:
    """(channels, taps) of the tile that wastes least."""
    tiles = [(6, 4), (4, 5)] if vector_registers() == 32 else [(4, 3), (3, 4)]
    return min(tiles, key=lambda t: divide_up(channels, t[0]) * t[0] * divide_up(taps, t[1]) * t[1])


def _dot_images(rows: int, pixels_bytes: int) -> int:
    """Images of a block: what a tile's rows take of `d` stays in the first cache for all taps."""
    # With one image a tile's horizontal sums cost several percent of it.
    return max(2, machine.first_cache().nbytes // 2 // (rows * pixels_bytes))


def _tap_tile(dtype: str, channels: int) -> tuple[int, int]:
    """(taps, vectors of channels) of the tile with the fewest idle lanes."""
    tiles = [(6, 4), (9, 2)] if vector_registers() == 32 else [(6, 2)]
    return min(tiles, key=lambda t: divide_up(channels, t[1] * lanes(dtype)) * t[1])


def _gradient(program: Program, conv: Convolution) -> None:
    """Backward-weight as it arrives: x (channels, images, H, W), w (out channels, images, ...).

    The sum runs over images and pixels, which are the convolution's channels and taps; the taps of
    the lowered images are its outputs.
    """
    item, out = conv.item, conv.out
    d = conv.w
    if not is_run(d):
        d = _dense(program, conv.w)
        _copy(program, conv.w, d)
    channels, out_channels = conv.x.shape[0], d.shape[0]
    images = replace(
        conv.x,
        shape=(conv.x.shape[1], channels, *conv.x.shape[2:]),
        strides=(conv.x.strides[1], conv.x.strides[0], *conv.x.strides[2:]),
    )
    rows, columns = conv.rows.swapped(), conv.columns.swapped()
    filter_taps = replace(conv, rows=rows, columns=columns).taps
    taps = channels * len(filter_taps)
    dots = out_channels <= _DOT_CHANNELS
    tile = _dot_tile(out_channels, taps) if dots else _tap_tile(conv.dtype, out_channels)
    width = 1 if dots else tile[1] * lanes(conv.dtype)
    padded = divide_up(out_channels, width) * width
    lowering = RowLowering(
        program,
        images,
        rows,
        columns,
        work=conv.work,
        other_row_bytes=0 if dots else padded * columns.out * item,
        most_images=_dot_images(tile[0], rows.out * columns.out * item) if dots else sys.maxsize,
    )
    tasks = lowering.tasks
    offsets = [lowering.tap_offset(c, *tap) for c in range(channels) for tap in filter_taps]
    offsets += [0] * (max(tile) - 1)  # the last tile reads this far, at most
    # Apart by more than a cache line, so that tasks do not write to a common one.
    partial_bytes = aligned(taps * padded * item) + 64
    block_pixels = lowering.block * lowering.band_rows * columns.out
    transposed_bytes = 0 if dots else aligned((block_pixels + lanes(conv.dtype)) * padded * item)
    values = lowering.values | {
        "taps": taps,
        "tap_offsets": constant_table(program, offsets),
        "d": d.pointer,
        "d_image_bytes": d.strides[1] * item,
        "d_channel_bytes": d.strides[0] * item,
        "out_channels": out_channels,
        "padded_channels": padded,
        "transposed": 0 if dots else Pointer(program.scratch_slot(tasks * transposed_bytes)),
        "transposed_bytes": transposed_bytes,
        "partials": Pointer(program.scratch_slot(tasks * partial_bytes)),
        "partial_bytes": partial_bytes,
        "parts": tasks,
        "tap_step": 1 if dots else padded,
        "channel_step": taps if dots else 1,
        "row_taps": conv.rows.out,
        "out": out.pointer,
    }
    values |= _strides("out_in_channel out_channel out_row out_column", out.strides)
    make = kernels.gradient_by_dots if dots else kernels.gradient_by_taps
    _launch(program, make, (conv.dtype, *tile), kernels.GRADIENT, values, tasks, tasks)
    blocks = divide_up(out_channels, kernels.REDUCE_BLOCK)
    tasks = shares(taps * out_channels, blocks)
    _launch(program, kernels.reduce, [conv.dtype], kernels.REDUCE, values, blocks, tasks)


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
        "rows": rows.taps,
        "columns": columns.taps,
        "height": rows.out,
        "width": columns.out,
        "row_windows": constant_table(program, chain.from_iterable(rows.windows())),
        "row_stride": rows.steps[0],
        "row_source": rows.steps[1],
        "column_windows": constant_table(program, chain.from_iterable(columns.windows())),
        "column_stride": columns.steps[0],
        "column_source": columns.steps[1],
        "planes": Pointer(program.scratch_slot(tasks * plane_bytes)),
        "plane_bytes": plane_bytes,
        "units": units,
        "tasks": tasks,
    }
    values |= _strides("image_step channel_step row_step column_step", x.strides)
    values |= _strides("w_out w_channel w_row w_column", w.strides)
    values |= _strides("out_image out_channel out_row out_column", out.strides)
    _launch(program, kernels.plane, (conv.dtype, conv.item), kernels.PLANE, values, tasks, tasks)
