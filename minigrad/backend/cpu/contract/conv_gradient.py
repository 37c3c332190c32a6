"""Lowering of the gradient of a convolution's weights: a large "kernel" and a small output.

It arrives as x (channels, images, H, W) and w (out channels, images, OH, OW): the sum runs over
images and pixels, which are the convolution's channels and taps, and the taps of the lowered images
are its outputs. Each task sums its share of the images, and a last kernel adds up the shares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from minigrad.backend.cpu import machine
from minigrad.backend.cpu.contract import conv_gradient_kernels as kernels
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
from minigrad.backend.cpu.nests.loops import emit as loop_nest
from minigrad.backend.cpu.vector.builder import lanes
from minigrad.backend.launch import Operand, Pointer, Program
from minigrad.backend.loopnest import copying

_DOT_CHANNELS = 32  # with more output channels than these, they fill the lanes, else pixels do


@dataclass(frozen=True)
class _Form:
    """Whether pixels fill the lanes (`dots`) or output channels do, and the tile."""

    dots: bool
    tile: tuple[int, int]
    padded_channels: int  # output channels and what fills up the last tile


def _form(dtype: str, channels: int, taps: int) -> _Form:
    """The form for so many output channels and taps; its tile has the fewest idle places."""
    many = machine.vector_registers() == 32
    if channels <= _DOT_CHANNELS:
        tiles = [(6, 4), (4, 5)] if many else [(4, 3), (3, 4)]  # channels, taps

        def places(tile: tuple[int, int]) -> int:
            return divide_up(channels, tile[0]) * tile[0] * divide_up(taps, tile[1]) * tile[1]

        return _Form(True, min(tiles, key=places), channels)
    tiles = [(6, 4), (9, 2)] if many else [(6, 2)]  # taps, vectors of channels

    def padded(tile: tuple[int, int]) -> int:
        return divide_up(channels, tile[1] * lanes(dtype)) * tile[1]

    tile = min(tiles, key=padded)
    return _Form(False, tile, padded(tile) * lanes(dtype))


def _dot_images(rows: int, pixels_bytes: int) -> int:
    """Images of a block: what a tile's rows take of `d` stays in the first cache for all taps."""
    # With one image a tile's horizontal sums cost several percent of it.
    return max(2, machine.first_cache().nbytes // 2 // (rows * pixels_bytes))


def gradient(program: Program, conv: Convolution) -> None:
    """Append the launches of a weights' gradient."""
    x, d, item = conv.x, conv.w, conv.item
    if not is_run(d):
        d = dense(program, conv.w)
        loop_nest(program, copying(conv.w, d))
    rows, columns = conv.rows.exchanged(), conv.columns.exchanged()
    taps = list(product(range(x.shape[0]), range(columns.taps), range(rows.taps)))
    form = _form(conv.dtype, d.shape[0], len(taps))
    limits: dict[str, Any]
    if form.dots:
        limits = {"most_images": _dot_images(form.tile[0], rows.out * columns.out * item)}
    else:
        limits = {"other_row_bytes": form.padded_channels * columns.out * item}
    images = replace(
        x,
        shape=(x.shape[1], x.shape[0], *x.shape[2:]),
        strides=(x.strides[1], x.strides[0], *x.strides[2:]),
    )
    lowering = RowLowering(program, images, rows, columns, work=conv.work, **limits)
    offsets = [lowering.tap_offset(c, row, column) for c, column, row in taps]
    offsets += [0] * (max(form.tile) - 1)  # the last tile reads this far, at most
    _launch(program, conv, d, form, lowering, offsets, len(taps))


def _launch(
    program: Program,
    conv: Convolution,
    d: Operand,
    form: _Form,
    lowering: RowLowering,
    offsets: list[int],
    taps: int,
) -> None:
    item, out, tasks = conv.item, conv.out, lowering.tasks
    channels, padded = d.shape[0], form.padded_channels
    # Apart by more than a cache line, so that tasks do not write to a common one.
    partial_bytes = aligned(taps * padded * item) + 64
    transposed, transposed_bytes = 0, 0
    if not form.dots:
        pixels = lowering.block * lowering.band_rows * lowering.columns.out + lanes(conv.dtype)
        transposed_bytes = aligned(pixels * padded * item)
        transposed = Pointer(program.scratch_slot(tasks * transposed_bytes))
    values = lowering.values | {
        "taps": taps,
        "tap_offsets": constant_table(program, offsets),
        "d": d.pointer,
        "d_image_bytes": d.strides[1] * item,
        "d_channel_bytes": d.strides[0] * item,
        "out_channels": channels,
        "padded_channels": padded,
        "transposed": transposed,
        "transposed_bytes": transposed_bytes,
        "partials": Pointer(program.scratch_slot(tasks * partial_bytes)),
        "partial_bytes": partial_bytes,
        "parts": tasks,
        "tap_step": 1 if form.dots else padded,
        "channel_step": taps if form.dots else 1,
        "row_taps": conv.rows.out,
        "out": out.pointer,
    }
    values |= named("out_in_channel out_channel out_row out_column", out.strides)
    make = kernels.gradient_by_dots if form.dots else kernels.gradient_by_taps
    launch(program, make, (conv.dtype, *form.tile), kernels.GRADIENT, values, tasks, tasks)
    blocks = divide_up(channels, kernels.REDUCE_BLOCK)
    tasks = shares(taps * channels, blocks)
    launch(program, kernels.reduce, [conv.dtype], kernels.REDUCE, values, blocks, tasks)
