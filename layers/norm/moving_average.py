"""Exponential moving averages of tensors, in TensorFlow's convention."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer, Module
from minigrad import Tensor

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage(Module):
    """Averages ("shadows") of tensors by name: shadow = decay * shadow + (1 - decay) * value.

    >>> import layers, minigrad as mg
    >>> average = layers.ExponentialMovingAverage(0.5, mean=(1,))
    >>> for batch in (4.0, 4.0, 1.0):
    ...     average.update(mean=mg.tensor([batch]))
    >>> average.average("mean").tolist()
    [2.0]

    Source: tf.train.ExponentialMovingAverage; zero_debias: Kingma & Ba 2015, arXiv:1412.6980.

    Args:
        decay: the weight kept, in [0, 1].
        warm_up: with n updates before, the decay is min(decay, (1 + n) / (10 + n)): what TensorFlow
            does when it is given num_updates.
        zero_debias: `average` divides what started at 0 by 1 minus the product of the decays.
        initial: for each name a shape, whose shadow starts at 0 (as TensorFlow's of tensors), or a
            tensor, whose shadow starts at its value (as those of variables).
    State: the shadows, the number of updates and the product of their decays are buffers.
    Raises: ValueError for a decay out of range or no name; KeyError for an unknown name.
    """

    def __init__(
        self,
        decay: float,
        warm_up: bool = False,
        zero_debias: bool = False,
        **initial: tuple[int, ...] | Tensor,
    ):
        if not 0 <= decay <= 1:
            raise ValueError(
                f"ExponentialMovingAverage.decay: expected a weight in [0, 1], got {decay}."
            )
        if not initial:
            raise ValueError(
                "ExponentialMovingAverage: expected a name for each tensor to average, got none. "
                "Pass mean=(channels,), or weight=parameter."
            )
        self.decay, self.warm_up, self.zero_debias = decay, warm_up, zero_debias
        self.starts_at_zero = {k: isinstance(v, tuple) for k, v in initial.items()}
        self.num_updates = Buffer(mg.tensor(0.0, dtype=mg.float64))
        self.remaining = Buffer(
            mg.tensor(1.0, dtype=mg.float64)
        )  # the weight that the start still has
        for name, start in initial.items():
            shadow = mg.zeros(start) if isinstance(start, tuple) else start
            setattr(self, f"shadow_{name}", Buffer(shadow))

    def update(self, **values: Tensor) -> None:
        """Move the shadow of every name towards a new value; it is computed with what is next.

        Raises: KeyError unless each name is given once.
        """
        if values.keys() != self.starts_at_zero.keys():
            raise KeyError(
                f"ExponentialMovingAverage.update: expected {', '.join(self.starts_at_zero)}, got "
                f"{', '.join(values) or 'nothing'}."
            )
        with mg.no_grad():
            decay = self._decay()
            self.num_updates.assign(self.num_updates + 1)
            self.remaining.assign(self.remaining * decay)
            for name, value in values.items():
                shadow = self._shadow(name)
                moved = shadow * decay + value * (1 - decay)
                shadow.assign(moved.astype(shadow.dtype))

    def average(self, name: str) -> Tensor:
        """The shadow of a name; before the first update its start."""
        shadow = self._shadow(name)
        if not self.zero_debias or not self.starts_at_zero[name]:
            return shadow.detach()
        weight = 1 - self.remaining  # 0 before the first update, when the shadow is 0, too
        return (shadow / mg.where(weight == 0, 1.0, weight)).astype(shadow.dtype).detach()

    def _decay(self) -> float | Tensor:
        n = self.num_updates
        return mg.minimum((1 + n) / (10 + n), self.decay) if self.warm_up else self.decay

    def _shadow(self, name: str) -> Buffer:
        if name not in self.starts_at_zero:
            raise KeyError(
                f"ExponentialMovingAverage: expected one of {', '.join(self.starts_at_zero)}, got "
                f"{name}."
            )
        return getattr(self, f"shadow_{name}")
