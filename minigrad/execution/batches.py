"""Batches of stored samples, assembled on a device: what the data loader works with."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from minigrad.backend.batches import Assembly
from minigrad.device import Device, as_device, backend_of
from minigrad.dtype import DType, float32
from minigrad.graph import leaf
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor


class BatchAssembler:
    """Makes Tensors of stored samples, in the two steps that `minigrad.backend.batches` describes.

    Args:
        assembly: how a sample becomes part of a batch.
        shape: of a finished sample.
        device: that computes it.
    """

    def __init__(self, assembly: Assembly, shape: tuple[int, ...], device: Device | str | None):
        self.device = as_device(device)
        self._shape = shape
        self._stage = backend_of(self.device).batch_stage(assembly)

    def gather(self, samples: memoryview, words: array[int], labels: memoryview) -> Any:
        """Start a batch; what it gives is for `finish`. Touches no Tensor: any thread may do it."""
        return self._stage.gather(samples, words, labels)

    def finish(self, gathered: Any, n: int, labels: DType) -> tuple[Tensor, Tensor]:
        """The n samples in float32, and their labels of the dtype `labels`."""
        x, y = self._stage.finish(gathered)
        images = leaf(x, (n, *self._shape), float32, self.device)
        return wrap(images), wrap(leaf(y, (n,), labels, self.device))
