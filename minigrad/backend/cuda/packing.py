"""Strided memory of another library into row-major order, by a kernel."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Any

from minigrad.backend.cuda.runtime.executable import Executable
from minigrad.backend.cuda.runtime.memory import ALIGNMENT, BorrowedBuffer, DeviceBuffer
from minigrad.backend.launch import Operand, Program, contiguous_strides
from minigrad.backend.loopnest import copying
from minigrad.dtype import DType, uint8

_lock = Lock()  # a program's tables are its own


def packed(
    device: Any, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType,
    owner: object,
) -> DeviceBuffer:  # fmt: skip
    """A row-major copy. `strides` are in bytes; `owner` keeps the memory alive."""
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    if any(n % dtype.itemsize for n in (address, *strides)):  # kernels load whole elements
        shape, strides, dtype = (*shape, dtype.itemsize), (*strides, 1), uint8
    lowest = address + sum(min(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
    # Nothing before the lowest element is read; only the address has to be aligned.
    base = lowest - lowest % ALIGNMENT
    source = BorrowedBuffer(device.runtime, base, 0, owner)
    target = device.allocate(nbytes)
    steps = tuple(s // dtype.itemsize for s in strides)
    with _lock:
        copy = _copier(device, shape, steps, (address - base) // dtype.itemsize, dtype)
        copy.run([source, target], ())
    return target


@lru_cache(maxsize=64)
def _copier(
    device: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, dtype: DType
) -> Executable:
    """The program that copies slot 0 into slot 1. Strides and offset are in elements."""
    source = Operand(0, dtype, shape, strides, offset)
    target = Operand(1, dtype, shape, contiguous_strides(shape))
    program = Program(first_scratch=2)
    device.library().loop_nest(program, copying(source, target))
    return device.executable(program, {}, 0, (0, 1), ())
