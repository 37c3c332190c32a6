"""Batch normalization: the automatic derivative next to the hand-derived ones, as a table.

    python -m examples.batchnorm_gradients [--device cpu] [--seed 0]

First the nine steps of the derivation with their numbers on four values, then for each case the
largest difference between what minigrad derives and (a) the chain rule stage by stage, (b) the
closed form, both by hand (`examples/batchnorm_by_hand.py`), (c) central differences. By hand and by
differences everything is computed in float64 from the numbers the layer saw, so the rows in float32
show the error of the layer alone. What is done by hand runs under `mg.eager()`, op by op as
written; the layer runs as users run it, fused.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import minigrad as mg
from examples.batchnorm_by_hand import (
    Gradients,
    backward_in_stages,
    channel_sum,
    flat,
    forward_in_stages,
    inference_closed_form,
    inference_in_stages,
    training_closed_form,
    training_in_stages,
)
from layers import BatchNorm
from minigrad import Tensor

BOUNDS = {"float64": 1e-10, "float32": 1e-4}  # by hand
DIFFERENCES_BOUND = {"float64": 1e-7, "float32": 1e-4}


@dataclass(frozen=True)
class Case:
    """One row of the table: x is `mean + scale * N(0, 1)` of shape (N, C) or (N, C, H, W)."""

    name: str
    shape: tuple[int, ...]
    training: bool = True
    affine: bool = True
    dtype: str = "float64"
    mean: float = 0.0
    scale: float = 1.0
    eps: float = 1e-5


FULLY_CONNECTED, CONVOLUTION = (6, 3), (2, 3, 2, 2)
REGULAR = [
    Case(f"{kind} {mode}{'' if affine else ', no affine'}", shape, mode == "train", affine, dtype)
    for dtype in ("float64", "float32")
    for kind, shape in (("FC", FULLY_CONNECTED), ("conv", CONVOLUTION))
    for mode in ("train", "eval")
    for affine in (True, False)
]
HARD = [
    case
    for dtype in ("float64", "float32")
    for case in (
        Case("one value per channel", (1, 3), dtype=dtype),
        Case("two values per channel", (2, 3), dtype=dtype),
        Case("constant channels", (4, 2), dtype=dtype, mean=3.0, scale=0.0),
        Case("mean 10 000, variance 1", (3, 2, 2, 2), dtype=dtype, mean=1e4),
        Case("mean 10 000, variance 1, eval", (3, 2, 2, 2), False, dtype=dtype, mean=1e4),
        Case("scale 1e-6", (6, 2), dtype=dtype, scale=1e-6),
        Case("scale 1e6", (6, 2), dtype=dtype, scale=1e6),
    )
]


class Data(NamedTuple):
    """The inputs of one case; mean and var are the statistics that inference uses."""

    x: Tensor
    gamma: Tensor
    beta: Tensor
    g: Tensor
    mean: Tensor
    var: Tensor

    def astype(self, dtype: str) -> Data:
        """The same numbers, in another type."""
        return Data(*(mg.astype(t, dtype) for t in self))


def draw(case: Case, seed: int) -> Data:
    """Random inputs. The cotangent g is random too: for a plain sum, every dx would be 0."""
    channels = (case.shape[1],)
    count = 2 * math.prod(case.shape) + 4 * case.shape[1]
    numbers = mg.random.normal((count,), dtype="float64", generator=mg.random.Generator(seed))
    stream = iter(numbers.tolist())

    def tensor(shape: tuple[int, ...], f: Callable[[float], float] = float) -> Tensor:
        values = [f(next(stream)) for _ in range(math.prod(shape))]
        return mg.reshape(mg.tensor(values, dtype=case.dtype), shape)

    return Data(
        x=tensor(case.shape, lambda z: case.mean + case.scale * z),
        gamma=tensor(channels, lambda z: 1 + 0.5 * z if case.affine else 1),
        beta=tensor(channels, lambda z: z if case.affine else 0),
        g=tensor(case.shape),
        mean=tensor(channels, lambda z: case.mean + case.scale * z),
        var=tensor(channels, lambda z: case.scale**2 * (0.5 + abs(z))),
    )


def layer_of(case: Case, data: Data) -> BatchNorm:
    """The layer, holding the case's parameters and, for inference, its statistics."""
    layer = BatchNorm(
        case.shape[1],
        case.eps,
        affine=case.affine,
        track_running_stats=not case.training,  # a check is no step: nothing may be updated
        allow_degenerate=True,
    )
    state = {"weight": data.gamma, "bias": data.beta} if case.affine else {}
    if not case.training:
        state |= {"running_mean": data.mean, "running_var": data.var}
    layer.to(case.dtype).train(case.training).load_state_dict(state, strict=False)
    return layer


