"""Caffe's normalization layers. Their arguments have the names of Caffe's fields."""

from __future__ import annotations

import minigrad as mg
from layers.module import Buffer, Module
from layers.norm import LocalResponseNorm
from minigrad import Tensor

__all__ = ["LRN", "MVN", "BatchNorm"]


class BatchNorm(Module):
    """Normalization by the statistics of the batch; factor and offset are a layer `Scale`.

        y = (x - mean) / sqrt(var + eps)

    The moving statistics are sums of the batches' and a factor that counts them:

        scale_factor = f * scale_factor + 1
        mean_sum     = f * mean_sum + mean
        var_sum      = f * var_sum + var * m / (m - 1)

    with f = moving_average_fraction and m = N * prod(spatial) values a channel (for m = 1 without
    the correction). Global statistics are the sums over scale_factor, or 0 while that is 0.

    Source: Caffe's BatchNorm; Ioffe & Szegedy 2015, arXiv:1502.03167.
    Differs: eval never changes the sums, not even where it takes the batch's statistics.
    Shapes: x (N, C, *spatial) -> y same; mean_sum, var_sum (C,); scale_factor (1,).

    Args:
        channels: C, the extent of axis 1.
        use_global_stats: whether to normalize with the moving statistics, which are then left
            alone; None: in eval.
        moving_average_fraction: f, the weight that the sums keep at each batch.
        eps: added to the variance, in units of x squared.
    """

    def __init__(
        self,
        channels: int,
        use_global_stats: bool | None = None,
        moving_average_fraction: float = 0.999,
        eps: float = 1e-5,
    ):
        self.use_global_stats, self.eps = use_global_stats, eps
        self.moving_average_fraction = moving_average_fraction
        self.mean_sum = Buffer(mg.zeros((channels,)))
        self.var_sum = Buffer(mg.zeros((channels,)))
        self.scale_factor = Buffer(mg.zeros((1,)))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        given = self.use_global_stats
        if given or (given is None and not self.training):
            return mg.nn.batch_normalization(x, *self.global_statistics(), eps=self.eps)
        axes = (0, *range(2, x.ndim))
        s = mg.nn.standardize(x, axes, self.eps, allow_degenerate=True)
        if self.training and s.n:
            self._accumulate(s.mean, s.var, s.n)
        return s.x_hat.astype(x.dtype)

    def global_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance that the moving sums stand for; zeros before the first batch."""
        empty = self.scale_factor == 0
        share = mg.where(empty, 0.0, 1 / mg.where(empty, 1.0, self.scale_factor))
        return self.mean_sum * share, self.var_sum * share

    def _accumulate(self, mean: Tensor, var: Tensor, m: int) -> None:
        f, correction = self.moving_average_fraction, m / (m - 1) if m > 1 else 1.0
        self.scale_factor.assign(f * self.scale_factor + 1)
        for total, new in ((self.mean_sum, mean), (self.var_sum, var * correction)):
            total.assign(f * total + new.reshape(total.shape).astype(total.dtype))

    def _check(self, x: Tensor) -> None:
        channels = self.mean_sum.size
        if x.ndim < 2 or x.shape[1] != channels:
            raise ValueError(
                f"caffe.BatchNorm: expected x of shape (N, {channels}, *spatial), got {x.shape}. "
                f"Pass the extent of axis 1."
            )

    def extra_repr(self) -> str:
        return (
            f"{self.mean_sum.size}, use_global_stats={self.use_global_stats}, "
            f"moving_average_fraction={self.moving_average_fraction}, eps={self.eps}"
        )


class LRN(LocalResponseNorm):
    """Local response normalization.

        y = x / (k + alpha / n * sum of x**2 over a window) ** beta

    n is the size of the full window: local_size channels at the same pixel (ACROSS_CHANNELS), or
    local_size**2 pixels of the same channel (WITHIN_CHANNEL, where k is 1 whatever is asked for).

    Source: Krizhevsky et al. 2012, whose alpha is not divided by n.
    Shapes: x (N, C, H, W) -> y same.

    Args:
        local_size: an odd number of channels or pixels.
        alpha, beta, k: as in the formula, dimensionless.
        norm_region: "ACROSS_CHANNELS" or "WITHIN_CHANNEL".
    """

    def __init__(
        self,
        local_size: int = 5,
        alpha: float = 1.0,
        beta: float = 0.75,
        norm_region: str = "ACROSS_CHANNELS",
        k: float = 1.0,
    ):
        if local_size < 1 or local_size % 2 == 0:
            raise ValueError(f"caffe.LRN: expected an odd local_size, got {local_size}.")
        if norm_region not in ("ACROSS_CHANNELS", "WITHIN_CHANNEL"):
            raise ValueError(
                f"caffe.LRN: expected norm_region 'ACROSS_CHANNELS' or 'WITHIN_CHANNEL', got "
                f"{norm_region!r}."
            )
        k = k if norm_region == "ACROSS_CHANNELS" else 1.0
        super().__init__(local_size, alpha, beta, k, norm_region.lower())


class MVN(Module):
    """Each channel of each sample, or each sample, to mean 0 and variance 1.

        y = (x - mean) / (sqrt(var) + eps)

    Differs: what has no variance gives 0 with the gradient of x - mean, which Caffe divides by eps.
    Shapes: x (N, C, *spatial) -> y same.

    Args:
        normalize_variance: False: y = x - mean.
        across_channels: statistics of a sample instead of each of its channels.
        eps: added to the standard deviation, in units of x.
    """

    def __init__(
        self, normalize_variance: bool = True, across_channels: bool = False, eps: float = 1e-9
    ):
        self.normalize_variance, self.across_channels = normalize_variance, across_channels
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1 if self.across_channels else 2, x.ndim))
        s = mg.nn.standardize(x, axes, allow_degenerate=True)
        y = s.deviation
        if self.normalize_variance:
            y = y / (mg.sqrt(mg.where(s.var == 0, 1.0, s.var)) + self.eps)
        return y.astype(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"normalize_variance={self.normalize_variance}, "
            f"across_channels={self.across_channels}, eps={self.eps}"
        )
