"""Every normalization as its paper writes it, beside minigrad's and PyTorch's: for `high_order`.

A formula takes and gives flat lists of numbers of any kind that knows +, -, *, / and **.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, prod
from typing import Any

import minigrad as mg
from examples.multidual import real
from minigrad import Tensor

EPS = 1e-3
Numbers = list[Any]


@dataclass(frozen=True)
class Case:
    """A normalization of x: as minigrad computes it, as the textbook has it, as PyTorch does."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[[Tensor], Tensor]
    textbook: Callable[[Numbers], Numbers]
    torch: Callable[[Any, Any], Any] | None = None  # of the module torch and a tensor


def standardized(x: Numbers) -> Numbers:
    """(x - mean) / sqrt(variance + eps) of one set."""
    mean = sum(x) / len(x)
    centred = [xi - mean for xi in x]
    inverse = (sum(c * c for c in centred) / len(x) + EPS) ** -0.5
    return [c * inverse for c in centred]


def scaled(x: Numbers) -> Numbers:
    """x / sqrt(mean of squares + eps) of one set."""
    inverse = (sum(xi * xi for xi in x) / len(x) + EPS) ** -0.5
    return [xi * inverse for xi in x]


def weight_normalized(v: Numbers) -> Numbers:
    """v / ||v|| of one filter."""
    inverse = sum(vi * vi for vi in v) ** -0.5
    return [vi * inverse for vi in v]


def responses(x: Numbers) -> Numbers:
    """x / (1 + alpha / n * sum of the squares of n neighbours) ** 0.75, with n = 3, alpha = 0.5."""
    padded = [0, *x, 0]
    around = [sum(p * p for p in padded[i : i + 3]) for i in range(len(x))]
    return [xi * (s * (0.5 / 3) + 1) ** -0.75 for xi, s in zip(x, around, strict=True)]


def each(
    sets: Sequence[Sequence[int]], f: Callable[[Numbers], Numbers]
) -> Callable[[Numbers], Numbers]:
    """f applied to every set of positions."""

    def normalize(x: Numbers) -> Numbers:
        y = list(x)
        for places in sets:
            for place, value in zip(places, f([x[i] for i in places]), strict=True):
                y[place] = value
        return y

    return normalize


