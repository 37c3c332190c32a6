"""Batch transforms. They only describe themselves; DataLoader runs them all in one pass.

A fixed set of ideas (scale, crop, flip) composed into one `BatchPlan` replaces a chain of passes
over memory, and makes the random numbers of a batch a small table that any assembler can follow.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, cast

from minigrad.backend.batches import Assembly
from minigrad.creation import asarray

if TYPE_CHECKING:
    from random import Random

    from minigrad.tensor import Tensor

__all__ = ["Compose", "Normalize", "RandomCrop", "RandomHorizontalFlip"]


class Normalize:
    """y = (x - mean) / std, per channel.

    Args:
        mean, std: one number per channel, or one for all, in the units of x. DataLoader divides by
            the data set's full scale first, so for images x is in 0..1.
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]):
        self.mean, self.std = _numbers(mean, "mean"), _numbers(std, "std")
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise ValueError(
                "Normalize: expected mean and std of one length, "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"Normalize.std: expected positive numbers, got {self.std}.")

    def __call__(self, x: Tensor) -> Tensor:
        """The same on a batch of floats (N, C, *spatial)."""

        def per_channel(values: tuple[float, ...]) -> Tensor:
            column = asarray(list(values), dtype=x.dtype, device=x.device)
            return column.reshape((len(values),) + (1,) * (len(x.shape) - 2))

        return (x - per_channel(self.mean)) / per_channel(self.std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class RandomCrop:
    """A window of the image at a random place, surrounded by `padding` black pixels first.

    Black is the stored value 0 wherever the crop stands in a chain, also after Normalize.

    Args:
        size: side of the window, or (height, width), in pixels.
        padding: pixels added on every side before cropping.
    """

    def __init__(self, size: int | tuple[int, int], padding: int = 0):
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or not all(_is_int(n) and n > 0 for n in pair):
            raise ValueError(f"RandomCrop.size: expected one or two ints > 0, got {size!r}.")
        if not _is_int(padding) or padding < 0:
            raise ValueError(f"RandomCrop.padding: expected an int >= 0, got {padding!r}.")
        self.size, self.padding = cast("tuple[int, int]", pair), padding

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, padding={self.padding})"


