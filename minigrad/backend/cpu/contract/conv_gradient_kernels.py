"""The sources of the kernels for weights' gradients: see conv_gradient."""

from __future__ import annotations

from minigrad.backend.cpu.contract.conv_kernels import (
    BLOCKS,
    LOWER_BLOCK,
    LOWERING,
    prologue,
    unpack,
)

REDUCE_BLOCK = 16  # output channels that `reduce` sums side by side

GRADIENT = f"""{LOWERING}
    taps tap_offsets d d_image_bytes d_channel_bytes out_channels padded_channels
    transposed transposed_bytes partials partial_bytes
"""
REDUCE = """
    partials partial_bytes parts tap_step channel_step channels column_taps row_taps
    out out_channel out_in_channel out_row out_column out_channels
"""

# What both forms begin a block of units with: a unit's pixels, and where the lowered ones are.
_BLOCK = f"""{BLOCKS}
            adds = unit - units * task // tasks
{LOWER_BLOCK}
            first = unit % bands * band_rows
            pixels = min(band_rows, out_rows - first) * row_length
            if direct == 0:
                s, image_step = scratch + task * block * slot_bytes, slot_bytes
            else:
                s, image_step = x + unit // bands * image_bytes, image_bytes
                s += first * row_length * ITEM
"""


def gradient_by_taps(dtype: str, rows: int, vectors: int) -> str:
    """partials[task][tap][channel], sums over a task's share of the images.

    The lanes run over output channels, so `d` is transposed to [pixel][channel] first.
    """
    return f"""{prologue(dtype, transpose=("transpose",), tile=("tap_tile", rows, vectors))}
ROWS, WIDTH = {rows}, {vectors} * LANES


def kernel(table, begin, end):
{unpack(GRADIENT)}
{_BLOCK}            panel_bytes = (count * pixels + LANES) * WIDTH * ITEM
            d_transposed = transposed + task * transposed_bytes
            for g in range(count):
                src = d + (unit + g) // bands * d_image_bytes + first * row_length * ITEM
                for c in range(0, padded_channels, LANES):
                    dst = d_transposed + c // WIDTH * panel_bytes
                    dst += (g * pixels * WIDTH + c % WIDTH) * ITEM
                    for q in range(0, pixels, LANES):
                        transpose(dst + q * WIDTH * ITEM, WIDTH * ITEM,
                                  src + c * d_channel_bytes + q * ITEM, d_channel_bytes,
                                  pixels - q, out_channels - c)
            for tap in range(0, taps, ROWS):
                for c in range(0, padded_channels, WIDTH):
                    tile(count * pixels, pixels, image_step - pixels * ITEM, s,
                         tap_offsets + 8 * tap, d_transposed + c // WIDTH * panel_bytes, WIDTH,
                         partials + task * partial_bytes + (tap * padded_channels + c) * ITEM,
                         padded_channels, taps - tap, adds)
            unit += count
"""


def gradient_by_dots(dtype: str, rows: int, taps: int) -> str:
    """partials[task][channel][tap], sums over a task's share of the images.

    The lanes run over pixels on both sides: few output channels would leave lanes of the other form
    idle.
    """
    return f"""{prologue(dtype, tile=("dot_tile", rows, taps))}
ROWS, TAPS = {rows}, {taps}


def kernel(table, begin, end):
{unpack(GRADIENT)}
{_BLOCK}            d_block = d + unit // bands * d_image_bytes + first * row_length * ITEM
            for c in range(0, out_channels, ROWS):
                for tap in range(0, taps, TAPS):
                    tile(count, pixels, d_block + c * d_channel_bytes, d_image_bytes,
                         d_channel_bytes, s, image_step, tap_offsets + 8 * tap,
                         partials + task * partial_bytes + (c * taps + tap) * ITEM, taps,
                         out_channels - c, taps - tap, adds)
            unit += count
"""


def reduce(dtype: str) -> str:
    """out[o, c, row, column] = the sum over tasks of the partial sums.

    [begin, end) are blocks of output channels.
    """
    return f"""{prologue(dtype)}BLOCK = {REDUCE_BLOCK}


def kernel(table, begin, end):
{unpack(REDUCE)}
    for block in range(begin, end):
        stop = min((block + 1) * BLOCK, out_channels)
        tap = 0
        for c in range(channels):
            for column in range(column_taps):
                for row in range(row_taps):
                    at = c * out_in_channel + row * out_row + column * out_column
                    for o in range(block * BLOCK, stop):
                        index = tap * tap_step + o * channel_step
                        total = load_{dtype}(partials, index)
                        for part in range(1, parts):
                            total += load_{dtype}(partials + part * partial_bytes, index)
                        store_{dtype}(out, at + o * out_channel, total)
                    tap += 1
"""
