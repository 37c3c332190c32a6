"""Batch normalization differentiated by hand, with array functions only.

Nine steps forward, the same nine steps backward with one chain rule each, and the closed form that
they simplify to; training and inference mode. `examples.batchnorm_gradients` compares all of it
with what minigrad derives by itself.

Source: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3. Channels are at axis 1; a channel sum
runs over all other axes: the n values that share one mean and one variance.
"""

from __future__ import annotations

from typing import NamedTuple

import minigrad as mg
from minigrad import Tensor


def channel_sum(v: Tensor) -> Tensor:
    """Sum over every axis but the channels': (N, C, *spatial) -> (1, C, 1, ...)."""
    return mg.sum(v, axis=(0, *range(2, v.ndim)), keepdims=True)


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), to broadcast against x."""
    return mg.reshape(v, (1, -1, *(1 for _ in x.shape[2:])))


class Forward(NamedTuple):
    """The nine steps of the forward, in order."""

    mu: Tensor  # 1 = sum(x) / n
    xmu: Tensor  # 2 = x - mu
    sq: Tensor  # 3 = xmu * xmu
    var: Tensor  # 4 = sum(sq) / n
    std: Tensor  # 5 = sqrt(var + eps)
    inv: Tensor  # 6 = 1 / std
    xhat: Tensor  # 7 = xmu * inv
    scaled: Tensor  # 8 = gamma * xhat
    y: Tensor  # 9 = scaled + beta


class Backward(NamedTuple):
    """The gradient of the loss with respect to each stage, in the order in which it is found."""

    dbeta: Tensor
    dscaled: Tensor
    dgamma: Tensor
    dxhat: Tensor
    dinv: Tensor
    dxmu1: Tensor
    dstd: Tensor
    dvar: Tensor
    dsq: Tensor
    dxmu2: Tensor
    dxmu: Tensor
    dmu: Tensor
    dx: Tensor


def forward_in_stages(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Forward:
    """Nine steps with one operation each; gamma and beta are (C,)."""
    n = x.size // x.shape[1]
    mu = channel_sum(x) / n
    xmu = x - mu
    sq = xmu * xmu
    var = channel_sum(sq) / n
    std = mg.sqrt(var + eps)
    inv = 1 / std
    xhat = xmu * inv
    scaled = per_channel(gamma, x) * xhat
    y = scaled + per_channel(beta, x)
    return Forward(mu, xmu, sq, var, std, inv, xhat, scaled, y)


def backward_in_stages(g: Tensor, gamma: Tensor, f: Forward) -> Backward:
    """The same nine steps backward, one chain rule each; g is the gradient with respect to y."""
    n = g.size // g.shape[1]
    ones = mg.ones_like(g)
    # 9: y = scaled + beta
    dbeta = channel_sum(g)
    dscaled = g
    # 8: scaled = gamma * xhat
    dgamma = channel_sum(dscaled * f.xhat)
    dxhat = dscaled * per_channel(gamma, g)
    # 7: xhat = xmu * inv
    dinv = channel_sum(dxhat * f.xmu)
    dxmu1 = dxhat * f.inv
    # 6: inv = 1 / std
    dstd = -dinv / (f.std * f.std)
    # 5: std = sqrt(var + eps)
    dvar = 0.5 * dstd / f.std
    # 4: var = sum(sq) / n
    dsq = ones * dvar / n
    # 3: sq = xmu * xmu
    dxmu2 = 2 * f.xmu * dsq
    # 2: xmu = x - mu; two paths meet in xmu
    dxmu = dxmu1 + dxmu2
    dmu = -channel_sum(dxmu)
    # 1: mu = sum(x) / n; two paths meet in x
    dx = dxmu + ones * dmu / n
    return Backward(
        dbeta, dscaled, dgamma, dxhat, dinv, dxmu1, dstd, dvar, dsq, dxmu2, dxmu, dmu, dx
    )


class Gradients(NamedTuple):
    """What a layer's backward returns: dx like x, dgamma and dbeta (C,)."""

    dx: Tensor
    dgamma: Tensor
    dbeta: Tensor


def training_in_stages(x: Tensor, gamma: Tensor, g: Tensor, eps: float) -> Gradients:
    """The gradients of training mode, stage by stage."""
    stages = backward_in_stages(g, gamma, forward_in_stages(x, gamma, mg.zeros_like(gamma), eps))
    return Gradients(stages.dx, flat(stages.dgamma), flat(stages.dbeta))


def training_closed_form(x: Tensor, gamma: Tensor, g: Tensor, eps: float) -> Gradients:
    """The gradients of training mode after simplification: two sums are left."""
    n = x.size // x.shape[1]
    centred = x - channel_sum(x) / n
    inv = 1 / mg.sqrt(channel_sum(centred * centred) / n + eps)
    xhat = centred * inv
    dbeta = channel_sum(g)
    dgamma = channel_sum(g * xhat)
    dx = per_channel(gamma, x) * inv * (g - dbeta / n - xhat * dgamma / n)
    return Gradients(dx, flat(dgamma), flat(dbeta))


def inference_in_stages(
    x: Tensor, gamma: Tensor, g: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Gradients:
    """The gradients of inference mode: mean, var (C,) are constants; steps 1, 3 to 6 drop out."""
    xmu = x - per_channel(mean, x)  # 2
    inv = 1 / mg.sqrt(per_channel(var, x) + eps)
    xhat = xmu * inv  # 7
    dbeta = channel_sum(g)  # 9
    dgamma = channel_sum(g * xhat)  # 8
    dxhat = g * per_channel(gamma, x)
    dxmu = dxhat * inv  # 7
    return Gradients(dxmu, flat(dgamma), flat(dbeta))  # 2


def inference_closed_form(
    x: Tensor, gamma: Tensor, g: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Gradients:
    """The gradients of inference mode, where y = a x + b is a straight line per channel."""
    std = mg.sqrt(var + eps)
    a = gamma / std
    dbeta = flat(channel_sum(g))
    # Centred before the sum: sum(g * x) - mean * sum(g) would cancel at large means.
    dgamma = flat(channel_sum(g * (x - per_channel(mean, x)))) / std
    return Gradients(per_channel(a, x) * g, dgamma, dbeta)


def flat(v: Tensor) -> Tensor:
    """(1, C, 1, ...) -> (C,)."""
    return mg.reshape(v, (-1,))
