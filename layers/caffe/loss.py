"""Caffe's losses and its accuracy. Labels are class numbers, of any numeric type."""

from __future__ import annotations

import minigrad as mg
from layers.module import Module
from minigrad import Tensor

NORMALIZATIONS = ("FULL", "VALID", "BATCH_SIZE", "NONE")


class SoftmaxWithLoss(Module):
    """The multinomial logistic loss of the softmax over axis 1.

        loss = sum of -log(softmax(x)[label]) over samples and positions, divided by a number

    Shapes: x (N, C, *positions), label of N * prod(positions) elements -> a number.

    Args:
        normalization: what it is divided by: the labels but for ignored ones ("VALID"), all labels
            ("FULL"), N ("BATCH_SIZE") or 1 ("NONE").
        ignore_label: a label that counts for nothing; None: there is none.
    """

    def __init__(self, normalization: str = "VALID", ignore_label: int | None = None):
        self.normalization, self.ignore_label = _normalization(normalization), ignore_label

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        target = _labels("caffe.SoftmaxWithLoss", x, label)
        total = mg.nn.cross_entropy(x, target, reduction="sum", ignore_index=self.ignore_label)
        return total / _divisor(self.normalization, x, target, self.ignore_label)

    def extra_repr(self) -> str:
        return f"{self.normalization!r}, ignore_label={self.ignore_label}"


class SigmoidCrossEntropyLoss(Module):
    """The logistic loss of independent probabilities.

        loss = sum of -target * log(sigmoid(x)) - (1 - target) * log(1 - sigmoid(x)), over N

    Shapes: x and target alike, (N, ...) -> a number.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(x.shape).astype(x.dtype)
        total = mg.nn.binary_cross_entropy_with_logits(x, target, reduction="sum")
        return total / x.shape[0]


class EuclideanLoss(Module):
    """Half the mean squared distance: loss = sum of (x - target)**2 / (2 N).

    Shapes: x and target alike, (N, ...) -> a number.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return mg.nn.mse_loss(x, target.astype(x.dtype), reduction="sum") / (2 * x.shape[0])


class Accuracy(Module):
    """The share of samples whose label is among the `top_k` largest of axis 1; no gradient.

    A score that equals the label's counts as larger, as in Caffe.

    Shapes: x (N, C, *positions), label of N * prod(positions) elements -> a number.

    Args:
        top_k: how many scores count.
        ignore_label: a label that counts for nothing; None: there is none.
    """

    def __init__(self, top_k: int = 1, ignore_label: int | None = None):
        self.top_k, self.ignore_label = top_k, ignore_label

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        target = _labels("caffe.Accuracy", x, label)
        classes = mg.arange(x.shape[1]).reshape((1, -1, *(1,) * (x.ndim - 2))).to(x.device)
        scores = mg.stop_gradient(x)
        own = classes == mg.expand_dims(target, 1)
        score = mg.sum(mg.where(own, scores, 0.0), axis=1, keepdims=True)
        not_smaller = mg.sum((scores >= score).astype(x.dtype), axis=1)  # its own among them
        right = (not_smaller <= self.top_k).astype(x.dtype)
        if self.ignore_label is not None:
            right = mg.where(target == self.ignore_label, 0.0, right)
        return mg.sum(right) / _divisor("VALID", x, target, self.ignore_label)

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, ignore_label={self.ignore_label}"


def _normalization(name: str) -> str:
    if name not in NORMALIZATIONS:
        raise ValueError(
            f"caffe.SoftmaxWithLoss: expected normalization one of {', '.join(NORMALIZATIONS)}, "
            f"got {name!r}."
        )
    return name


def _labels(caller: str, x: Tensor, label: Tensor) -> Tensor:
    """Labels as integers of shape (N, *positions)."""
    shape = (x.shape[0], *x.shape[2:])
    if label.size * x.shape[1] != x.size:
        raise ValueError(
            f"{caller}: expected one label for each of {shape}, got label of shape {label.shape}."
        )
    return label.reshape(shape).astype(mg.int64)


def _divisor(
    normalization: str, x: Tensor, target: Tensor, ignore_label: int | None
) -> float | Tensor:
    if normalization == "VALID" and ignore_label is not None:
        return mg.maximum(mg.sum((target != ignore_label).astype(x.dtype)), 1.0)
    counts = {"BATCH_SIZE": x.shape[0], "NONE": 1}
    return float(counts.get(normalization, target.size))
