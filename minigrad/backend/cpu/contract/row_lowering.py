"""Row lowering: how an image batch is cut into bands and blocks, and where each tap finds it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from minigrad.backend.cpu import machine
from minigrad.backend.cpu.contract import conv_kernels as kernels
from minigrad.backend.cpu.contract.axis import Axis
from minigrad.backend.cpu.contract.conv_launch import (
    aligned,
    compiled,
    constant_table,
    divide_up,
    is_run,
)
from minigrad.backend.cpu.kernel_text import shares
from minigrad.backend.launch import Operand, Pointer, Program

# What a task works on at a time stays in half of a core's second cache. A quarter of it redoes more
# halo rows and has shorter tiles: up to 10% slower on large layers.
_BLOCK_BYTES = machine.second_cache().nbytes // 2
_LEAST_BAND = 4  # rows; in smaller bands most of the lowering is halo


class RowLowering:
    """The row lowering of x (images, channels, H, W): see the note on top of conv_kernels.

    A unit is a band of output rows of one image; a task lowers a block of units into its scratch,
    then works on them. `values` are the words of kernels.LOWERING. `direct` means that x itself has
    the lowered form already (a 1x1 filter), so nothing is copied.
    """

    def __init__(
        self,
        program: Program,
        x: Operand,
        rows: Axis,
        columns: Axis,
        *,
        work: int,  # multiply-adds of the whole convolution
        other_row_bytes: int = 0,  # that the kernel keeps for each row of a unit besides
        most_images: int = sys.maxsize,  # that a block may have
        allow_direct: bool = True,
    ):
        self.x, self.rows, self.columns, self.item = x, rows, columns, x.dtype.itemsize
        self.residues, self.row_taps = rows.shifts()
        self.halo = max(shift for _, shift in self.row_taps)
        identity = rows.is_identity and columns.is_identity
        self.direct = allow_direct and identity and is_run(x)
        lowered_row = x.shape[1] * columns.taps * len(self.residues) * columns.out * self.item
        self._cut(lowered_row + other_row_bytes, most_images, work)
        self.lowered_rows = self.band_rows + self.halo
        # A row's last vector may spill past its end.
        self.slot_bytes = aligned(lowered_row * self.lowered_rows + machine.vector_bytes())
        self.values = self._words(program)

    def _cut(self, row_bytes: int, most_images: int, work: int) -> None:
        """Choose the tasks, the rows of a band and the units of a block."""
        images, rows, halo = self.x.shape[0], self.rows.out, self.halo
        wanted = shares(work, images * rows)
        band = rows
        while band > _LEAST_BAND and row_bytes * (band + halo) > _BLOCK_BYTES:
            band = divide_up(band, 2)
        self.band_rows = min(band, divide_up(rows, divide_up(wanted, images)))
        self.bands = divide_up(rows, self.band_rows)
        self.tasks = min(wanted, images * self.bands)
        self.block = 1
        if self.bands == 1:  # the units of a block must have equally many rows
            fitting = _BLOCK_BYTES // (row_bytes * (rows + halo))
            self.block = max(1, min(fitting, most_images, divide_up(images, self.tasks)))

    def _words(self, program: Program) -> dict[str, Any]:
        x, rows, columns = self.x, self.rows, self.columns
        out_step, in_step = columns.window.steps
        step = in_step * x.strides[3]
        scratch, lower = 0, 0
        if not self.direct:
            scratch = Pointer(program.scratch_slot(self.tasks * self.block * self.slot_bytes))
            lower = compiled(kernels.lower, x.dtype.name).address
        return {
            "x": x.pointer,
            "image_bytes": x.strides[0] * self.item,
            "channel_bytes": x.strides[1] * self.item,
            "channels": x.shape[1],
            "column_taps": columns.taps,
            "row_phases": len(self.residues),
            "lowered_rows": self.lowered_rows,
            "halo": self.halo,
            "row_length": columns.out,
            "band_rows": self.band_rows,
            "bands": self.bands,
            "out_rows": rows.out,
            "row_table": constant_table(program, self._row_table()),
            "table_rows": rows.out + self.halo,
            "column_table": constant_table(program, self._column_table()),
            "mode": step if out_step == 1 and step in (1, 2) else 0,
            "step_bytes": step * self.item,
            "out_step": out_step,
            "scratch": scratch,
            "slot_bytes": self.slot_bytes,
            "block": self.block,
            "units": x.shape[0] * self.bands,
            "tasks": self.tasks,
            "direct": int(self.direct),
            "lower": lower,
        }

    def _row_table(self) -> Iterable[int]:
        for residue in self.residues:
            for i in range(self.rows.out + self.halo):
                source = self.rows.source(i * self.rows.window.stride + residue)
                row_bytes = self.x.strides[2] * self.item
                yield kernels.NOWHERE if source is None else source * row_bytes

    def _column_table(self) -> Iterable[int]:
        out_step, _ = self.columns.window.steps
        for count, first_out, first_in in self.columns.meetings():
            end = first_out + (count - 1) * out_step + 1 if count else first_out
            yield from (first_out, end, first_in * self.x.strides[3] * self.item)

    def tap_offset(self, channel: int, row_tap: int, column_tap: int) -> int:
        """Bytes from a unit's start to the run of pixels that (channel, tap) multiplies."""
        if self.direct:
            return channel * self.x.strides[1] * self.item
        phase, shift = self.row_taps[row_tap]
        plane = (channel * self.columns.taps + column_tap) * len(self.residues) + phase
        return (plane * self.lowered_rows + shift) * self.columns.out * self.item
