"""Batches in host memory: gathered, cropped, mirrored and scaled in one pass by the loader."""

from __future__ import annotations

from array import array

from minigrad.backend.batches import Assembly
from minigrad.backend.cpu.runtime.memory import Buffer, view


class BatchStage:
    """See `minigrad.backend.batches`. All the work is in `gather`.

    Args:
        assembly: what the batches are made of.
        compiled: by a kernel; else in plain Python, which serves machines without Numba.
    """

    def __init__(self, assembly: Assembly, compiled: bool):
        if compiled:
            from minigrad.backend.cpu.augment import Augment as Assembler
        else:
            from minigrad.backend.cpu.augment_plain import PlainAugment as Assembler
        self._finished_bytes = assembly.finished_bytes
        self._assemble = Assembler(assembly)

    def gather(
        self, samples: memoryview, words: array[int], labels: memoryview
    ) -> tuple[Buffer, Buffer]:
        """A finished batch in 64-byte aligned memory, recycled when its last Tensor is gone."""
        images = Buffer(self._finished_bytes * (len(words) // 4))
        self._assemble(view(images), samples, words)
        targets = Buffer(labels.nbytes)
        view(targets)[:] = labels
        return images, targets

    def finish(self, gathered: tuple[Buffer, Buffer]) -> tuple[Buffer, Buffer]:
        """The memory of x and of the labels."""
        return gathered
