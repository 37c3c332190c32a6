"""Hand-derived derivatives of batch normalization that only tests need.

The chain rule in nine stages and the closed form are in `examples/batchnorm_by_hand.py`. Here are
the 2015 paper's own listing, and the closed form of the second derivative.
"""

from __future__ import annotations

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