def automatic(case: Case, data: Data) -> Gradients:
    """What minigrad derives. Without affine there are no parameters: dgamma and dbeta are 0."""
    layer = layer_of(case, data)
    x = mg.tensor(data.x, requires_grad=True)
    y = layer(x)
    if layer.weight is None or layer.bias is None:
        return without_affine(*mg.gradients([y], [x], [data.g]), case)
    return Gradients(*mg.gradients([y], [x, layer.weight, layer.bias], [data.g]))


@mg.eager()
def by_hand(case: Case, data: Data) -> tuple[Gradients, Gradients]:
    """Stage by stage and in closed form, in float64."""
    x, gamma, _, g, mean, var = data.astype("float64")
    with mg.no_grad():
        if case.training:
            stages = training_in_stages(x, gamma, g, case.eps)
            closed = training_closed_form(x, gamma, g, case.eps)
        else:
            stages = inference_in_stages(x, gamma, g, mean, var, case.eps)
            closed = inference_closed_form(x, gamma, g, mean, var, case.eps)
    if case.affine:
        return stages, closed
    return without_affine(stages.dx, case), without_affine(closed.dx, case)


def without_affine(dx: Tensor, case: Case) -> Gradients:
    """The gradients of a layer that has no parameters."""
    zero = mg.zeros((case.shape[1],), dtype=dx.dtype)
    return Gradients(dx, zero, zero)


