"""From stored samples to a finished float32 batch, in plain Python.

The kernel in `batches` is the fast version of this; this one serves machines without Numba and is
its oracle. It never loops over the pixels of bytes: columns move by strided slices, and bytes
become floats by four table lookups, one for each byte of the float.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from minigrad.backend.batches import Assembly


class PlainAssembler:
    """An assembler for batches of one geometry, called as `Assembler`."""

    def __init__(self, assembly: Assembly):
        self._assembly = assembly
        self._convert = (_convert_bytes if assembly.code == "B" else _convert_floats)(assembly)

    def __call__(self, target: memoryview, samples: memoryview, words: array[int]) -> None:
        """Fill `target` (N * C * height * width float32, as bytes) from all stored samples."""
        assembly = self._assembly
        channels, height, width = assembly.geometry
        size = channels * height * width
        area = assembly.crop[0] * assembly.crop[1]
        flat: Any = samples.cast("B").cast("B" if assembly.code == "B" else "f")
        images = []
        for i in range(0, len(words), 4):
            row, top, left, mirrored = words[i : i + 4]
            image = flat[row * size : (row + 1) * size]
            images.append(_window(assembly, image, top, left, bool(mirrored)))
        for c in range(channels):
            part = slice(c * area, (c + 1) * area)
            floats = self._convert(c, [image[part] for image in images])
            for i in range(len(images)):
                at = 4 * (i * channels + c) * area
                target[at : at + 4 * area] = floats[4 * i * area : 4 * (i + 1) * area]


def _window(assembly: Assembly, image: memoryview, top: int, left: int, mirrored: bool) -> Any:
    """The window of one image, as a sequence of C * height * width stored values."""
    channels, height, width = assembly.geometry
    rows, columns = assembly.crop
    zeros: Any = bytearray if assembly.code == "B" else lambda n: array("f", bytes(4 * n))
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


def _convert_bytes(assembly: Assembly) -> Callable[[int, list[Any]], Any]:
    table = assembly.constants().tobytes()
    # planes[c][k][v]: byte k of the float for value v.
    planes = [
        [table[start + k : start + 1024 : 4] for k in range(4)]
        for start in range(0, len(table), 1024)
    ]

    def convert(channel: int, images: list[Any]) -> bytearray:
        values = b"".join(images)
        floats = bytearray(4 * len(values))
        for k in range(4):
            floats[k::4] = values.translate(planes[channel][k])
        return floats

    return convert


def _convert_floats(assembly: Assembly) -> Callable[[int, list[Any]], Any]:
    def convert(channel: int, images: list[Any]) -> memoryview:
        a, b = assembly.scale[channel], assembly.shift[channel]
        values = array("f", b"".join(images))
        return memoryview(array("f", [value * a + b for value in values])).cast("B")

    return convert
