"""Checks of derivatives against finite differences."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from minigrad.creation import tensor
from minigrad.differentiate import vjp
from minigrad.dtype import float64
from minigrad.errors import GradientError
from minigrad.execution.compute import evaluate
from minigrad.tensor import Tensor
from minigrad.trees import tree_leaves, tree_rebuilt

__all__ = ["gradcheck"]

Values = list[float]


class GradcheckError(GradientError, AssertionError):
    """A derivative disagrees with finite differences."""


def gradcheck(
    f: Callable[..., Any],
    *inputs: Tensor,
    order: int = 1,
    eps: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    seed: int = 0,
) -> bool:
    """Compare the derivatives of f with central differences, along random directions.

    For a random cotangent c of the outputs, and a random direction d of each input in turn,

        <c, (f(x + h d) - f(x - h d)) / 2h>  =  <vjp(c), d>

    must hold within atol + rtol * |either side|. A plain sum of the outputs would not do as probe:
    it is constant for a normalization, whose wrong gradients can be zero as well. Order 2 checks in
    the same way the function that maps (x, c) to vjp(c), and so on for higher orders.

    Args:
        f: takes the inputs, returns a float64 tensor or a tree of them; smooth near the inputs.
        inputs: float64 tensors; integer and bool tensors among them are passed on and not checked.
        order: how many derivatives to check, 1 or more.
        eps: the step h, in units of the largest element of the input, or 1 if all are smaller.
        rtol: relative tolerance, dimensionless.
        atol: absolute tolerance, in the unit of the outputs.
        seed: of the random cotangents and directions.

    Returns:
        True.

    Raises:
        GradcheckError: names the worst input and its worst element, with both values.
        TypeError: a floating-point input is not float64, or no input is.
    """
    _require(inputs)
    checked = [k for k, x in enumerate(inputs) if x.dtype is float64]
    fixed = [x.detach() for x in inputs]

    def of_checked(*some: Tensor) -> Any:
        every = list(fixed)
        for k, x in zip(checked, some, strict=True):
            every[k] = x
        return f(*every)

    function, points = of_checked, [fixed[k] for k in checked]
    names = [f"input {k} ({_describe(inputs[k])})" for k in checked]
    rng, tolerance = random.Random(seed), _Tolerance(eps, rtol, atol)
    for level in range(1, order + 1):
        cotangents = _check(function, points, names, level, rng, tolerance)
        if level < order:
            names += [f"the cotangent of output {k}" for k in range(len(cotangents))]
            function = _backward_of(function, len(points))
            points = points + cotangents
    return True


@dataclass(frozen=True)
class _Tolerance:
    eps: float
    rtol: float
    atol: float


def _backward_of(f: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function that maps the inputs and output cotangents of f to the input cotangents."""

    def backward(*arguments: Tensor) -> Any:
        outputs, pullback = vjp(f, *arguments[:count])
        return pullback(tree_rebuilt(outputs, iter(arguments[count:])))

    return backward


def _check(
    f: Callable[..., Any], points: list[Tensor], names: list[str], level: int, rng: random.Random,
    tolerance: _Tolerance,
) -> list[Tensor]:  # fmt: skip
    """Compare the first derivatives of f; returns the random cotangents it used."""
    outputs, pullback = vjp(f, *points)
    leaves = tree_leaves(outputs)
    if any(y.dtype is not float64 for y in leaves):
        got = ", ".join(y.dtype.name for y in leaves)
        raise TypeError(f"gradcheck: expected f to return float64 tensors, got {got}.")
    cotangents = [_normal(rng, y) for y in leaves]
    pulled = pullback(tree_rebuilt(outputs, iter(cotangents)))
    evaluate(*pulled)
    probe = _Probe(f, points, cotangents, pulled, tolerance)
    results = [probe.compare(k, _elements(_normal(rng, x))) for k, x in enumerate(points)]
    worst = max(range(len(results)), key=lambda k: results[k].excess)
    if results[worst].excess > 1.0:
        raise GradcheckError(probe.explain(worst, names[worst], level, results[worst]))
    return cotangents


