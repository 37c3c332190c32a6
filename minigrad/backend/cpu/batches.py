"""Batches in host memory: gathered, cropped, mirrored and scaled in one pass by the loader.

`batches_plain` is the same in plain Python, and says what it means. The kernel is called directly,
on the loader's thread: parallel regions belong to the training step.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

from minigrad.backend.batches import Assembly
from minigrad.backend.cpu.batches_plain import PlainAssembler
from minigrad.backend.cpu.runtime.memory import DeviceBuffer, view

# Table: 0 target, 1 samples, 2 words (row, top, left, mirrored), 3 per-channel constants,
# 4 channels, 5 height, 6 width, 7 rows, 8 columns. The range is over the images of the batch.
_SOURCE = """
def kernel(table, first, last):
    target, samples = load_int64(table, 0), load_int64(table, 1)
    words, constants = load_int64(table, 2), load_int64(table, 3)
    channels, height, width = load_int64(table, 4), load_int64(table, 5), load_int64(table, 6)
    rows, columns = load_int64(table, 7), load_int64(table, 8)
    for n in range(first, last):
        image = load_int64(words, 4 * n)
        top = load_int64(words, 4 * n + 1)
        left = load_int64(words, 4 * n + 2)
        # Finished column j takes stored column start + step * j.
        start, step = left, 1
        begin, end = -left, width - left
        if load_int64(words, 4 * n + 3):
            start, step = left + columns - 1, -1
            begin, end = left + columns - width, left + columns
        begin = min(max(begin, 0), columns)
        end = max(min(end, columns), begin)
        for c in range(channels):
            for i in range(rows):
                at = ((n * channels + c) * rows + i) * columns
                y = top + i
                inner, outer = begin, end
                if y < 0 or y >= height:
                    inner, outer = columns, columns
                source = ((image * channels + c) * height + y) * width + start
                for j in range(inner):
                    store_float32(target, at + j, {black})
                for j in range(inner, outer):
                    value = {load}(samples, source + step * j)
                    store_float32(target, at + j, {convert})
                for j in range(outer, columns):
                    store_float32(target, at + j, {black})
"""

# What the formats of stored values put into the source.
_CODE = {
    "B": {
        "load": "load_uint8",
        "convert": "load_float32(constants, 256 * c + value)",
        "black": "load_float32(constants, 256 * c)",
    },
    "f": {
        "load": "load_float32",
        "convert": "types.float32(times_plus("
        "value, load_float64(constants, 2 * c), load_float64(constants, 2 * c + 1)))",
        "black": "types.float32(load_float64(constants, 2 * c + 1))",
    },
}


class BatchStage:
    """See `minigrad.backend.batches`. All the work is in `gather`.

    Args:
        assembly: what the batches are made of.
        compiled: by a kernel; else in plain Python, which serves machines without Numba.
    """

    def __init__(self, assembly: Assembly, compiled: bool):
        self._finished_bytes = assembly.finished_bytes
        self._assemble = (Assembler if compiled else PlainAssembler)(assembly)

    def gather(
        self, samples: memoryview, words: array[int], labels: memoryview
    ) -> tuple[DeviceBuffer, DeviceBuffer]:
        """A finished batch in 64-byte aligned memory, recycled when its last Tensor is gone."""
        images = DeviceBuffer(self._finished_bytes * (len(words) // 4))
        self._assemble(view(images), samples, words)
        targets = DeviceBuffer(labels.nbytes)
        view(targets)[:] = labels
        return images, targets

    def finish(
        self, gathered: tuple[DeviceBuffer, DeviceBuffer]
    ) -> tuple[DeviceBuffer, DeviceBuffer]:
        """The memory of x and of the labels."""
        return gathered


class Assembler:
    """A compiled assembler for batches of one geometry. Calling it releases the GIL."""

    def __init__(self, assembly: Assembly):
        from minigrad.backend.cpu.runtime.jit import compile_kernel  # imports Numba

        source = _SOURCE.format(**_CODE[assembly.code])
        self._kernel = compile_kernel(f"augment_{assembly.code}", source)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        self._run = prototype(self._kernel.address)
        self._constants = assembly.constants()
        self._sizes = (*assembly.geometry, *assembly.crop)

    def __call__(self, target: memoryview, samples: memoryview, words: array[int]) -> None:
        """Fill `target` (N * C * height * width float32, as bytes) from the writable `samples`."""
        addresses = (
            _address(target),
            _address(samples),
            words.buffer_info()[0],
            self._constants.buffer_info()[0],
        )
        table = array("q", addresses + self._sizes)
        self._run(table.buffer_info()[0], 0, len(words) // 4)


def _address(memory: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
