"""Eigenvalues of a symmetric matrix, by rotations: the same few array operations on any device."""

from __future__ import annotations

from minigrad.creation import asarray, eye, zeros
from minigrad.dtype import float64
from minigrad.execution.capture import compile
from minigrad.execution.compute import evaluate
from minigrad.execution.modes import no_grad
from minigrad.functions import abs as abs_of
from minigrad.functions import concat, diagonal, sqrt, take, where
from minigrad.functions import sum as sum_of
from minigrad.tensor import Tensor

MOST_SWEEPS = 30  # convergence is quadratic: 6 to 10 do


@no_grad()
def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors as columns: matrix = U diag(values) U'.

    Jacobi's method. Each row of the upper half is paired with one of the lower, and all pairs are
    rotated at once so that the entry which couples them vanishes. Then the pairs change as in a
    round-robin tournament: in a sweep of n - 1 rounds, of O(n**2) operations each, every row meets
    every other.

    Source: Jacobi 1846; Brent & Luk 1985 for the order of the pairs.
    Precision: float64; an eigenvalue is off by a few units of rounding of the largest.

    Args:
        matrix: (n, n), symmetric; of another only the symmetric part counts.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"eigh: expected a square matrix, got shape {matrix.shape}.")
    n, m = matrix.shape[0], matrix.astype(float64)
    size = max(4, n + n % 2)  # rows of zeros more: nothing couples them to the others
    a, vectors = _padded((m + m.T) / 2, size), eye(size, dtype=float64, device=m.device)
    for _ in range(MOST_SWEEPS):
        if _coupling(a).item() <= n * 2.0**-52:
            break
        for _ in range(size - 1):
            a, vectors = _round(a, vectors)
    values = diagonal(a)[:n]
    listed = values.tolist()
    order = asarray(sorted(range(n), key=lambda i: -listed[i]), device=m.device)
    values, vectors = take(values, order), take(vectors[:, :n], order, axis=0).T
    evaluate(values, vectors)
    return values, vectors


@compile
def _round(a: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate all pairs: a becomes J' a J, and the rows of `vectors` turn with it."""
    half = a.shape[0] // 2
    p, q, both = diagonal(a)[:half], diagonal(a)[half:], 2 * diagonal(a[:half, half:])
    # tan of the smaller of the two angles that do it: 2 a_pq / (d +- sqrt(d**2 + (2 a_pq)**2)).
    d = q - p
    denominator = abs_of(d) + sqrt(d * d + both * both)
    tan = where(d < 0, -both, both) / where(denominator == 0, 1.0, denominator)
    cos = 1 / sqrt(tan * tan + 1)
    cos, sin = cos[:, None], (tan * cos)[:, None]

    def rotated(rows: Tensor) -> Tensor:
        """Each pair turned, then seated anew: the first row stays, the others move on by one."""
        p, q = rows[:half], rows[half:]
        p, q = cos * p - sin * q, sin * p + cos * q
        return concat([p[:1], q[:1], p[1:-1], q[1:], p[-1:]])

    return rotated(rotated(a).T), rotated(vectors)  # a is symmetric


@compile
def _coupling(a: Tensor) -> Tensor:
    """How much is off the diagonal, in units of the whole matrix."""
    off = a * (1 - eye(a.shape[0], dtype=float64, device=a.device))
    squares = sum_of(a * a)
    return sqrt(sum_of(off * off) / where(squares == 0, 1.0, squares))


def _padded(a: Tensor, size: int) -> Tensor:
    n = a.shape[0]
    a = concat([a, zeros((size - n, n), dtype=float64, device=a.device)])
    return concat([a, zeros((size, size - n), dtype=float64, device=a.device)], axis=1)
