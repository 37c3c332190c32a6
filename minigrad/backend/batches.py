"""The words between the data loader and a device: how stored samples become finished batches.

A backend's `batch_stage(assembly)` gives an object with two steps:

* `gather(samples, words, labels)` starts a batch and gives whatever the other step needs. `samples`
  are the bytes of all stored samples, `words` four int64 for each sample of the batch (its row,
  top, left, mirrored; see `BatchPlan.draw`), `labels` the bytes of one label each. Any thread may
  call it, and it keeps no reference to its arguments.
* `finish(gathered)` gives the memory of x (N, C, height, width) in float32 and that of the labels.
  It is called by the thread that computes with them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass


@dataclass(frozen=True)
class Assembly:
    """y[i, j] = x[top + i, left + j] * scale + shift, or mirrored; a value outside of x is 0.

    Product and sum are rounded to float64 each, the result to float32: as in Python, so every
    device gives the same bits.

    Attributes:
        code: format of the stored values, "B" (bytes) or "f" (float32).
        geometry: (C, H, W) of a stored sample.
        crop: (height, width) of a finished one.
        scale, shift: one for each channel.
    """

    code: str
    geometry: tuple[int, int, int]
    crop: tuple[int, int]
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def stored_bytes(self) -> int:
        """Of one stored sample."""
        channels, height, width = self.geometry
        return channels * height * width * (1 if self.code == "B" else 4)

    @property
    def finished_bytes(self) -> int:
        """Of one finished sample."""
        return 4 * self.geometry[0] * self.crop[0] * self.crop[1]

    def constants(self) -> array[float]:
        """What converts: for bytes the finished float32 of all 256 values, channel by channel.

        For floats the scale and shift of each channel, in float64.
        """
        pairs = zip(self.scale, self.shift, strict=True)
        if self.code == "B":
            return array("f", [value * a + b for a, b in pairs for value in range(256)])
        return array("d", [number for pair in pairs for number in pair])
