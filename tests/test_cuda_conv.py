"""The CUDA convolution against the same references as the CPU's, in exact arithmetic."""

from __future__ import annotations

import array
import ctypes
from math import prod

import pytest
from test_cpu_conv import (
    DENSE,
    FLOATS,
    FORWARDS,
    POISON,
    Case,
    Layout,
    at,
    backward_data,
    backward_weight,
    indices,
    plain,
    store,
    values,
    with_torch,
)

from minigrad.backend.cuda import conv
from minigrad.backend.cuda.backend import device as cuda_device
from minigrad.backend.launch import Operand, Program
from minigrad.device import as_device
from minigrad.dtype import as_dtype


@pytest.fixture(autouse=True)
def cuda():
    return as_device("cuda").backend if hasattr(as_device("cuda"), "backend") else cuda_device(0)


def run(case: Case, x: list, w: list, dtype: str, processors: int = 4) -> list:
    """The convolution's output, row-major, through the operands' layouts."""
    backend = cuda_device(0)
    kind = as_dtype(dtype)
    out_size, out_strides, out_offset = case.layouts[2].place(case.out)
    storages = [
        store(x, case.x, case.layouts[0], dtype),
        store(w, case.w, case.layouts[1], dtype),
        [POISON.get(dtype, 12345)] * out_size,
    ]
    buffers, operands = [], []
    for slot, (storage, shape, layout) in enumerate(
        zip(storages, (case.x, case.w, case.out), case.layouts, strict=True)
    ):
        buffers.append(backend.from_bytes(memoryview(array.array(kind.format, storage)).cast("B")))
        _, strides, offset = layout.place(shape)
        operands.append(Operand(slot, kind, shape, strides, offset))
    program = Program(first_scratch=3)
    conv.conv2d(program, *operands, **case.parameters, processors=processors)
    offsets, total = {}, 0
    for i, nbytes in enumerate(program.scratch):
        offsets[3 + i] = total
        total += nbytes + -nbytes % 256
    executable = backend.executable(program, offsets, total, [0, 1, 2], [])
    executable.run(buffers, [])
    data = backend.to_bytes(buffers[2], out_size * kind.itemsize)
    storage = data.cast(kind.format).tolist() if out_size else []
    places = [at(index, out_strides, out_offset) for index in indices(case.out)]
    untouched = set(range(out_size)) - set(places)
    if dtype in FLOATS:
        assert all(storage[i] != storage[i] for i in untouched), "wrote outside of the output"
    return [storage[i] for i in places], [x.kernel.name for x in program.launches]


def check(case: Case, dtype: str = "float32", reference=plain, processors: int = 4) -> list[str]:
    x, w = values(case, seed=hash((case.x, case.w)) % 1000)
    got, kernels = run(case, x, w, dtype, processors)
    assert got == reference(case, x, w)
    return kernels


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
def test_layers_and_their_gradients(name, direction, dtype):
    case = FORWARDS[name]
    if direction != "forward":
        case = backward_data(case, *case.x[2:]) if direction == "data" else backward_weight(case)
    check(case, dtype, with_torch)
