"""From stored samples to a finished float32 batch, in plain Python.

The CPU backend has the fast version of this (`minigrad.backend.cpu.augment`); this one serves
machines without Numba and is its oracle. No loop runs per pixel: columns move by strided slices,
and bytes become floats by four table lookups, one for each byte of the float.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from minigrad.data.dataset import shaped
from minigrad.data.transforms import BatchPlan

# (target: N x shape float32 as bytes, samples, words of BatchPlan.draw)
Assembler = Callable[[memoryview, memoryview, "array[int]"], None]


def lookup_tables(plan: BatchPlan) -> list[array[float]]:
    """For each channel the finished float32 of every byte value; float64 inside, rounded once.

    Both assemblers look bytes up here, so their batches are equal to the last bit.
    """
    return [
        array("f", [value * a + b for value in range(256)])
        for a, b in zip(plan.scale, plan.shift, strict=True)
    ]


def python_assembler(plan: BatchPlan, code: str) -> Assembler:
    """An assembler for samples of format `code`, "B" or "f"."""
    convert = _convert_bytes(plan) if code == "B" else _convert_floats(plan)
    zeros: Any = bytearray if code == "B" else lambda n: array("f", bytes(4 * n))
    channels, height, width = plan.geometry
    size = channels * height * width
    area = plan.crop[0] * plan.crop[1]

    def assemble(target: memoryview, samples: memoryview, words: array[int]) -> None:
        flat = shaped(samples, code, (samples.nbytes // samples.itemsize,))
        images = []
        for i in range(0, len(words), 4):
            row, top, left, mirrored = words[i : i + 4]
            image = flat[row * size : (row + 1) * size]
            images.append(_window(plan, zeros, image, top, left, bool(mirrored)))
        for c in range(channels):
            part = slice(c * area, (c + 1) * area)
            floats = convert(c, [image[part] for image in images])
            for i in range(len(images)):
                at = 4 * (i * channels + c) * area
                target[at : at + 4 * area] = floats[4 * i * area : 4 * (i + 1) * area]

    return assemble


def _window(
    plan: BatchPlan, zeros: Any, image: memoryview, top: int, left: int, mirrored: bool
) -> Any:
    """The window of one image, as a sequence of C * height * width stored values."""
    channels, height, width = plan.geometry
    rows, columns = plan.crop
    if (rows, columns) == (height, width) and not (top or left or mirrored):
        return image
    first, last = max(top, 0), min(top + rows, height)
    band = zeros(channels * rows * width)
    for c in range(channels):
        at = (c * rows + first - top) * width
        count = max(last - first, 0) * width
        source = (c * height + first) * width
        band[at : at + count] = _like(band, image[source : source + count])
    if left == 0 and columns == width and not mirrored:
        return band
    window = zeros(channels * rows * columns)
    start, step = (left + columns - 1, -1) if mirrored else (left, 1)
    for j in range(columns):
        x = start + step * j
        if 0 <= x < width:
            window[j::columns] = band[x::width]
    return window


def _like(band: Any, values: memoryview) -> Any:
    """An array takes only an array in a slice; a bytearray takes any buffer."""
    return array("f", values.tobytes()) if isinstance(band, array) else values


def _convert_bytes(plan: BatchPlan) -> Callable[[int, list[Any]], Any]:
    # planes[c][k][v]: byte k of the float for value v.
    planes = [[table.tobytes()[k::4] for k in range(4)] for table in lookup_tables(plan)]

    def convert(channel: int, images: list[Any]) -> bytearray:
        values = b"".join(images)
        floats = bytearray(4 * len(values))
        for k in range(4):
            floats[k::4] = values.translate(planes[channel][k])
        return floats

    return convert


def _convert_floats(plan: BatchPlan) -> Callable[[int, list[Any]], Any]:
    def convert(channel: int, images: list[Any]) -> memoryview:
        a, b = plan.scale[channel], plan.shift[channel]
        values = array("f", b"".join(images))
        if (a, b) != (1.0, 0.0):
            values = array("f", [value * a + b for value in values])
        return memoryview(values).cast("B")

    return convert
