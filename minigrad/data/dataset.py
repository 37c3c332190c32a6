"""A data set held in memory: one block of samples, one block of labels."""

from __future__ import annotations

import operator
from array import array
from contextlib import suppress
from math import prod
from typing import Any

from minigrad.creation import asarray
from minigrad.execution.compute import export_bytes
from minigrad.interop.encoding import decode
from minigrad.tensor_base import TensorBase

__all__ = ["ImageDataset", "TensorDataset"]

Shape = tuple[int, ...]

_INTEGERS = "bBhHiIlLqQnN?"


def shaped(data: Any, code: str, shape: Shape) -> memoryview[Any]:
    """A contiguous buffer's bytes, seen as values of format `code` in `shape`."""
    flat: Any = memoryview(data).cast("B")
    return flat.cast(code, shape)


class ImageDataset:
    """Samples and labels in two contiguous blocks of memory.

    Attributes:
        images: memoryview of shape (N, *shape), format "B" (bytes) or "f" (float32).
        labels: memoryview of shape (N,), format "B", "q" (int64) or "f" (float32).
        shape: the shape of one sample; (C, H, W) for images.
        classes: the names of the classes, or () when they have none.
        full_scale: the stored value that DataLoader maps to 1.0.
    """

    def __init__(
        self,
        images: memoryview[Any],
        labels: memoryview[Any],
        *,
        classes: tuple[str, ...] = (),
        full_scale: float = 255.0,
    ):
        self.images, self.labels = images, labels
        self.shape: Shape = tuple(images.shape or ())[1:]
        self.classes = classes
        self.full_scale = full_scale
        self._step = prod(self.shape) * images.itemsize  # bytes
        self._bytes = images.cast("B")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[memoryview[Any], int | float]:
        """The sample (a view of the stored values, of shape `self.shape`) and its label."""
        i = operator.index(index)
        n = len(self)
        if not -n <= i < n:
            raise IndexError(
                f"{type(self).__name__}: expected an index in [{-n}, {n}), got {index}."
            )
        i %= n
        sample = self._bytes[i * self._step : (i + 1) * self._step]
        return shaped(sample, self.images.format, self.shape), self.labels[i]

    def subset(self, start: int, stop: int) -> ImageDataset:
        """Samples start .. stop - 1 as a data set that shares their memory.

        Raises:
            ValueError: not 0 <= start <= stop <= len(self).
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(
                f"subset: expected 0 <= start <= stop <= {len(self)}, got {start}, {stop}."
            )
        pixels = self._bytes[start * self._step : stop * self._step]
        images = shaped(pixels, self.images.format, (stop - start, *self.shape))
        return ImageDataset(
            images, self.labels[start:stop], classes=self.classes, full_scale=self.full_scale
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples of shape {self.shape})"


class TensorDataset(ImageDataset):
    """A data set from tensors, buffers or nested lists.

    Args:
        images: N samples of any shape (N, *shape). uint8 and float32 are kept as they are, without
            a copy when the memory is writable and contiguous; other types become float32.
        labels: N integers (kept as int64) or floats (kept as float32).
        classes: the names of the classes.
        full_scale: the stored value that DataLoader maps to 1.0; 255 for uint8 and 1 otherwise
            when not given.

    Raises:
        ValueError: no samples, or not one label per sample.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        *,
        classes: tuple[str, ...] = (),
        full_scale: float | None = None,
    ):
        samples, targets = as_block(images), as_block(labels)
        if samples.ndim < 1 or targets.ndim != 1 or len(samples) != len(targets):
            raise ValueError(
                "TensorDataset: expected images (N, ...) and labels (N,), got shapes "
                f"{samples.shape} and {targets.shape}."
            )
        if samples.format != "B":
            samples = converted(samples, "f")
        targets = converted(targets, "q" if targets.format in _INTEGERS else "f")
        if full_scale is None:
            full_scale = 255.0 if samples.format == "B" else 1.0
        super().__init__(samples, targets, classes=tuple(classes), full_scale=full_scale)


def as_block(values: Any) -> memoryview[Any]:
    """Anything array-like as a writable, contiguous memoryview with its shape and native format."""
    view = _memoryview(values)
    shape, code = tuple(view.shape or ()), view.format.lstrip("@=")
    if 0 in shape:
        raise ValueError(f"data set: expected at least one element, got shape {shape}.")
    if code[:1] in "<>!":
        raise TypeError(
            f"data set: expected native byte order, got format {view.format!r}. Swap the bytes."
        )
    if code not in _INTEGERS + "fd":
        raise TypeError(
            f"data set: expected bool, integer, float32 or float64 values, got format {code!r}."
        )
    if view.readonly or not view.c_contiguous:
        return shaped(bytearray(view.tobytes()), code, shape)
    return shaped(view, code, shape)


def _memoryview(values: Any) -> memoryview[Any]:
    if not isinstance(values, TensorBase):  # whose halves no memoryview reads everywhere
        with suppress(TypeError):
            return memoryview(values)
    tensor = asarray(values)
    if 0 in tensor.shape:
        raise ValueError(f"data set: expected at least one element, got shape {tensor.shape}.")
    # A copy: a compiled step may go on to write into a tensor's memory.
    return decode(memoryview(bytearray(export_bytes(tensor))), tensor.dtype, tensor.shape)


def converted(view: memoryview[Any], code: str) -> memoryview[Any]:
    """The values in another format; `view` itself when it has it already."""
    if view.format == code:
        return view
    flat = shaped(view, view.format, (view.nbytes // view.itemsize,))
    return shaped(array(code, flat.tolist()), code, tuple(view.shape or ()))
