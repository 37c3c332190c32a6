"""Runs one library call of any backend on operands of any strides; gaps stay untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strided_operands import Layout

from minigrad.backend.cuda.backend import device
from minigrad.backend.interface import Backend
from minigrad.backend.launch import Operand, Program
from minigrad.dtype import BY_NAME, DType
from minigrad.interop.encoding import decode, encode

POISON = b"\xff"  # NaN in every float type


def run_on_cuda(name: str, *arguments: Any, **attrs: Any) -> list[Any]:
    """`run_on` the first GPU."""
    return run_on(device(0), name, *arguments, **attrs)


def run_on(
    backend: Backend[Any],
    name: str,
    inputs: Sequence[tuple[str, Layout, Sequence[Any]]],
    out: Layout,
    out_dtype: str,
    **attrs: Any,
) -> list[Any]:
    """The output of the library call `name`, in row-major order.

    Each input is (dtype, layout, values in row-major order). What lies between is poison.
    """
    operands, buffers = [], []
    for slot, (dtype_name, layout, values) in enumerate(inputs):
        dtype = BY_NAME[dtype_name]
        data = bytearray(POISON * (layout.size * dtype.itemsize))
        size, encoded = dtype.itemsize, encode(values, dtype)
        for i, place in enumerate(layout.places()):
            data[place * size : (place + 1) * size] = encoded[i * size : (i + 1) * size]
        buffers.append(backend.from_bytes(memoryview(bytes(data))))
        operands.append(_operand(slot, dtype, layout))
    dtype = BY_NAME[out_dtype]
    nbytes = out.size * dtype.itemsize
    buffers.append(backend.from_bytes(memoryview(POISON * nbytes)))
    operands.append(_operand(len(inputs), dtype, out))

    program = Program(first_scratch=len(buffers))
    getattr(backend.library(), name)(program, *operands, **attrs)
    offsets, end = {}, 0
    for slot, size in enumerate(program.scratch, len(buffers)):
        offsets[slot] = end
        end += -(-size // 64) * 64
    executable = backend.executable(program, offsets, end, range(len(buffers)), [])
    executable.run(buffers, [])
    data = bytes(backend.to_bytes(buffers[-1], nbytes))

    places = out.places()
    size = dtype.itemsize
    gaps = set(range(out.size)) - set(places)
    assert all(data[i * size : (i + 1) * size] == POISON * size for i in gaps)
    values = decode(memoryview(data), dtype)
    return [values[place] for place in places]


def _operand(slot: int, dtype: DType, at: Layout) -> Operand:
    return Operand(slot, dtype, at.shape, at.strides, at.offset)