class RandomHorizontalFlip:
    """Mirror left and right, with probability `p` for each image (in steps of 1/65536)."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip.p: expected a number in [0, 1], got {p}.")
        self.p = p

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p})"


class Compose:
    """Several transforms, first to last. One may be any callable `batch -> batch` on Tensors."""

    def __init__(self, transforms: Sequence[Any]):
        self.transforms = tuple(transforms)

    def __repr__(self) -> str:
        return f"Compose({list(self.transforms)})"


@dataclass(frozen=True)
class BatchPlan:
    """All transforms as one pass: y[i, j] = x[top + i, left + j] * scale + shift, or mirrored.

    Attributes:
        geometry: (C, H, W) of a stored sample; (1, 1, size) when a sample is not an image.
        shape: shape of a finished sample.
        scale, shift: per channel; from stored values to finished ones.
        crop: (height, width) of a finished image; equals (H, W) without a crop.
        places: how many values `top` and `left` can take; (1, 1) without a crop.
        padding: the first of these values is -padding.
        flip: probability of mirroring, in 1/65536.
        after: callables on the finished batch.
    """

    geometry: tuple[int, int, int]
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    crop: tuple[int, int]
    places: tuple[int, int] = (1, 1)
    padding: int = 0
    flip: int = 0
    after: tuple[Callable[[Any], Any], ...] = ()

    def assembly(self, code: str) -> Assembly:
        """The part of it that a device does, for stored values of format `code`, "B" or "f"."""
        return Assembly(code, self.geometry, self.crop, self.scale, self.shift)

    def draw(self, rows: Sequence[int], rng: Random) -> array[int]:
        """Four int64 words per sample of a batch: row, top, left, mirrored.

        16 random bits scaled to the range: off from uniform by less than range / 65536.
        """
        n = len(rows)
        if self.places == (1, 1) and not self.flip:
            top, left, mirrored = [-self.padding] * n, [-self.padding] * n, [0] * n
        else:
            down, right = self.places
            pad, flip = self.padding, self.flip
            bits = array("H", rng.randbytes(6 * n))
            top = [(r * down >> 16) - pad for r in bits[:n]]
            left = [(r * right >> 16) - pad for r in bits[n : 2 * n]]
            mirrored = [r < flip for r in bits[2 * n :]]
        words = array("q", bytes(32 * n))
        for i, column in enumerate((rows, top, left, mirrored)):
            words[i::4] = array("q", column)
        return words


def plan_batches(transform: Any, shape: tuple[int, ...], full_scale: float) -> BatchPlan:
    """The plan for samples of `shape` under a transform: None, one of this file's, or a callable.

    Raises:
        ValueError: a transform does not fit the images, or cannot be merged into one pass.
        TypeError: something that is no transform.
    """
    steps = _flattened(transform)
    for kind in (RandomCrop, RandomHorizontalFlip):
        found = [str(step) for step in steps if isinstance(step, kind)]
        if len(found) > 1:
            raise ValueError(f"transform: expected one {kind.__name__}, got {', '.join(found)}.")
    channels, height, width = shape if len(shape) == 3 else (1, 1, prod(shape))
    plan = BatchPlan(
        (channels, height, width), shape, (1 / full_scale,) * channels, (0.0,) * channels,
        crop=(height, width),
    )  # fmt: skip
    for step in steps:
        plan = replace(plan, **_changes(plan, step))
    return plan


def _changes(plan: BatchPlan, step: Any) -> dict[str, Any]:
    """The attributes of a plan that one more transform changes."""
    if isinstance(step, RandomCrop | RandomHorizontalFlip):
        if len(plan.shape) != 3:
            raise ValueError(f"{step}: expected samples (C, H, W), got shape {plan.shape}.")
        if plan.after:
            raise ValueError(
                f"{step}: expected to stand before {plan.after[0]!r}, which works on whole "
                "tensors. Put crops and flips first."
            )
        return (
            _cropped(plan, step)
            if isinstance(step, RandomCrop)
            else {"flip": round(step.p * 65536)}
        )
    if isinstance(step, Normalize) and not plan.after:
        means, stds = (_per_channel(step, v, len(plan.scale)) for v in (step.mean, step.std))
        shifted = zip(plan.shift, means, stds, strict=True)
        return {
            "scale": tuple(a / s for a, s in zip(plan.scale, stds, strict=True)),
            "shift": tuple((b - m) / s for b, m, s in shifted),
        }
    if callable(step):
        return {"after": (*plan.after, step)}
    raise TypeError(f"transform: expected a callable on a batch, got {step!r}.")


def _cropped(plan: BatchPlan, step: RandomCrop) -> dict[str, Any]:
    channels, *sides = plan.geometry
    padded = tuple(side + 2 * step.padding for side in sides)
    places = tuple(side - n + 1 for side, n in zip(padded, step.size, strict=True))
    if min(places) < 1:
        raise ValueError(
            f"{step}: expected a window within the padded image {padded}, got {step.size}. "
            "Use a smaller size or more padding."
        )
    shape = (channels, *step.size)
    return {"shape": shape, "crop": step.size, "places": places, "padding": step.padding}


def _flattened(transform: Any) -> list[Any]:
    if transform is None:
        return []
    if isinstance(transform, Compose):
        return [step for part in transform.transforms for step in _flattened(part)]
    return [transform]


def _per_channel(step: Normalize, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ValueError(f"{step}: expected 1 or {channels} numbers, got {len(values)}.")
    return values if len(values) == channels else values * channels


def _numbers(values: float | Sequence[float], name: str) -> tuple[float, ...]:
    numbers = (values,) if isinstance(values, int | float) else tuple(values)
    if not numbers or not all(isinstance(value, int | float) for value in numbers):
        raise TypeError(f"Normalize.{name}: expected a number or one per channel, got {values!r}.")
    return tuple(float(value) for value in numbers)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
