"""Hand-derived derivatives of batch normalization that only tests need.

The chain rule in nine stages and the closed form are in `examples/batchnorm_by_hand.py`. Here are
the 2015 paper's own listing, and the closed form of the second derivative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import minigrad as mg
from examples.batchnorm_by_hand import Gradients, channel_sum, flat, per_channel
from minigrad import Tensor


def paper_chain_rule(x: Tensor, gamma: Tensor, g: Tensor, eps: float) -> Gradients:
    """Ioffe & Szegedy 2015, section 3, line by line, its identically zero term included."""
    m = x.size // x.shape[1]
    mean = channel_sum(x) / m
    centred = x - mean
    e = channel_sum(centred * centred) / m + eps
    xhat = centred / mg.sqrt(e)
    dxhat = g * per_channel(gamma, x)
    dvar = channel_sum(dxhat * centred) * -0.5 / (e * mg.sqrt(e))
    dmean = channel_sum(-dxhat / mg.sqrt(e)) + dvar * channel_sum(-2 * centred) / m
    dx = dxhat / mg.sqrt(e) + dvar * 2 * centred / m + dmean / m
    return Gradients(dx, flat(channel_sum(g * xhat)), flat(channel_sum(g)))


class SecondGradients(NamedTuple):
    """The gradients of <u, dx>, where dx is the first backward's result."""

    x: Tensor
    gamma: Tensor
    g: Tensor


def second_derivative(
    x: Tensor, gamma: Tensor, g: Tensor, u: Tensor, eps: float
) -> SecondGradients:
    """The gradients of S = <u, dx(x, gamma, g)> in closed form.

    With J = inv (I - 1 1'/m - xhat xhat'/m), the symmetric Jacobian of xhat, dx = gamma J g, so
        dS/dg = gamma J u                     dS/dgamma = sum(u J g)
        S = gamma inv (sum(u g) - m mean(u) mean(g) - m p q),  p = mean(u xhat), q = mean(g xhat)
    and, with d inv / dx = -inv^2 xhat / m and dp/dx = J u / m,
        dS/dx = -gamma inv (xhat / m * S / gamma + q J u + p J g)
    """
    m = x.size // x.shape[1]

    def mean(v: Tensor) -> Tensor:
        return channel_sum(v) / m

    centred = x - mean(x)
    inv = 1 / mg.sqrt(mean(centred * centred) + eps)
    xhat, scale = centred * inv, per_channel(gamma, x)

    def jacobian(v: Tensor) -> Tensor:
        return inv * (v - mean(v) - xhat * mean(v * xhat))

    s = channel_sum(u * jacobian(g))
    p, q = mean(u * xhat), mean(g * xhat)
    dx = -scale * inv * (xhat / m * s + q * jacobian(u) + p * jacobian(g))
    return SecondGradients(dx, flat(s), scale * jacobian(u))


# Other normalizations: value and first gradients by hand.


def standardization(x: Tensor, g: Tensor, axes: tuple[int, ...], eps: float) -> list[Tensor]:
    """x_hat over `axes`, and J g with its symmetric Jacobian J."""

    def mean(v: Tensor) -> Tensor:
        return mg.mean(v, axis=axes, keepdims=True)

    centred = x - mean(x)
    inv = 1 / mg.sqrt(mean(centred * centred) + eps)
    xhat = centred * inv
    return [xhat, inv * (g - mean(g) - xhat * mean(g * xhat))]


def weight_norm(v: Tensor, g: Tensor, dw: Tensor) -> list[Tensor]:
    """dv and dg of w = g v / ||v||: dg = <dw, v> / ||v||, dv = g / ||v|| (dw - v dg / ||v||)."""
    axes, g = tuple(range(1, v.ndim)), mg.reshape(g, (-1,) + (1,) * (v.ndim - 1))
    norm = mg.sqrt(mg.sum(v * v, axis=axes, keepdims=True))
    dg = mg.sum(dw * v, axis=axes, keepdims=True) / norm
    return [g / norm * (dw - v * dg / norm), flat(dg)]


def norm_prop(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, g: Tensor) -> list[Tensor]:
    """y = (relu(gamma q + beta) - a0) / c0 with q = w x / ||w||, and dx, dw, dgamma, dbeta."""
    a0, c0 = 1 / (2 * math.pi) ** 0.5, (0.5 * (1 - 1 / math.pi)) ** 0.5
    norm = mg.sqrt(mg.sum(w * w, axis=1, keepdims=True))
    unit = w / norm
    q = x @ unit.T
    p = gamma * q + beta
    dp = mg.where(p > 0, g / c0, 0.0)
    dq = gamma * dp
    dunit = dq.T @ x
    dw = (dunit - unit * mg.sum(unit * dunit, axis=1, keepdims=True)) / norm
    y = (mg.where(p > 0, p, 0.0) - a0) / c0
    return [y, dq @ unit, dw, mg.sum(dp * q, axis=0), mg.sum(dp, axis=0)]
