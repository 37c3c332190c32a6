"""Mean and covariance of data that arrives in batches, in one pass."""

from __future__ import annotations

from minigrad.dtype import float64
from minigrad.execution.compute import evaluate
from minigrad.execution.modes import no_grad
from minigrad.functions import barrier
from minigrad.functions.manipulation import matrix_transpose
from minigrad.functions.statistical import mean as mean_of
from minigrad.functions.statistical import sum as sum_of
from minigrad.nn import centre
from minigrad.tensor import Tensor

__all__ = ["PooledMoments"]


class PooledMoments:
    """The moments of all rows that were added, as if they had come at once.

    Of two parts a and b, with d = mean_b - mean_a and n = n_a + n_b:

        mean    = mean_a + d * n_b / n
        scatter = scatter_a + scatter_b + d * d * n_a * n_b / n

    where the scatter is the sum of (x - mean)**2, or of the outer products.

    Source: Chan, Golub & LeVeque 1983. No square of a raw value is ever summed.
    Precision: float64.

    Args:
        covariance: keep the covariance of the features with each other, not their variances alone.

    Attributes:
        count: rows added.
        mean: of shape (features,).
        scatter: of shape (features,), or (features, features).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __init__(self, covariance: bool = False):
        self.covariance, self.count = covariance, 0

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, features); none change nothing.

        Raises:
            ValueError: rows of another shape than before.
        """
        if rows.ndim != 2 or (self.count and rows.shape[1:] != self.mean.shape):
            expected = f"(n, {self.mean.shape[0]})" if self.count else "(n, features)"
            raise ValueError(f"PooledMoments: expected rows of shape {expected}, got {rows.shape}.")
        new = rows.shape[0]
        if not new:
            return
        with no_grad():
            z, sample = centre(rows.astype(float64), 0)  # at any offset no digit is lost
            mean = mean_of(z, axis=0)
            scatter, mean = self._squares(z - mean), mean + sample.reshape(-1)
            if self.count:
                total = self.count + new
                d = barrier(mean - self.mean).reshape(
                    1, -1
                )  # its square is not to be multiplied out
                scatter = self.scatter + scatter + self._squares(d) * (self.count * new / total)
                mean = self.mean + d.reshape(-1) * (new / total)
            evaluate(mean, scatter)
        self.count, self.mean, self.scatter = self.count + new, mean, scatter

    def _squares(self, rows: Tensor) -> Tensor:
        return matrix_transpose(rows) @ rows if self.covariance else sum_of(rows * rows, axis=0)

    @property
    def variance(self) -> Tensor:
        """The biased variance of each feature, or the covariance."""
        return self.scatter / self.count

    @property
    def unbiased_variance(self) -> Tensor:
        """The variance scaled by n / (n - 1); of one row as it is, 0."""
        return self.scatter / max(self.count - 1, 1)
