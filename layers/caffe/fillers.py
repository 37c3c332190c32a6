"""Caffe's fillers: the initial values of parameters.

    xavier  U(-a, a), a = sqrt(3 / n), of variance 1 / n
    msra    N(0, 2 / n)

n is fan_in, fan_out or their average (`variance_norm`); for a blob of shape (out, in, *kernel)
fan_in = size / out and fan_out = size / in. Source: Glorot & Bengio 2010; He et al. 2015.
"""

from __future__ import annotations

import math
from typing import Any

import minigrad as mg
from layers import init
from minigrad import Tensor


def fill(tensor: Tensor, filler: Any) -> None:
    """Fill a parameter in place as a message FillerParameter says.

    Raises: ValueError for a type or a shape that the filler does not know.
    """
    kind = filler.type
    if kind == "constant":
        init.constant(tensor, filler.value)
    elif kind == "uniform":
        init.uniform(tensor, filler.min, filler.max)
    elif kind == "gaussian":
        _gaussian(tensor, filler.mean, filler.std, filler.sparse)
    elif kind == "xavier":
        bound = math.sqrt(3 / _fan(tensor.shape, filler.variance_norm))
        init.uniform(tensor, -bound, bound)
    elif kind == "msra":
        init.normal(tensor, 0, math.sqrt(2 / _fan(tensor.shape, filler.variance_norm)))
    elif kind == "positive_unitball":
        init.uniform(tensor)
        rows = tensor.detach().reshape((tensor.shape[0], -1))
        tensor.assign((rows / mg.sum(rows, axis=1, keepdims=True)).reshape(tensor.shape))
    elif kind == "bilinear":
        _bilinear(tensor)
    else:
        raise ValueError(
            f"expected a filler constant, uniform, gaussian, xavier, msra, positive_unitball or "
            f"bilinear, got {kind!r}."
        )


def _fan(shape: tuple[int, ...], variance_norm: int) -> float:
    size = math.prod(shape)
    fan_in, fan_out = size / shape[0], size / shape[1] if len(shape) > 1 else size
    return (fan_in, fan_out, (fan_in + fan_out) / 2)[variance_norm]


def _gaussian(tensor: Tensor, mean: float, std: float, sparse: int) -> None:
    """Normal values; with `sparse` of 0 or more all but about that many outputs an input are 0."""
    init.normal(tensor, mean, std)
    if sparse >= 0:
        kept = mg.random.bernoulli(tensor.shape, min(1.0, sparse / tensor.shape[0]))
        tensor.assign(mg.where(kept, tensor.detach(), 0.0))


def _bilinear(tensor: Tensor) -> None:
    """Weights with which a deconvolution of stride f, kernel 2 f - f % 2, interpolates."""
    if tensor.ndim != 4 or tensor.shape[2] != tensor.shape[3]:
        raise ValueError(f"expected square kernels for the bilinear filler, got {tensor.shape}.")
    width = tensor.shape[3]
    factor = math.ceil(width / 2)
    middle = (2 * factor - 1 - factor % 2) / (2 * factor)
    tent = [1 - abs(i / factor - middle) for i in range(width)]
    kernel = mg.tensor([[a * b for b in tent] for a in tent], dtype=tensor.dtype)
    tensor.assign(mg.broadcast_to(kernel, tensor.shape))
