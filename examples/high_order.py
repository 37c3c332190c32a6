"""Derivatives of every normalization to the fifth order, beside forty digits and beside PyTorch.

    python -m examples.high_order [--device cpu] [--seed 0] [--markdown]

A column "reverse n" is the n-th gradient of a random weighting of the outputs, each gradient
weighted by another random direction; "forward n" nests n Jacobian-vector products; "mixed"
differentiates forwards, twice, what was differentiated backwards. All is float64. The reference
computes the same numbers with 40 digits from the textbook formulas alone (`examples/textbook.py`);
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
from functools import partial
from math import prod
from typing import Any

import minigrad as mg
from examples.multidual import derivative
from examples.textbook import CASES, Case
from minigrad import Tensor

REVERSE, FORWARD = 5, 3
COLUMNS = [f"reverse {n}" for n in range(1, REVERSE + 1)]
COLUMNS += [f"forward {n}" for n in range(1, FORWARD + 1)] + ["mixed"]


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
