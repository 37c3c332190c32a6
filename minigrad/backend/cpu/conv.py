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

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from typing import Any

from minigrad.backend.cpu import conv_kernels as kernels
from minigrad.backend.cpu.driver import num_threads
from minigrad.backend.cpu.jit import Kernel, compile_kernel
from minigrad.backend.cpu.micro import lanes, vector_bytes, vector_registers
from minigrad.backend.launch import Operand, Pointer, Program, contiguous_strides

_BLOCK_BYTES = 1 << 19  # lowered images a task works on at a time: half of a core's second cache
_SERIAL_WORK = 1 << 14  # multiply-adds or copied elements below which a parallel region costs more
_MAX_GROUP_LAUNCHES = 16
_DOT_CHANNELS = 32  # up to here pixels fill the lanes of a weight gradient better than channels


@dataclass(frozen=True)
class Axis:
    """One spatial axis: out[o] = sum over taps k of in[(o*stride + k*kernel_dilation - low) / d].

    d is the input dilation; positions that are negative, past the end or not divisible are zeros.
    """

    size: int
    taps: int
    out: int
    stride: int = 1
    low: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1

    @property
    def steps(self) -> tuple[int, int]:
        """The steps of (output, input) between neighbouring nonzero contributions of one tap."""
        common = gcd(self.stride, self.input_dilation)
        return self.input_dilation // common, self.stride // common

    def windows(self) -> list[tuple[int, int, int]]:
        """(count, first output, first input) of each tap's nonzero contributions."""
        out_step, in_step = self.steps
        found = []
        for k in range(self.taps):
            start = k * self.kernel_dilation - self.low
            o = next(
                (
                    o
                    for o in range(out_step)
                    if (start + o * self.stride) % self.input_dilation == 0
                ),
                None,
            )
            if o is None:
                found.append((0, 0, 0))
                continue
            first = (start + o * self.stride) // self.input_dilation
            skip = max(0, -(first // in_step))
            o, first = o + skip * out_step, first + skip * in_step
            count = min(-(-(self.out - o) // out_step), -(-(self.size - first) // in_step))
            found.append((count, o, first) if count > 0 else (0, 0, 0))
        return found

    def shifts(self) -> tuple[list[int], list[tuple[int, int]], int]:
        """How rows are lowered: the phases modulo the stride that taps need, each tap's (index of
        its phase, shift in rows), and the largest shift."""
        split = [divmod(k * self.kernel_dilation, self.stride) for k in range(self.taps)]
        phases = sorted({phase for _, phase in split})
        taps = [(phases.index(phase), shift) for shift, phase in split]
        return phases, taps, max((shift for shift, _ in split), default=0)

    def source(self, position: int) -> int | None:
        """The input index at a position of the padded, dilated axis, None for a zero."""
        index, inserted = divmod(position - self.low, self.input_dilation)
        return index if inserted == 0 and 0 <= index < self.size else None

    def swapped(self) -> Axis:
        """The axis with the roles of taps and outputs exchanged."""
        return replace(
            self,
            taps=self.out,
            out=self.taps,
            stride=self.kernel_dilation,
            kernel_dilation=self.stride,
        )

    @property
    def is_identity(self) -> bool:
        return self == Axis(self.size, 1, self.size, kernel_dilation=self.kernel_dilation)


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
    """Append the launches of out = x (*) w, a cross-correlation.

    x is dilated by `input_dilation` (zeros inserted), then padded by (low, high) on each axis
    (negative crops), w is dilated by `kernel_dilation`. Operands may have any strides; `out` must
    not overlap x or w, and is written entirely, whatever it held.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW), out (N, O, OH, OW).
    Raises: ValueError if the shapes or parameters do not fit together; TypeError if the dtypes
        differ.
    """
    _check_operands(x, w, out, groups)
    rows, columns = (
        _axis(i, x, w, out, stride[i], padding[i], input_dilation[i], kernel_dilation[i])
        for i in range(2)
    )
    if out.size == 0:
        return
    few = groups <= _MAX_GROUP_LAUNCHES and w.shape[1] * w.shape[0] >= 16 * groups
    if not x.dtype.is_floating or x.size == 0 or w.size == 0 or (groups > 1 and not few):
        _plane(program, x, w, out, rows, columns, groups)
        return
    for g in range(groups):
        x_g = _part(x, 1, g, groups)
        _conv(program, x_g, _part(w, 0, g, groups), _part(out, 1, g, groups), rows, columns)


def _check_operands(x: Operand, w: Operand, out: Operand, groups: int) -> None:
    if not x.dtype == w.dtype == out.dtype:
        raise TypeError(
            f"conv2d: expected operands of one dtype, got {x.dtype}, {w.dtype} and {out.dtype}. "
            "Cast them first."
        )
    expected = (x.shape[0], x.shape[1] // groups, w.shape[0])
    if (
        groups < 1
        or x.shape[1] % groups
        or w.shape[0] % groups
        or (out.shape[0], w.shape[1], out.shape[1]) != expected
    ):
        raise ValueError(
            f"conv2d: expected x (N, C, H, W), w (O, C/groups, KH, KW) and out (N, O, OH, OW), got "
            f"{x.shape}, {w.shape} and {out.shape} with groups={groups}. "
            "Both channel counts must be multiples of groups."
        )


def _axis(
    i: int,
    x: Operand,
    w: Operand,
    out: Operand,
    stride: int,
    padding: tuple[int, int],
    input_dilation: int,
    kernel_dilation: int,
) -> Axis:
    """The spatial axis i of a convolution, checked against the shape of its output."""
    if min(stride, input_dilation, kernel_dilation) < 1:
        raise ValueError(
            f"conv2d: expected stride and dilations of at least 1, got stride={stride}, "
            f"input_dilation={input_dilation}, kernel_dilation={kernel_dilation}. "
            "Pass 1 for none."
        )
    size, taps = x.shape[2 + i], w.shape[2 + i]
    padded = max(0, (size - 1) * input_dilation + 1) + sum(padding)
    extent = (taps - 1) * kernel_dilation + 1 if taps else 0
    expected = (padded - extent) // stride + 1 if padded >= extent else 0
    if out.shape[2 + i] != expected:
        raise ValueError(
            f"conv2d: expected out of size {expected} on spatial axis {i}, got {out.shape[2 + i]}. "
            "See the output size formula of conv_general_dilated."
        )
    return Axis(size, taps, expected, stride, padding[0], input_dilation, kernel_dilation)


def _part(operand: Operand, axis: int, index: int, parts: int) -> Operand:
    size = operand.shape[axis] // parts
    shape = (*operand.shape[:axis], size, *operand.shape[axis + 1 :])
    offset = operand.offset + index * size * operand.strides[axis]
    return replace(operand, shape=shape, offset=offset)


def _conv(
    program: Program, x: Operand, w: Operand, out: Operand, rows: Axis, columns: Axis
) -> None:
    """A nonempty floating-point convolution of one group."""
    if rows.taps * columns.taps > rows.out * columns.out:
        _gradient(program, x, w, out, rows, columns)
        return
    dilated = max(rows.input_dilation, columns.input_dilation) > 1
    if dilated and rows.stride == columns.stride == 1:
        _phased(program, x, w, out, rows, columns)
    elif _is_run(out):
        _forward(program, x, w, out, rows, columns)
    else:
        slot = program.scratch_slot(out.size * out.dtype.itemsize)
        dense = Operand(slot, out.dtype, out.shape, contiguous_strides(out.shape))
        _forward(program, x, w, dense, rows, columns)
        _copy(program, dense, out)


def _is_run(operand: Operand) -> bool:
    """Whether the pixels of each image and channel are contiguous, in order."""
    height, width = operand.shape[2:]
    by_row, by_column = operand.strides[2:]
    return (width == 1 or by_column == 1) and (height == 1 or by_row == width)


def _compiled(make: Any, *parameters: Any) -> Kernel:
    name = "_".join(["conv", make.__name__, *map(str, parameters)])
    return compile_kernel(name, make(*parameters))


def _arguments(fields: list[str], values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(values[field] for field in fields)


@lru_cache(maxsize=512)
def _words(values: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * max(len(values), 1))(*values)


def _table(program: Program, values: Iterable[int]) -> int:
    """The address of a constant table of int64 words that lives as long as the program."""
    array = _words(tuple(values))
    program.keep.append(array)
    return ctypes.addressof(array)


def _tasks(work: int, units: int) -> int:
    return 1 if work < _SERIAL_WORK else max(1, min(num_threads(), units))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _rounded(nbytes: int) -> int:
    return _ceil(nbytes, 64) * 64


def _copy(program: Program, x: Operand, out: Operand) -> None:
    values: dict[str, Any] = {"x": x.pointer, "out": out.pointer}
    for i in range(4):
        values[f"x{i}"], values[f"out{i}"], values[f"n{i}"] = (
            x.strides[i],
            out.strides[i],
            x.shape[i],
        )
    kernel = _compiled(kernels.copy, x.dtype.name)
    extent = x.shape[0]
    program.launch(kernel, _arguments(kernels.COPY, values), extent, _tasks(x.size, extent))


class _Lowering:
    """The row lowering of a strided image batch: the words of kernels.LOWERING, and tap offsets.

    The scratch holds blocks of "units", a unit being a band of rows of one image. `direct` means
    that x itself already has the lowered form (1x1 filters).
    """

    def __init__(
        self,
        program: Program,
        x: Operand,  # (images, channels, height, width)
        rows: Axis,
        columns: Axis,
        *,
        work: int,
        row_extra_bytes: int = 0,  # other scratch of the kernel for each row of a unit
        allow_direct: bool = True,
    ):
        self.item = item = x.dtype.itemsize
        images, channels = x.shape[:2]
        phases, self.row_shifts, halo = rows.shifts()
        identical = rows.is_identity and columns.is_identity
        self.direct = allow_direct and identical and _is_run(x)
        self.row_length = columns.out
        planes = channels * (1 if self.direct else columns.taps * len(phases))
        row_bytes = planes * columns.out * item + row_extra_bytes
        wanted = _tasks(work, images * rows.out)
        band = rows.out
        while band > 4 and row_bytes * (band + halo) > _BLOCK_BYTES:
            band = _ceil(band, 2)
        self.band_rows = band = max(1, min(band, _ceil(rows.out, _ceil(wanted, images))))
        bands = _ceil(rows.out, band)
        self.units = images * bands
        self.tasks = min(wanted, self.units)
        self.block = 1
        if bands == 1:
            fitting = _BLOCK_BYTES // (row_bytes * (band + halo))
            self.block = max(1, min(fitting, _ceil(images, self.tasks)))
        self.lowered_rows, self.row_phases = band + halo, len(phases)
        self.channel_bytes, self.column_taps = x.strides[1] * item, columns.taps
        # A last vector may spill past its row.
        slot = _rounded(planes * self.lowered_rows * columns.out * item + vector_bytes())
        scratch: Any = 0
        if not self.direct:
            scratch = Pointer(program.scratch_slot(self.tasks * self.block * slot))
        mode = self._mode(x.strides[3], columns.steps)
        self.values: dict[str, Any] = {
            "x": x.pointer,
            "image_bytes": x.strides[0] * item,
            "channel_bytes": self.channel_bytes,
            "channels": channels,
            "column_taps": columns.taps,
            "row_phases": self.row_phases,
            "lowered_rows": self.lowered_rows,
            "halo": halo,
            "row_length": columns.out,
            "band_rows": band,
            "bands": bands,
            "out_rows": rows.out,
            "row_table": _table(program, self._row_table(rows, phases, halo, x.strides[2])),
            "table_rows": rows.out + halo,
            "column_table": _table(program, self._column_table(columns, x.strides[3])),
            "mode": mode,
            "step_bytes": columns.steps[1] * x.strides[3] * item,
            "out_step": columns.steps[0],
            "scratch": scratch,
            "slot_bytes": slot,
            "block": self.block,
            "units": self.units,
            "tasks": self.tasks,
            "lower": 0 if self.direct else _compiled(kernels.lower, x.dtype.name).address,
            "direct": int(self.direct),
        }

    @staticmethod
    def _mode(stride: int, steps: tuple[int, int]) -> int:
        out_step, in_step = steps
        return stride * in_step if out_step == 1 and stride * in_step in (1, 2) else 0

    def _row_table(self, rows: Axis, phases: list[int], halo: int, stride: int) -> Iterable[int]:
        for phase in phases:
            for i in range(rows.out + halo):
                source = rows.source(i * rows.stride + phase)
                yield kernels.NOWHERE if source is None else source * stride * self.item

    def _column_table(self, columns: Axis, stride: int) -> Iterable[int]:
        out_step, _ = columns.steps
        for count, first_out, first_in in columns.windows():
            high = first_out + (count - 1) * out_step + 1 if count else first_out
            yield from (first_out, high, first_in * stride * self.item)

    def tap_offset(self, channel: int, row_tap: int, column_tap: int) -> int:
        """Bytes from a unit's start to the run of pixels that (channel, tap) multiplies."""
        if self.direct:
            return channel * self.channel_bytes
        phase, shift = self.row_shifts[row_tap]
        plane = (channel * self.column_taps + column_tap) * self.row_phases + phase
        return (plane * self.lowered_rows + shift) * self.row_length * self.item


def _pixel_tile(dtype: str, pixels: int, channels: int) -> tuple[int, int]:
    """(rows, vectors) of the tile that wastes least on this many pixels and output channels."""
    tiles = [(8, 3), (6, 4)] if vector_registers() == 32 else [(6, 2), (4, 3)]
    if channels <= 3:
        tiles.append((3, 8) if vector_registers() == 32 else (3, 4))

    def cost(tile: tuple[int, int]) -> float:
        full, left = divmod(_ceil(pixels, lanes(dtype)), tile[1])
        return _ceil(channels, tile[0]) * tile[0] * (full * tile[1] + 1.35 * left)

    return min(tiles, key=cost)


Taps = list[tuple[int, int]]  # (row tap, column tap), in the order of the contraction


def _all_taps(rows: Axis, columns: Axis) -> Taps:
    return [(kh, kw) for kw in range(columns.taps) for kh in range(rows.taps)]


def _pack(program: Program, w: Operand, taps: Taps, tile_rows: int, packed: Pointer) -> None:
    """Pack the weights of `taps` into panels of `tile_rows` output channels."""
    panels = _ceil(w.shape[0], tile_rows)
    values = {
        "w": w.pointer,
        "out_step": w.strides[0],
        "channel_step": w.strides[1],
        "out_channels": w.shape[0],
        "channels": w.shape[1],
        "rows": tile_rows,
        "taps": len(taps),
        "tap_table": _table(program, [kh * w.strides[2] + kw * w.strides[3] for kh, kw in taps]),
        "packed": packed,
    }
    tasks = _tasks(w.shape[0] * w.shape[1] * len(taps), panels)
    kernel = _compiled(kernels.pack, w.dtype.name)
    program.launch(kernel, _arguments(kernels.PACK, values), panels, tasks)


def _work(x: Operand, w: Operand, rows: Axis, columns: Axis) -> int:
    return x.shape[0] * w.size * rows.out * columns.out


def _forward(
    program: Program, x: Operand, w: Operand, out: Operand, rows: Axis, columns: Axis
) -> None:
    dtype, item = x.dtype.name, x.dtype.itemsize
    tile = _pixel_tile(dtype, rows.out * columns.out, w.shape[0])
    taps = _all_taps(rows, columns)
    k_extent, panels = w.shape[1] * len(taps), _ceil(w.shape[0], tile[0])
    packed = Pointer(program.scratch_slot(panels * tile[0] * k_extent * item))
    _pack(program, w, taps, tile[0], packed)
    lowering = _Lowering(program, x, rows, columns, work=_work(x, w, rows, columns))
    offsets = [lowering.tap_offset(c, *tap) for c in range(w.shape[1]) for tap in taps]
    values = lowering.values | {
        "k_extent": k_extent,
        "packed": packed,
        "panels": panels,
        "offsets": _table(program, offsets),
        "out": out.pointer,
        "out_image_bytes": out.strides[0] * item,
        "out_channel": out.strides[1],
        "out_channels": w.shape[0],
    }
    kernel = _compiled(kernels.forward, dtype, *tile)
    arguments = _arguments(kernels.FORWARD, values)
    program.launch(kernel, arguments, lowering.tasks, lowering.tasks)


def _phase_taps(axis: Axis) -> tuple[Axis, list[list[tuple[int, int]]]]:
    """The stride-1 axis that all phases of a dilated one share, and each phase's taps on it.

    Output o = phase + dilation*r takes input r + d from the taps k with
    phase + k*kernel_dilation - low = d*dilation; the shared axis has one tap for each d. A phase's
    taps are (k, tap of the shared axis).
    """
    dilation = axis.input_dilation
    phases: list[list[tuple[int, int]]] = [[] for _ in range(dilation)]
    for phase in range(dilation):
        for k in range(axis.taps):
            d, off = divmod(phase + k * axis.kernel_dilation - axis.low, dilation)
            if off == 0:
                phases[phase].append((k, d))
    shifts = [d for taps in phases for _, d in taps]
    least, most = min(shifts), max(shifts)
    shared = Axis(axis.size, most - least + 1, _ceil(axis.out, dilation), low=-least)
    return shared, [[(k, d - least) for k, d in taps] for taps in phases]


def _phased(
    program: Program, x: Operand, w: Operand, out: Operand, rows: Axis, columns: Axis
) -> None:
    dtype, item = x.dtype.name, x.dtype.itemsize
    shared_rows, row_phases = _phase_taps(rows)
    shared_columns, column_phases = _phase_taps(columns)
    pixels = shared_rows.out * shared_columns.out
    tile = _pixel_tile(dtype, pixels, w.shape[0])
    panels = _ceil(w.shape[0], tile[0])
    work = _work(x, w, shared_rows, shared_columns)
    lowering = _Lowering(program, x, shared_rows, shared_columns, work=work, allow_direct=False)
    packed = Pointer(
        program.scratch_slot(panels * tile[0] * w.shape[1] * item * rows.taps * columns.taps)
    )
    phases, at = [], 0
    for row_taps in row_phases:
        for column_taps in column_phases:
            pairs = [(row, column) for column in column_taps for row in row_taps]
            offsets = [
                lowering.tap_offset(c, row[1], column[1])
                for c in range(w.shape[1])
                for row, column in pairs
            ]
            phases += [len(offsets), _table(program, offsets), at]
            if pairs:
                taps = [(row[0], column[0]) for row, column in pairs]
                _pack(program, w, taps, tile[0], Pointer(packed.slot, at))
            at += panels * tile[0] * len(offsets) * item
    product_row = _ceil(lowering.band_rows * shared_columns.out, lanes(dtype)) * lanes(dtype)
    product_bytes = _rounded(columns.input_dilation * tile[0] * product_row * item)
    values = lowering.values | {
        "phases": _table(program, phases),
        "row_dilation": rows.input_dilation,
        "column_dilation": columns.input_dilation,
        "packed": packed,
        "panels": panels,
        "products": Pointer(program.scratch_slot(lowering.tasks * product_bytes)),
        "product_bytes": product_bytes,
        "product_row": product_row,
        "out": out.pointer,
        "out_image_bytes": out.strides[0] * item,
        "out_channel_bytes": out.strides[1] * item,
        "out_row_bytes": out.strides[2] * item,
        "out_step_bytes": out.strides[3] * item,
        "out_channels": w.shape[0],
        "out_height": rows.out,
        "out_width": columns.out,
    }
    kernel = _compiled(kernels.phased, dtype, *tile)
    arguments = _arguments(kernels.PHASED, values)
    program.launch(kernel, arguments, lowering.tasks, lowering.tasks)


def _dot_tile(channels: int, taps: int) -> tuple[int, int]:
    tiles = [(6, 4), (4, 5)] if vector_registers() == 32 else [(6, 1), (4, 2)]
    return min(tiles, key=lambda t: _ceil(channels, t[0]) * t[0] * _ceil(taps, t[1]) * t[1])


def _tap_tile(dtype: str, channels: int) -> tuple[int, int]:
    tiles = [(6, 4), (9, 2)] if vector_registers() == 32 else [(4, 2)]
    return min(tiles, key=lambda t: _ceil(channels, t[1] * lanes(dtype)) * t[1])


def _gradient(
    program: Program, x: Operand, w: Operand, out: Operand, rows: Axis, columns: Axis
) -> None:
    """Backward-weight as it arrives: x (channels, images, H, W), w (out channels, images, ...).

    The "taps" of the lowering are the outputs of the convolution and the pixels are its taps.
    """
    dtype, item = x.dtype.name, x.dtype.itemsize
    work = _work(x, w, rows, columns)
    if not _is_run(w):
        slot = program.scratch_slot(w.size * item)
        dense = Operand(slot, w.dtype, w.shape, contiguous_strides(w.shape))
        _copy(program, w, dense)
        w = dense
    channels, out_channels = x.shape[0], w.shape[0]
    by_image = replace(
        x,
        shape=(x.shape[1], channels, *x.shape[2:]),
        strides=(x.strides[1], x.strides[0], *x.strides[2:]),
    )
    taps = _all_taps(rows.swapped(), columns.swapped())
    taps = [(kh, kw) for kw in range(columns.out) for kh in range(rows.out)]
    tap_count = channels * len(taps)
    dots = out_channels <= _DOT_CHANNELS
    tile = _dot_tile(out_channels, tap_count) if dots else _tap_tile(dtype, out_channels)
    width = tile[1] * lanes(dtype)
    padded = out_channels if dots else _ceil(out_channels, width) * width
    lowering = _Lowering(
        program,
        by_image,
        rows.swapped(),
        columns.swapped(),
        work=work,
        row_extra_bytes=0 if dots else padded * columns.taps * item,
    )
    offsets = [lowering.tap_offset(c, *tap) for c in range(channels) for tap in taps]
    offsets += [0] * (max(tile) - 1)  # a last tile reads this many entries
    partial_bytes = _rounded(tap_count * padded * item) + 64
    partials = Pointer(program.scratch_slot(lowering.tasks * partial_bytes))
    transposed: Any = 0
    transposed_bytes = 0
    if not dots:
        pixels = lowering.block * lowering.band_rows * columns.taps
        transposed_bytes = _rounded((pixels + lanes(dtype)) * padded * item)
        transposed = Pointer(program.scratch_slot(lowering.tasks * transposed_bytes))
    values = lowering.values | {
        "taps": tap_count,
        "tap_offsets": _table(program, offsets),
        "d": w.pointer,
        "d_image_bytes": w.strides[1] * item,
        "d_channel_bytes": w.strides[0] * item,
        "out_channels": out_channels,
        "padded_channels": padded,
        "transposed": transposed,
        "transposed_bytes": transposed_bytes,
        "partials": partials,
        "partial_bytes": partial_bytes,
    }
    make = kernels.gradient_by_dots if dots else kernels.gradient_by_taps
    arguments = _arguments(kernels.GRADIENT, values)
    program.launch(_compiled(make, dtype, *tile), arguments, lowering.tasks, lowering.tasks)
    totals = {
        "partials": partials,
        "partial_bytes": partial_bytes,
        "parts": lowering.tasks,
        "tap_step": 1 if dots else padded,
        "channel_step": tap_count if dots else 1,
        "channels": channels,
        "column_taps": columns.out,
        "row_taps": rows.out,
        "out": out.pointer,
        "out_channel": out.strides[1],
        "out_in_channel": out.strides[0],
        "out_row": out.strides[2],
        "out_column": out.strides[3],
        "out_channels": out_channels,
    }
    blocks = _ceil(out_channels, 16)
    tasks = _tasks(tap_count * out_channels, blocks)
    kernel = _compiled(kernels.reduce, dtype)
    program.launch(kernel, _arguments(kernels.REDUCE, totals), blocks, tasks)


def _plane(
    program: Program,
    x: Operand,
    w: Operand,
    out: Operand,
    rows: Axis,
    columns: Axis,
    groups: int,
) -> None:
    units = out.shape[0] * out.shape[1]
    tasks = _tasks(x.shape[0] * w.size * rows.out * columns.out, units)
    plane_bytes = _rounded(rows.out * columns.out * out.dtype.itemsize) + 64
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
        "row_windows": _table(program, (n for window in rows.windows() for n in window)),
        "row_stride": rows.steps[0],
        "row_source": rows.steps[1],
        "column_windows": _table(program, (n for window in columns.windows() for n in window)),
        "column_stride": columns.steps[0],
        "column_source": columns.steps[1],
        "planes": Pointer(program.scratch_slot(tasks * plane_bytes)),
        "plane_bytes": plane_bytes,
        "units": units,
        "tasks": tasks,
    }
    for name, steps in (
        ("image_step channel_step row_step column_step", x.strides),
        ("w_out w_channel w_row w_column", w.strides),
        ("out_image out_channel out_row out_column", out.strides),
    ):
        values |= dict(zip(name.split(), steps, strict=True))
    kernel = _compiled(kernels.plane, x.dtype.name, x.dtype.itemsize)
    program.launch(kernel, _arguments(kernels.PLANE, values), tasks, tasks)