def central_differences(case: Case, data: Data) -> Gradients:
    """Every element of x, gamma and beta moved by h and 2h to both sides, in float64."""
    case, data = replace(case, dtype="float64"), data.astype("float64")
    h = 1e-3 * mg.min(deviation(case, data)).item()  # y changes by about 1 over one deviation

    def loss(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        layer = layer_of(case, data._replace(gamma=gamma, beta=beta))
        return mg.sum(data.g * layer(x))

    x, gamma, beta = data.x, data.gamma, data.beta
    with mg.no_grad():
        dx = slopes(lambda v: loss(v, gamma, beta), x, h)
        if not case.affine:
            return without_affine(dx, case)
        dgamma = slopes(lambda v: loss(x, v, beta), gamma, 1e-2)
        dbeta = slopes(lambda v: loss(x, gamma, v), beta, 1e-2)
    return Gradients(dx, dgamma, dbeta)


def slopes(f: Callable[[Tensor], Tensor], at: Tensor, h: float) -> Tensor:
    """The derivative of the scalar f by each element of `at`, with an error of order h^4.

    f' = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h
    """
    values = flat(at).tolist()

    def moved(i: int, by: float) -> float:
        changed = [*values[:i], values[i] + by, *values[i + 1 :]]
        return f(mg.reshape(mg.tensor(changed, dtype=at.dtype), at.shape)).item()

    found = [
        (8 * (moved(i, h) - moved(i, -h)) - (moved(i, 2 * h) - moved(i, -2 * h))) / (12 * h)
        for i in range(len(values))
    ]
    return mg.reshape(mg.tensor(found, dtype=at.dtype), at.shape)


@mg.eager()
def deviation(case: Case, data: Data) -> Tensor:
    """What the layer divides by, for each channel: sqrt(var + eps)."""
    x, gamma, beta, _, _, var = data.astype("float64")
    if case.training:
        return flat(forward_in_stages(x, gamma, beta, case.eps).std)
    return mg.sqrt(var + case.eps)


@mg.eager()
def largest_terms(case: Case, data: Data) -> Gradients:
    """The size of the terms that each formula adds up: what a difference is relative to.

    Not of the result: with two values per channel the terms of dx cancel down to eps / var.
    """
    gamma, g = data.gamma.astype("float64"), mg.max(mg.abs(data.g.astype("float64")))
    return Gradients(g * mg.max(mg.abs(gamma) / deviation(case, data)), g, g)


@mg.eager()
def relative_difference(found: Gradients, expected: Gradients, terms: Gradients) -> list[float]:
    """For dx, dgamma and dbeta: max |found - expected| over the size of the terms."""
    return [
        mg.max(mg.abs(a.astype("float64") - b)).item() / size.item()
        for a, b, size in zip(found, expected, terms, strict=True)
    ]


class Row(NamedTuple):
    """The automatic derivative's differences for (dx, dgamma, dbeta)."""

    case: Case
    stages: list[float]
    closed: list[float]
    differences: list[float]

    @property
    def passed(self) -> bool:
        """Whether every difference is within the bound of the case's type."""
        dtype = self.case.dtype
        return max(self.stages + self.closed) <= BOUNDS[dtype] and (
            max(self.differences) <= DIFFERENCES_BOUND[dtype]
        )


def compare(case: Case, seed: int) -> Row:
    """One row of the table."""
    data = draw(case, seed)
    terms, found = largest_terms(case, data), automatic(case, data)
    stages, closed = by_hand(case, data)
    expected = (stages, closed, central_differences(case, data))
    return Row(case, *(relative_difference(found, e, terms) for e in expected))


def table(rows: list[Row]) -> str:
    """The rows as text: for each gradient, its three differences."""
    lines = [
        f"{'':41}{'stage by stage':^27}{'closed form':^27}{'central differences':^27}",
        f"{'case':32}{'type':9}" + 3 * f"{'dx':>8} {'dgamma':>8} {'dbeta':>8} ",
    ]
    for row in rows:
        numbers = ""
        for dx, dgamma, dbeta in (row.stages, row.closed, row.differences):
            numbers += f"{dx:8.0e} "
            numbers += f"{dgamma:8.0e} {dbeta:8.0e} " if row.case.affine else f"{'-':>8} {'-':>8} "
        mark = "" if row.passed else "  above the bound"
        lines.append(f"{row.case.name:32}{row.case.dtype:9}{numbers}{mark}".rstrip())
    return "\n".join(line.rstrip() for line in lines)


FORMULAS = {
    "mu": "sum(x) / n",
    "xmu": "x - mu",
    "sq": "xmu * xmu",
    "var": "sum(sq) / n",
    "std": "sqrt(var + eps)",
    "inv": "1 / std",
    "xhat": "xmu * inv",
    "scaled": "gamma * xhat",
    "y": "scaled + beta",
    "dbeta": "sum(g)",
    "dscaled": "g",
    "dgamma": "sum(dscaled * xhat)",
    "dxhat": "gamma * dscaled",
    "dinv": "sum(dxhat * xmu)",
    "dxmu1": "dxhat * inv",
    "dstd": "-dinv / std^2",
    "dvar": "dstd / (2 std)",
    "dsq": "dvar / n",
    "dxmu2": "2 xmu dsq",
    "dxmu": "dxmu1 + dxmu2",
    "dmu": "-sum(dxmu)",
    "dx": "dxmu + dmu / n",
}
GOLDEN = "x = 1, 3, 5, 7 with gamma = 2, beta = 0.5, eps = 0.001, g = 1, 0, 0, 0"
STEP = {"dbeta": 9, "dgamma": 8, "dinv": 7, "dstd": 6, "dvar": 5, "dsq": 4, "dxmu2": 3, "dxmu": 2}
STEP |= {"mu": 1, "xmu": 2, "sq": 3, "var": 4, "std": 5, "inv": 6, "xhat": 7, "scaled": 8, "y": 9}
STEP |= {"dx": 1}


@mg.eager()
def nine_steps() -> str:
    """The derivation with the numbers of `GOLDEN`, one line a stage."""

    def column(*values: float) -> Tensor:
        return mg.reshape(mg.tensor(values, dtype="float64"), (-1, 1))

    x, g = column(1, 3, 5, 7), column(1, 0, 0, 0)
    gamma, beta = mg.tensor([2.0], dtype="float64"), mg.tensor([0.5], dtype="float64")
    forward = forward_in_stages(x, gamma, beta, 1e-3)
    backward = backward_in_stages(g, gamma, forward)
    lines = []
    for stages in (forward, backward):
        for name, value in stages._asdict().items():
            numbers = "".join(f"{v:13.8f}" for v in flat(value).tolist())
            lines.append(f"{STEP.get(name, ''):>4}  {name:8}= {FORMULAS[name]:21}{numbers}")
        lines.append("")
    total = channel_sum(backward.dx).item()
    lines[-1] = f"      sum(dx) = {total:.1e}: a common shift of x changes nothing"
    return "\n".join(lines)


def float32_by_hand(seed: int) -> str:
    """Why the layer centres on a sample first: the formulas by hand in float32 at a large mean."""
    case = Case("", (32, 2, 8, 8), dtype="float32", mean=1e4)
    data = draw(case, seed)
    terms, (exact, _) = largest_terms(case, data), by_hand(case, data)
    with mg.eager():
        stages = training_in_stages(data.x, data.gamma, data.g, case.eps)
        closed = training_closed_form(data.x, data.gamma, data.g, case.eps)
    ways = {"automatic": automatic(case, data), "stage by stage": stages, "closed form": closed}
    lines = [
        f"{name:18}" + "".join(f"{d:10.0e}" for d in relative_difference(found, exact, terms))
        for name, found in ways.items()
    ]
    return "\n".join([f"{'':18}{'dx':>10}{'dgamma':>10}{'dbeta':>10}", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 0 if every difference is within its bound, else 1."""
    parser = argparse.ArgumentParser(description="BatchNorm by hand and automatically.")
    parser.add_argument("--device", default=None, help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.device is not None:
        mg.set_default_device(options.device)

    print(f"The nine steps on {GOLDEN}\n")
    print(nine_steps())
    print("\nAutomatic against each other way, relative to the largest term of the formula\n")
    rows = [compare(case, options.seed) for case in REGULAR + HARD]
    print(table(rows))
    print("\nAll in float32, mean 10 000, variance 1, 2048 values a channel, against float64\n")
    print(float32_by_hand(options.seed))
    failed = [row for row in rows if not row.passed]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} cases within {BOUNDS}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
