"""Caffe's pooling, whose windows may hang over the end."""

from __future__ import annotations

import minigrad as mg
from layers.conv import Pair, pair
from layers.module import Module
from minigrad import Tensor

__all__ = ["Pooling"]


class Pooling(Module):
    """The maximum or the mean of each window, where the last window may be incomplete.

    The maximum is over the pixels of the image; the mean divides by the size of the window inside
    the padded image, so that padding counts as zeros.

    Shapes: x (N, C, H, W) -> y (N, C, H', W') with
        H' = ceil((H + 2 pad - kernel_size) / stride) + 1, less 1 if the last window would begin
        behind the image and the padding before it.

    Args:
        pool: "MAX" or "AVE".
        kernel_size, stride, pad: one number, or one per spatial axis, in pixels; pad at most half
            of kernel_size.
        global_pooling: one window, the whole image; the sizes are not used.
    Raises: ValueError where no padding is asked for and a window begins behind the image: Caffe
        reads nothing there and gives -3.4e38.
    """

    def __init__(
        self,
        pool: str = "MAX",
        kernel_size: Pair = 1,
        stride: Pair = 1,
        pad: Pair = 0,
        global_pooling: bool = False,
    ):
        if pool not in ("MAX", "AVE"):
            raise ValueError(f"caffe.Pooling: expected pool 'MAX' or 'AVE', got {pool!r}.")
        self.pool, self.global_pooling = pool, global_pooling
        self.kernel_size, self.stride, self.pad = pair(kernel_size), pair(stride), pair(pad)

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.kernel_size, self.stride, self.pad
        if self.global_pooling:
            sizes = (x.shape[2], x.shape[3]), (1, 1), (0, 0)
        for n, k, s in zip(x.shape[2:], *sizes[:2], strict=True):
            if self.pad == (0, 0) and -(-(n - k) // s) * s >= n:
                raise ValueError(
                    f"caffe.Pooling: expected windows that begin inside the image, got an extent "
                    f"of {n} with kernel_size {k} and stride {s}. Crop what is not looked at."
                )
        if self.pool == "MAX":
            return mg.nn.max_pool2d(x, *sizes, ceil_mode=True)
        return mg.nn.avg_pool2d(x, *sizes, ceil_mode=True)

    def extra_repr(self) -> str:
        if self.global_pooling:
            return f"{self.pool!r}, global_pooling=True"
        sizes = f"kernel_size={self.kernel_size}, stride={self.stride}, pad={self.pad}"
        return f"{self.pool!r}, {sizes}"
