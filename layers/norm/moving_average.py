"""Exponential moving averages of tensors, in TensorFlow's convention."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer, Module
from minigrad import Tensor


class ExponentialMovingAverage(Module):
    """Averages ("shadows") of tensors by name: shadow = decay * shadow + (1 - decay) * value.

    >>> import layers, minigrad as mg
    >>> average = layers.ExponentialMovingAverage(0.5, mean=(1,))
    >>> for batch in (4.0, 4.0, 1.0):
    ...     average.apply(mean=mg.tensor([batch]))
    >>> average.average("mean").tolist()
    [2.0]

    Source: tf.train.ExponentialMovingAverage; with zero_debias Kingma & Ba 2015, arXiv:1412.6980,
    section 3.

    Args:
        decay: the weight kept, in [0, 1].
        num_updates: None, or a count n of updates made so far, a number or a tensor that is read at
            each `apply`: the decay is then min(decay, (1 + n) / (10 + n)).
        zero_debias: divide what started at 0 by 1 minus the product of the decays.
        initial: for each name a shape, whose shadow starts at 0 (as TensorFlow's of tensors), or a
            tensor, whose shadow starts at its value (as those of variables).
    State: the shadows, and for zero_debias the product of decays: part of the state dict.
    """

    def __init__(
        self,
        decay: float,
        num_updates: int | Tensor | None = None,
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
        self.decay, self.zero_debias = decay, zero_debias
        self.num_updates = Buffer(num_updates) if isinstance(num_updates, Tensor) else num_updates
        self.names = tuple(initial)
        for name, start in initial.items():
            shadow = start if isinstance(start, Tensor) else mg.zeros(start)
            setattr(self, f"shadow_{name}", Buffer(shadow))
        self.debiased = tuple(n for n, start in initial.items() if not isinstance(start, Tensor))
        self.forgotten = Buffer(mg.ones(()))  # the weight that the start still has
