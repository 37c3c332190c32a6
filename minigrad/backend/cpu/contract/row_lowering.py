"""Row lowering: how an image batch is cut into bands and blocks, and where each tap finds it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from minigrad.backend.cpu import machine
from minigrad.backend.cpu.contract import conv_kernels as kernels
from minigrad.backend.cpu.contract.axis import Axis
from minigrad.backend.cpu.kernel_text import shares
from minigrad.backend.cpu.runtime.jit import Kernel, compile_kernel
from minigrad.backend.launch import Operand, Pointer, Program

# What a task works on at a time stays in half of a core's second cache. A quarter of it redoes more
# halo rows and has shorter tiles: up to 10% slower on large layers.
_BLOCK_BYTES = machine.second_cache().nbytes // 2
_LEAST_BAND = 4  # rows; in smaller bands most of the lowering is halo


def divide_up(a: int, b: int) -> int:
    """The ceiling of a / b."""
    return -(-a // b)


def aligned(nbytes: int) -> int:
    """The next multiple of a cache line's 64 bytes."""
    return divide_up(nbytes, 64) * 64


def compiled(make: Callable[..., str], *parameters: str | int) -> Kernel:
    """The kernel whose source is `make(*parameters)`."""
    name = "_".join(["conv", make.__name__, *map(str, parameters)])
    return compile_kernel(name, make(*parameters))


@lru_cache(maxsize=512)
def _words(values: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * max(len(values), 1))(*values)


def constant_table(program: Program, values: Iterable[int]) -> int:
    """The address of a constant table of int64 words that lives as long as the program."""
    array = _words(tuple(values))
    program.keep.append(array)
    return ctypes.addressof(array)


def is_run(operand: Operand) -> bool:
    """Whether the pixels of each image and channel are contiguous, in order."""
    height, width = operand.shape[2:]
    by_row, by_column = operand.strides[2:]
    return (width == 1 or by_column == 1) and (height == 1 or by_row == width)


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
        other_row_bytes: int = 0,  # what the kernel keeps besides for each row of a unit
        most_images: int = sys.maxsize,  # of a block
        allow_direct: bool = True,
    ):
        self.item = item = x.dtype.itemsize
        images, channels = x.shape[:2]
        residues, self.row_taps = rows.shifts()
        halo = max(shift for _, shift in self.row_taps)
        identity = rows.is_identity and columns.is_identity
        self.direct = allow_direct and identity and is_run(x)
        self.row_length, self.column_taps = columns.out, columns.taps
        self.row_phases, self.channel_bytes = len(residues), x.strides[1] * item
        planes = channels * self.column_taps * self.row_phases
        row_bytes = planes * columns.out * item + other_row_bytes
        self._cut(images, rows.out, halo, row_bytes, most_images, work)
        self.lowered_rows = self.band_rows + halo
        # A row's last vector may spill past its end.
        slot_bytes = planes * self.lowered_rows * columns.out * item + machine.vector_bytes()
        slot_bytes = aligned(slot_bytes)
        scratch: Pointer | int = 0
        if not self.direct:
            scratch = Pointer(program.scratch_slot(self.tasks * self.block * slot_bytes))
        out_step, in_step = columns.steps
        step = in_step * x.strides[3]
        self.values: dict[str, Any] = {
            "x": x.pointer,
            "image_bytes": x.strides[0] * item,
            "channel_bytes": self.channel_bytes,
            "channels": channels,
            "column_taps": self.column_taps,
            "row_phases": self.row_phases,
            "lowered_rows": self.lowered_rows,
            "halo": halo,
            "row_length": columns.out,
            "band_rows": self.band_rows,
            "bands": self.bands,
            "out_rows": rows.out,
            "row_table": constant_table(program, self._row_table(rows, residues, halo, x)),
            "table_rows": rows.out + halo,
            "column_table": constant_table(program, self._column_table(columns, x)),
            "mode": step if out_step == 1 and step in (1, 2) else 0,
            "step_bytes": step * item,
            "out_step": out_step,
            "scratch": scratch,
            "slot_bytes": slot_bytes,
            "block": self.block,
            "units": images * self.bands,
            "tasks": self.tasks,
            "direct": int(self.direct),
            "lower": 0 if self.direct else compiled(kernels.lower, x.dtype.name).address,
        }

    def _cut(
        self, images: int, rows: int, halo: int, row_bytes: int, most_images: int, work: int
    ) -> None:
        """Choose the tasks, the rows of a band and the units of a block."""
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

    def _row_table(self, rows: Axis, residues: list[int], halo: int, x: Operand) -> Iterable[int]:
        for residue in residues:
            for i in range(rows.out + halo):
                source = rows.source(i * rows.stride + residue)
                yield kernels.NOWHERE if source is None else source * x.strides[2] * self.item

    def _column_table(self, columns: Axis, x: Operand) -> Iterable[int]:
        out_step, _ = columns.steps
        for count, first_out, first_in in columns.windows():
            end = first_out + (count - 1) * out_step + 1 if count else first_out
            yield from (first_out, end, first_in * x.strides[3] * self.item)

    def tap_offset(self, channel: int, row_tap: int, column_tap: int) -> int:
        """Bytes from a unit's start to the run of pixels that (channel, tap) multiplies."""
        if self.direct:
            return channel * self.channel_bytes
        phase, shift = self.row_taps[row_tap]
        plane = (channel * self.column_taps + column_tap) * self.row_phases + phase
        return (plane * self.lowered_rows + shift) * self.row_length * self.item