def along(shape: tuple[int, ...], axes: Sequence[int]) -> list[list[int]]:
    """The sets of flat positions that extend along `axes`, one for each index of the others."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for place in range(prod(shape)):
        index, rest = [], place
        for n in reversed(shape):
            index.append(rest % n)
            rest //= n
        index.reverse()
        sets.setdefault(tuple(i for a, i in enumerate(index) if a not in axes), []).append(place)
    return list(sets.values())


def renormalized(x: Numbers) -> Numbers:
    """Batch renormalization of one set by a running mean of 0.5 and a running deviation of 2.

    r = std / 2 and d = (mean - 0.5) / 2 are constants of differentiation, here within their limits.
    """
    values = [real(xi) for xi in x]
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values) + EPS) ** 0.5
    return [xi * (std / 2) + (mean - 0.5) / 2 for xi in standardized(x)]


def centred_and_bent(x: Numbers) -> Numbers:
    """c / sqrt(1 + c * c), c = x - mean: mean-only batch norm alone would be linear."""
    centred = [xi - sum(x) / len(x) for xi in x]
    return [c * (1 + c * c) ** -0.5 for c in centred]


def filter_responses(x: Numbers) -> Numbers:
    """max(x / sqrt(mean of squares + eps), -0.25) of one set."""
    return [y if real(y) > -0.25 else -0.25 for y in scaled(x)]


def spectrally_normalized(w: Numbers) -> Numbers:
    """W / (u' W v) of a matrix of 2 rows, with u = (0.6, 0.8) and v = (0.48, 0.6, 0.64)."""
    u, v = (0.6, 0.8), (0.48, 0.6, 0.64)
    sigma = sum(w[3 * i + j] * (u[i] * v[j]) for i in range(2) for j in range(3))
    return [wi / sigma for wi in w]


def propagated(w: Numbers) -> Numbers:
    """(relu(w x / ||w||) - E relu(Z)) / std relu(Z) of one filter, for three inputs x."""
    mean, std = 1 / (2 * pi) ** 0.5, ((1 - 1 / pi) / 2) ** 0.5
    length = weight_normalized(w)
    sums = [sum(li * xi for li, xi in zip(length, x, strict=True)) for x in INPUTS]
    return [((y if real(y) > 0 else 0) - mean) * (1 / std) for y in sums]


INPUTS = [[1.0, -0.5, 2.0], [0.25, 1.5, -1.0], [-1.0, 0.5, 0.75]]


def decorrelated(x: Numbers) -> Numbers:
    """(cov + eps I) ** -0.5 (x - mean) of 5 samples with 2 channels, by 5 steps of Newton's."""
    columns = [x[0::2], x[1::2]]
    z = [[v - sum(c) / 5 for v in c] for c in columns]
    m = [[sum(p * q for p, q in zip(a, b, strict=True)) / 5 for b in z] for a in z]
    m[0][0], m[1][1] = m[0][0] + EPS, m[1][1] + EPS
    trace = m[0][0] + m[1][1]
    y: list[Numbers] = [[v / trace for v in row] for row in m]
    root: list[Numbers] = [[1, 0], [0, 1]]
    for _ in range(5):
        zy = _product(root, y)
        t = [[1.5 * (i == j) - 0.5 * zy[i][j] for j in range(2)] for i in range(2)]
        y, root = _product(y, t), _product(t, root)
    white = _product([[v * trace**-0.5 for v in row] for row in root], z)
    return [white[c][n] for n in range(5) for c in range(2)]


def _product(a: list[Numbers], b: list[Numbers]) -> list[Numbers]:
    columns = list(zip(*b, strict=True))
    return [[sum(p * q for p, q in zip(row, c, strict=True)) for c in columns] for row in a]


def bent(c: Tensor) -> Tensor:
    """c / sqrt(1 + c * c)."""
    return c * mg.rsqrt(1 + c * c)


def constant(value: float, n: int) -> Tensor:
    """n equal numbers, never updated by another case."""
    return mg.full((n,), value, dtype="float64")


def _cases() -> list[Case]:
    batch, rows, maps = (5, 2), (2, 5), (1, 4, 3)
    pixels, grouped = (2, 1, 2, 3), (1, 2, 2, 3)
    return [
        Case(
            "batch norm", batch,
            lambda x: mg.nn.batch_norm(x, training=True, eps=EPS),
            each(along(batch, [0]), standardized),
            lambda torch, x: torch.nn.functional.batch_norm(x, None, None, training=True, eps=EPS),
        ),
        Case(
            "layer norm", rows,
            lambda x: mg.nn.layer_norm(x, 5, eps=EPS),
            each(along(rows, [1]), standardized),
            lambda torch, x: torch.nn.functional.layer_norm(x, (5,), eps=EPS),
        ),
        Case(
            "group norm", maps,
            lambda x: mg.nn.group_norm(x, 2, eps=EPS),
            each(along(grouped, [2, 3]), standardized),
            lambda torch, x: torch.nn.functional.group_norm(x, 2, eps=EPS),
        ),
        Case(
            "instance norm", pixels,
            lambda x: mg.nn.instance_norm(x, eps=EPS),
            each(along(pixels, [2, 3]), standardized),
            lambda torch, x: torch.nn.functional.instance_norm(x, eps=EPS),
        ),
        Case(
            "RMS norm", rows,
            lambda x: mg.nn.rms_norm(x, 5, eps=EPS),
            each(along(rows, [1]), scaled),
            lambda torch, x: torch.nn.functional.rms_norm(x, (5,), eps=EPS),
        ),
        Case(
            "local response norm", (2, 5, 1, 1),
            lambda x: mg.nn.local_response_norm(x, 3, alpha=0.5),
            each(along((2, 5, 1, 1), [1]), responses),
            lambda torch, x: torch.nn.functional.local_response_norm(x, 3, alpha=0.5),
        ),
        Case(
            "batch renorm", batch,
            lambda x: mg.nn.batch_renorm(
                x, constant(0.5, 2), constant(2.0, 2), training=True, eps=EPS, r_max=9.0, d_max=9.0
            ),
            each(along(batch, [0]), renormalized),
        ),
        Case(
            "mean-only batch norm, bent", batch,
            lambda x: bent(mg.nn.mean_only_batch_norm(x, constant(0.0, 2), training=True)),
            each(along(batch, [0]), centred_and_bent),
        ),
        Case(
            "decorrelated batch norm", batch,
            lambda x: mg.nn.decorrelated_batch_norm(x, training=True, eps=EPS),
            decorrelated,
        ),
        Case(
            "filter response norm", pixels,
            lambda x: mg.nn.filter_response_norm(x, threshold=constant(-0.25, 1), eps=EPS),
            each(along(pixels, [2, 3]), filter_responses),
        ),
        Case(
            "weight norm", rows,
            lambda v: mg.nn.weight_norm(v, constant(1.0, 2)),
            each(along(rows, [1]), weight_normalized),
        ),
        Case(
            "weight standardization", rows,
            lambda w: mg.nn.weight_standardization(w, eps=EPS),
            each(along(rows, [1]), standardized),
        ),
        Case(
            "spectral norm", (2, 3),
            lambda w: mg.nn.spectral_norm(
                w, mg.tensor([0.6, 0.8], "float64"), mg.tensor([0.48, 0.6, 0.64], "float64")
            ),
            spectrally_normalized,
        ),
        Case(
            "normalization propagation", (1, 3),
            lambda w: mg.nn.propagate(
                mg.tensor(INPUTS, "float64") @ mg.nn.weight_norm(w, constant(1.0, 1)).T
            ).T,
            propagated,
        ),
    ]  # fmt: skip


CASES = _cases()
