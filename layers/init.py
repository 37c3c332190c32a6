"""Initial values: functions that fill an existing parameter in place and return it.

    xavier   variance 2 / (fan_in + fan_out): keeps the variance through linear and tanh units
    kaiming  variance gain^2 / fan: with gain sqrt(2), repairs E[relu(z)^2] = Var[z] / 2

Source: Glorot & Bengio 2010; He et al. 2015 (MSRA), arXiv:1502.01852; orthogonal: Saxe et al. 2013.
`generator` is a `mg.random.Generator`; None takes the global one.
"""

from __future__ import annotations

import math

import minigrad as mg
from minigrad import Tensor
from minigrad.random import Generator

GAINS = {
    "linear": 1.0, "identity": 1.0, "conv2d": 1.0, "sigmoid": 1.0,
    "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4,
}  # fmt: skip


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel): inputs per output, and the reverse."""
    if len(shape) < 2:
        raise ValueError(
            f"init.fans: expected a weight of shape (out, in, *kernel), got {tuple(shape)}. "
            f"A bias has no fan; use zeros or uniform."
        )
    receptive_field = math.prod(shape[2:])
    return shape[1] * receptive_field, shape[0] * receptive_field


def gain(nonlinearity: str, a: float | None = None) -> float:
    """The factor on the standard deviation that a nonlinearity needs; `a` is leaky ReLU's slope."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if a is None else a) ** 2))
    if nonlinearity in GAINS:
        return GAINS[nonlinearity]
    raise ValueError(
        f"init.gain: expected one of linear, conv2d, sigmoid, tanh, relu, leaky_relu, selu, "
        f"got {nonlinearity!r}."
    )


def constant(tensor: Tensor, value: float) -> Tensor:
    """Every element is `value`."""
    return tensor.assign(mg.full_like(tensor, value))


def zeros(tensor: Tensor) -> Tensor:
    """Every element is 0."""
    return constant(tensor, 0)


def ones(tensor: Tensor) -> Tensor:
    """Every element is 1."""
    return constant(tensor, 1)


def uniform(
    tensor: Tensor, low: float = 0.0, high: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """U(low, high)."""
    x = mg.random.uniform(tensor.shape, low, high, tensor.dtype, tensor.device, generator=generator)
    return tensor.assign(x)


def normal(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """N(mean, std^2)."""
    x = mg.random.normal(tensor.shape, mean, std, tensor.dtype, tensor.device, generator=generator)
    return tensor.assign(x)


def xavier_uniform(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """U(-a, a) with a = gain * sqrt(6 / (fan_in + fan_out))."""
    bound = gain * math.sqrt(6 / sum(fans(tensor.shape)))
    return uniform(tensor, -bound, bound, generator)


def xavier_normal(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """N(0, gain^2 * 2 / (fan_in + fan_out))."""
    return normal(tensor, 0, gain * math.sqrt(2 / sum(fans(tensor.shape))), generator)


def kaiming_uniform(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """U(-b, b) with b = gain * sqrt(3 / fan).

    Args:
        tensor: the weight to fill.
        a: the slope of the leaky ReLU that follows; 0 is ReLU.
        mode: "fan_in" keeps the variance in the forward, "fan_out" in the backward.
        nonlinearity: what follows the layer, as in `gain`.
        generator: the source of randomness.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform(tensor, -bound, bound, generator)


def kaiming_normal(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """N(0, gain^2 / fan), the MSRA filler; arguments as in `kaiming_uniform`."""
    return normal(tensor, 0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init.kaiming: expected mode 'fan_in' or 'fan_out', got {mode!r}.")
    fan = fans(tensor.shape)[mode == "fan_out"]
    return gain(nonlinearity, a) / math.sqrt(fan)


def orthogonal(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Rows (or columns, whichever are fewer) orthonormal, times `gain`, of the (out, rest) matrix.

    Modified Gram-Schmidt, twice, on a Gaussian matrix in float64: for set-up, not for large layers
    (one small graph per row).
    """
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    short, long = min(rows, columns), max(rows, columns)
    gaussian = mg.random.normal(
        (short, long), dtype=mg.float64, device=tensor.device, generator=generator
    )
    basis: list[Tensor] = []
    for i in range(short):
        v = gaussian[i]
        for _ in range(2):  # the second round removes what rounding left of the first
            if basis:
                q = mg.stack(basis)
                v = v - (q @ v) @ q
        v = v / mg.sqrt(mg.sum(v * v))
        mg.evaluate(v)
        basis.append(v)
    matrix = mg.stack(basis)
    if rows > columns:
        matrix = matrix.T
    return tensor.assign((gain * matrix).reshape(tensor.shape).astype(tensor.dtype))
