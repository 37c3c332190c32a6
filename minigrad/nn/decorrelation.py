"""Whitening inside of a network: batch normalization of channels that are not to be correlated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigrad.functions.elementwise import rsqrt
from minigrad.functions.linalg import diagonal, matmul
from minigrad.functions.manipulation import matrix_transpose, moveaxis, reshape, tril, triu
from minigrad.functions.statistical import sum as sum_of
from minigrad.graph import like
from minigrad.nn.arguments import integer
from minigrad.nn.normalization import channel_affine, with_channels
from minigrad.nn.running import move_running
from minigrad.nn.standardization import affine, standardize, widen
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["decorrelated_batch_norm", "inverse_root"]


def inverse_root(matrix: Tensor, iterations: int = 5) -> Tensor:
    """M ** (-1/2) of symmetric positive definite matrices (..., n, n), by Newton's iteration.

        A = M / trace(M);  Y = A, Z = I;  T = 1.5 I - 0.5 Z Y, Y <- Y T, Z <- T Z, again and again

    where Y Z = A and Z goes to A ** (-1/2). In each step a direction whose eigenvalue is small
    beside the trace comes 1.5 times nearer; then convergence is quadratic.

    Precision: Z alone, by 1.5 Z - 0.5 Z**3 A, is the same in real arithmetic, but its rounding
    errors grow from step to step.
    """
    trace = sum_of(diagonal(matrix), axis=-1).reshape((*matrix.shape[:-2], 1, 1))
    identity = _identity(matrix)
    y, z = matrix / trace, identity
    for _ in range(iterations):
        t = 1.5 * identity - 0.5 * matmul(z, y)
        y, z = matmul(y, t), matmul(t, z)
    return z * rsqrt(trace)


def decorrelated_batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_whitener: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    groups: int = 1,
    iterations: int = 5,
    *,
    num_batches_tracked: Tensor | None = None,
    allow_degenerate: bool = False,
) -> Tensor:
    """Batch normalization that also removes the correlation of the channels, or of groups of them.

        y = W (x - mean) * weight + bias,  W = (covariance + eps I) ** (-1/2)

    Source: Huang et al. 2018, arXiv:1804.08450, with the root of Huang et al. 2019,
    arXiv:1904.03441.
    Shapes: x (N, C, *spatial) -> same; weight, bias, running_mean (C,);
    running_whitener (groups, C / groups, C / groups).

    Args:
        groups: of consecutive channels that are decorrelated with each other.
        iterations: of `inverse_root`. More whiten more, and amplify more of what is noise.
        momentum, num_batches_tracked, allow_degenerate: as in `batch_norm`.
    State: training takes mean and W of the batch, and updates the running ones; else those are
        used.
    """
    caller = "decorrelated_batch_norm"
    node = with_channels(caller, x)
    n, channels, *spatial = node.shape
    if channels % integer(caller, "groups", groups, 1):
        raise ValueError(f"{caller}: expected groups to divide {channels}, got {groups}.")
    weight, bias = channel_affine(caller, node, weight, bias)
    rows = reshape(moveaxis(x, 1, 0), (groups, channels // groups, -1))  # (G, C / G, n)
    if training or running_mean is None or running_whitener is None:
        batch = standardize(rows, 2, eps, allow_degenerate, caller)
        z = batch.deviation
        covariance = matmul(z, matrix_transpose(z)) / batch.n
        whitener = inverse_root(covariance + eps * _identity(covariance), iterations)
        if running_mean is not None and running_whitener is not None and batch.n > 1:
            pairs = (running_mean, batch.mean), (running_whitener, whitener)
            move_running(pairs, momentum, num_batches_tracked)
    else:
        z = widen(rows) - running_mean.reshape((groups, -1, 1))
        whitener = running_whitener.astype(z.dtype)
    white = reshape(matmul(whitener, z), (channels, n, *spatial))
    return affine(moveaxis(white, 0, 1), weight, bias, x.dtype)


def _identity(matrix: Tensor) -> Tensor:
    """1 on the diagonal, in the shape of `matrix`."""
    return tril(triu(wrap(like(1.0, matrix.node))))
