"""Runs one lowering on real buffers, with outputs, slack and scratch poisoned beforehand."""

from __future__ import annotations

import array
import ctypes
import struct
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from minigrad.backend.cpu.runtime import driver, memory
from minigrad.backend.launch import Operand, Pointer, Program, contiguous_strides
from minigrad.dtype import as_dtype

Input = tuple[str, tuple[int, ...], Sequence[Any]]


def operand(slot: int, dtype: str, shape: tuple[int, ...]) -> Operand:
    """A dense operand at the start of `slot`."""
    return Operand(slot, as_dtype(dtype), shape, contiguous_strides(shape))


class Prepared:
    """A built program with its memory bound; `run()` executes it, `output()` reads the result."""

    def __init__(
        self,
        build: Callable[..., None],
        inputs: Sequence[Input],
        out_shape: tuple[int, ...],
        out_dtype: str,
    ):
        self.out_dtype, self.out_size = as_dtype(out_dtype), prod(out_shape)
        self.buffers = [_filled(dtype, values) for dtype, _, values in inputs]
        self.buffers.append(_poisoned(self.out_size * self.out_dtype.itemsize))
        self.program = Program(first_scratch=len(self.buffers))
        operands = [operand(i, dtype, shape) for i, (dtype, shape, _) in enumerate(inputs)]
        build(self.program, *operands, operand(len(inputs), out_dtype, out_shape))
        self.status = {slot for slot, _ in self.program.checks}
        self.out = self.buffers[-1]
        self.buffers += [_poisoned(nbytes) for nbytes in self.program.scratch]
        self.tables = []
        words = []
        for launch in self.program.launches:
            table = (ctypes.c_int64 * max(len(launch.args), 1))(*map(self._word, launch.args))
            self.tables.append(table)
            words += [launch.kernel.address, ctypes.addressof(table), launch.extent, launch.tasks]
        self.rows = (ctypes.c_int64 * max(len(words), 1))(*words)

    def _word(self, value: Any) -> int:
        if isinstance(value, Pointer):
            return self.buffers[value.slot].address + value.offset
        if isinstance(value, float):
            return struct.unpack("<q", struct.pack("<d", value))[0]
        return int(value)

    def run(self) -> None:
        for slot in self.status:
            ctypes.memset(self.buffers[slot].address, 0, 8)
        driver.run(ctypes.addressof(self.rows), len(self.program.launches))
        for slot, message in self.program.checks:
            word = ctypes.c_int64.from_address(self.buffers[slot].address).value
            if word:
                raise IndexError(message.format(value=word - 1))

    def check_slack(self) -> None:
        """Nothing may be written past the end of an output or of scratch."""
        for buffer in (self.out, *self.buffers[self.program.first_scratch :]):
            slack = ctypes.string_at(buffer.address + buffer.nbytes, memory.SLACK)
            assert slack == b"\xff" * memory.SLACK, "wrote past the end of a buffer"

    def output(self) -> list[Any]:
        data = memory.view(self.out, self.out_size * self.out_dtype.itemsize)
        return data.cast(self.out_dtype.format).tolist() if self.out_size else []


def run_program(
    build: Callable[..., None],
    inputs: Sequence[Input],
    out_shape: tuple[int, ...],
    out_dtype: str,
) -> list[Any]:
    """Call `build(program, *input_operands, out_operand)`, run it, return the flat output.

    Each input is (dtype, shape, flat values); operands are dense, and `build` may re-stride them.
    """
    prepared = Prepared(build, inputs, out_shape, out_dtype)
    prepared.run()
    prepared.check_slack()
    return prepared.output()


def _poisoned(nbytes: int) -> memory.DeviceBuffer:
    buffer = memory.DeviceBuffer(nbytes)
    ctypes.memset(buffer.address, 0xFF, nbytes + memory.SLACK)  # NaN in either float type
    return buffer


def _filled(dtype: str, values: Sequence[Any]) -> memory.DeviceBuffer:
    code = as_dtype(dtype).format
    data = bytes(map(bool, values)) if code == "?" else array.array(code, values).tobytes()
    buffer = _poisoned(len(data))
    if data:
        ctypes.memmove(buffer.address, data, len(data))
    return buffer
