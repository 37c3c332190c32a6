"""Derivatives of every normalization to the fifth order, beside forty digits and beside PyTorch.

    python -m examples.high_order [--device cpu] [--seed 0] [--markdown]

A column "reverse n" is the n-th gradient of a random weighting of the outputs, each gradient
weighted by another random direction; "forward n" nests n Jacobian-vector products; "mixed"
differentiates forwards, twice, what was differentiated backwards. All is float64. The reference
computes the same numbers with 40 digits from the textbook formulas alone (`examples/multidual.py`);
printed is the largest difference from it, relative to the largest entry.

What to see: ours stays at the rounding of float64 in every column. PyTorch's batch, layer and
instance norm are wrong in the first digits from the third gradient and from the second
Jacobian-vector product on, and raise no error.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import minigrad as mg
from examples.multidual import derivative
from minigrad import Tensor

EPS = 1e-3
REVERSE, FORWARD = 5, 3
COLUMNS = [f"reverse {n}" for n in range(1, REVERSE + 1)]
COLUMNS += [f"forward {n}" for n in range(1, FORWARD + 1)] + ["mixed"]
Numbers = list[Any]


@dataclass(frozen=True)
class Case:
    """A normalization of x: as minigrad computes it, as the textbook has it, as PyTorch does."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[[Tensor], Tensor]
    textbook: Callable[[Numbers], Numbers]
    torch: Callable[[Any, Any], Any] | None = None  # of the module torch and a tensor


# The textbook's formulas, on flat lists of numbers of any kind.


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
    ]  # fmt: skip


CASES = _cases()


class Probe:
    """Random numbers for a case: its point, the weights of its outputs, and directions."""

    def __init__(self, case: Case, seed: int):
        generator = random.Random(f"{case.name} {seed}")
        size = prod(case.shape)

        def row() -> list[float]:
            return [generator.gauss(0, 1) for _ in range(size)]

        self.case, self.x, self.weights = case, row(), row()
        self.directions = [row() for _ in range(REVERSE)]

    def expected(self) -> dict[str, list[Any]]:
        """Every column's numbers with 40 digits."""
        units = [[float(i == j) for j in range(len(self.x))] for i in range(len(self.x))]
        found: dict[str, list[Any]] = {}
        f, x = self.case.textbook, self.x
        for order in range(1, REVERSE + 1):
            before = self.directions[: order - 1]
            found[f"reverse {order}"] = [
                self._weighted(derivative(f, x, [*before, unit])) for unit in units
            ]
        for order in range(1, FORWARD + 1):
            found[f"forward {order}"] = derivative(f, x, self.directions[:order])
        found["mixed"] = found["reverse 3"]  # the same numbers, come by in another way
        return found

    def _weighted(self, values: list[Any]) -> Any:
        return sum(w * v for w, v in zip(self.weights, values, strict=True))


def ours(probe: Probe) -> dict[str, list[float]]:
    """Every column's numbers as minigrad computes them."""
    case = probe.case

    def tensor(numbers: Sequence[float]) -> Tensor:
        return mg.tensor(numbers, dtype=mg.float64).reshape(case.shape)

    weights, directions = tensor(probe.weights), [tensor(v) for v in probe.directions]
    found: dict[str, Tensor] = {}
    x = tensor(probe.x).requires_grad_()
    total = mg.sum(case.ours(x) * weights)
    for order in range(1, REVERSE + 1):
        found[f"reverse {order}"] = gradient = mg.gradients(total, x, create_graph=True)
        total = mg.sum(gradient * directions[order - 1])

    def pushed(f: Callable[[Tensor], Tensor], v: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: mg.jvp(f, (x,), (v,))[1]

    f = case.ours
    for order in range(1, FORWARD + 1):
        f = pushed(f, directions[order - 1])
        found[f"forward {order}"] = f(tensor(probe.x))
    once = mg.grad(lambda x: mg.sum(case.ours(x) * weights))
    found["mixed"] = pushed(pushed(once, directions[0]), directions[1])(tensor(probe.x))
    mg.evaluate(*found.values())
    return {column: t.flatten().tolist() for column, t in found.items()}


def pytorchs(probe: Probe) -> dict[str, list[float]] | None:
    """Every column's numbers as PyTorch computes them; None where it has no such function."""
    norm = probe.case.torch
    if norm is None or importlib.util.find_spec("torch") is None:
        return None
    import torch

    def tensor(numbers: Sequence[float]) -> Any:
        return torch.tensor(numbers, dtype=torch.float64).reshape(probe.case.shape)

    weights, directions = tensor(probe.weights), [tensor(v) for v in probe.directions]
    found: dict[str, Any] = {}
    x = tensor(probe.x).requires_grad_()
    total = (norm(torch, x) * weights).sum()
    for order in range(1, REVERSE + 1):
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        found[f"reverse {order}"] = gradient
        total = (gradient * directions[order - 1]).sum()

    def pushed(f: Callable[[Any], Any], v: Any) -> Callable[[Any], Any]:
        return lambda x: torch.func.jvp(f, (x,), (v,))[1]

    f: Callable[[Any], Any] = partial(norm, torch)
    for order in range(1, FORWARD + 1):
        f = pushed(f, directions[order - 1])
        found[f"forward {order}"] = f(tensor(probe.x))
    once = torch.func.grad(lambda x: (norm(torch, x) * weights).sum())
    found["mixed"] = pushed(pushed(once, directions[0]), directions[1])(tensor(probe.x))
    return {column: t.detach().flatten().tolist() for column, t in found.items()}


def error(found: Sequence[float], expected: Sequence[Any]) -> float:
    """The largest difference, relative to the largest entry."""
    worst = max(abs(f - e) for f, e in zip(found, expected, strict=True))
    return float(worst / max(map(abs, expected)))


def table(seed: int, markdown: bool) -> list[str]:
    """The rows: each case's errors, ours and PyTorch's."""
    rows = [["normalization", "of", *COLUMNS]]
    for case in CASES:
        probe = Probe(case, seed)
        expected = probe.expected()
        for who, found in (("minigrad", ours(probe)), ("PyTorch", pytorchs(probe))):
            if found is not None:
                errors = [f"{error(found[c], expected[c]):.0e}" for c in COLUMNS]
                rows.append([case.name, who, *errors])
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        return ["| " + " | ".join(row) + " |" for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", help="cpu or cuda; default: the default device")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    if options.device:
        mg.set_default_device(options.device)
    print("Largest error relative to the largest entry, float64, reference with 40 digits:\n")
    print("\n".join(table(options.seed, options.markdown)))


if __name__ == "__main__":
    main()