@dataclass(frozen=True)
class _Comparison:
    numeric: float
    analytic: float
    excess: float  # the error in units of the tolerance; inf where either is NaN

    def __str__(self) -> str:
        return f"{self.analytic:.7g} instead of {self.numeric:.7g}"


class _Probe:
    """f at a point, the cotangents its outputs are weighted with, and the gradients to check."""

    def __init__(
        self, f: Callable[..., Any], points: list[Tensor], cotangents: list[Tensor],
        gradients: Sequence[Tensor], tolerance: _Tolerance,
    ):  # fmt: skip
        self.f, self.points, self.tolerance = f, points, tolerance
        self.weights = [w for c in cotangents for w in _elements(c)]
        self.values = [_elements(x) for x in points]
        self.gradients = [_elements(g) for g in gradients]

    def compare(self, k: int, direction: Values) -> _Comparison:
        """The two derivatives with respect to input k along a direction."""
        at, step = self.values[k], self.tolerance.eps * max([1.0, *map(abs, self.values[k])])
        ahead = [x + step * d for x, d in zip(at, direction, strict=True)]
        behind = [x - step * d for x, d in zip(at, direction, strict=True)]
        # The step as rounded: at a large |x| it is not exactly step * d.
        taken = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        outputs = zip(self._outputs(k, ahead), self._outputs(k, behind), strict=True)
        numeric = _inner(self.weights, [(a - b) / (2 * step) for a, b in outputs])
        analytic = _inner(self.gradients[k], taken)
        allowed = self.tolerance.atol + self.tolerance.rtol * max(abs(numeric), abs(analytic))
        excess = abs(numeric - analytic) / allowed
        return _Comparison(numeric, analytic, math.inf if math.isnan(excess) else excess)

    def _outputs(self, k: int, values: Values) -> Values:
        """The elements of all outputs of f, with those of input k replaced."""
        arguments = list(self.points)
        arguments[k] = _tensor_like(values, self.points[k])
        results = tree_leaves(self.f(*arguments))
        evaluate(*results)
        return [v for y in results for v in _elements(y)]

    def explain(self, k: int, name: str, level: int, along: _Comparison) -> str:
        """The failure at input k, and the element of it that is furthest off."""
        n = len(self.values[k])
        singles = [self.compare(k, [float(i == e) for i in range(n)]) for e in range(n)]
        worst = max(range(n), key=lambda e: singles[e].excess)
        which = "gradient" if level == 1 else f"derivative of order {level}"
        return (
            f"gradcheck: expected the {which} with respect to {name} to agree with central "
            f"differences of step {self.tolerance.eps:g}, got {along} along a random direction. "
            f"Worst element: {_index(worst, self.points[k].shape)}, {singles[worst]}. "
            "Check the vjp rules that f uses, and that f has no kink there."
        )


def _require(inputs: tuple[Any, ...]) -> None:
    for k, x in enumerate(inputs):
        if not isinstance(x, Tensor) or (x.dtype.is_floating and x.dtype is not float64):
            got = x.dtype.name if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"gradcheck: expected float64 tensors, got {got} as input {k}. Finite differences "
                "need the precision: use astype(float64)."
            )
    if not any(x.dtype is float64 for x in inputs):
        raise TypeError("gradcheck: expected at least one float64 tensor to check, got none.")


def _describe(x: Tensor) -> str:
    return f"{x.dtype.name}{list(x.shape)}"


def _normal(rng: random.Random, like: Tensor) -> Tensor:
    return _tensor_like([rng.gauss(0.0, 1.0) for _ in range(like.size)], like)


def _tensor_like(values: Values, like: Tensor) -> Tensor:
    return tensor(values, dtype=float64, device=like.device).reshape(like.shape)


def _elements(x: Tensor) -> Values:
    """The elements, row-major."""
    nested = x.tolist()
    for _ in range(x.ndim - 1):
        nested = [v for row in nested for v in row]
    return cast("Values", nested if x.ndim else [nested])


def _inner(a: Values, b: Values) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


def _index(place: int, shape: tuple[int, ...]) -> list[int]:
    index: list[int] = []
    for n in reversed(shape):
        index.insert(0, place % n)
        place //= n
    return index
