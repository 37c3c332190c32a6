"""Hand-derived derivatives of normalizations that only tests need.

Batch normalization's chain rule in nine stages and its closed form are in
`examples/batchnorm_by_hand.py`. Here are the 2015 paper's own listing, the closed form of the
second derivative, and then values and first gradients of the other normalizations.
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


# Other normalizations.


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


def batch_renorm(
    x: Tensor, gamma: Tensor, beta: Tensor, g: Tensor, mean: Tensor, std: Tensor, r_max: float,
    d_max: float, eps: float,
) -> list[Tensor]:  # fmt: skip
    """y, dx, dgamma and dbeta, with running `mean` and `std`: r and d are constants."""
    axes, own = (0, *range(2, x.ndim)), mg.mean(x, axis=(0, *range(2, x.ndim)), keepdims=True)
    sigma = mg.sqrt(mg.mean((x - own) ** 2, axis=axes, keepdims=True) + eps)
    mean, std = per_channel(mean, x), per_channel(std, x)
    r = mg.clip(sigma / std, 1 / r_max, r_max)
    d = mg.clip((own - mean) / std, -d_max, d_max)
    xhat, jacobian_g = standardization(x, g, axes, eps)
    dgamma, dbeta = mg.sum(g * (xhat * r + d), axis=axes), mg.sum(g, axis=axes)
    y = (xhat * r + d) * per_channel(gamma, x) + per_channel(beta, x)
    return [y, per_channel(gamma, x) * r * jacobian_g, dgamma, dbeta]


def newton_roots(matrix: Tensor, iterations: int) -> list[Tensor]:
    """P_0, P_1, ... of P <- 1.5 P - 0.5 P^3 M / trace(M), which go to (M / trace(M))^(-1/2)."""
    scaled, roots = matrix / mg.trace(matrix), [mg.eye(matrix.shape[0], dtype=matrix.dtype)]
    for _ in range(iterations):
        p = roots[-1]
        roots.append(1.5 * p - 0.5 * p @ p @ p @ scaled)
    return roots


def decorrelation(x: Tensor, g: Tensor, eps: float, iterations: int) -> list[Tensor]:
    """y and dx of the whitening of rows x (n, channels); Huang et al. 2019, Algorithms 1 and 2."""
    n, identity = x.shape[0], mg.eye(x.shape[1], dtype=x.dtype)
    z = x - mg.mean(x, axis=0)
    sigma = z.T @ z / n + eps * identity
    trace, roots = mg.trace(sigma), newton_roots(sigma, iterations)
    scaled, w = sigma / trace, roots[-1] / mg.sqrt(trace)
    dw = g.T @ z
    dp, dscaled = dw / mg.sqrt(trace), 0 * identity
    for p in reversed(roots[:-1]):
        dscaled = dscaled - 0.5 * (p @ p @ p).T @ dp
        square = p @ p
        dp = 1.5 * dp - 0.5 * (
            dp @ (square @ scaled).T + square.T @ dp @ scaled.T + p.T @ dp @ (p @ scaled).T
        )
    dsigma = dscaled / trace - identity * (
        mg.sum(dscaled * sigma) / trace**2 + mg.sum(dw * roots[-1]) / (2 * trace * mg.sqrt(trace))
    )
    dz = g @ w + z @ (dsigma + dsigma.T) / n
    return [z @ w.T, dz - mg.mean(dz, axis=0)]


def filter_response(
    x: Tensor, gamma: Tensor, beta: Tensor, tau: Tensor, g: Tensor, eps: float
) -> list[Tensor]:
    """y = max(gamma x_hat + beta, tau), dx, dgamma, dbeta, dtau, which has the gradient of ties."""
    axes, over = tuple(range(2, x.ndim)), (0, *range(2, x.ndim))
    inv = 1 / mg.sqrt(mg.mean(x * x, axis=axes, keepdims=True) + eps)
    xhat = x * inv
    p = per_channel(gamma, x) * xhat + per_channel(beta, x)
    above = p > per_channel(tau, x)
    dp = mg.where(above, g, 0.0)
    h = per_channel(gamma, x) * dp
    dx = inv * (h - xhat * mg.mean(h * xhat, axis=axes, keepdims=True))
    sums = [mg.sum(t, axis=over) for t in (dp * xhat, dp, g - dp)]
    return [mg.where(above, p, per_channel(tau, x)), dx, *sums]


def group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, g: Tensor, groups: int, eps: float
) -> list[Tensor]:
    """y, dx, dgamma, dbeta by the sums of each channel of each sample: db = sum g, ds = sum g c.

    One group is layer normalization with parameters of each channel, groups of one instance
    normalization.
    """
    n, channels, *spatial = x.shape
    size, m = channels // groups, math.prod(x.shape[1:]) // groups
    c_shape = (1, groups, size, 1)
    x, g = (mg.reshape(t, (n, groups, size, -1)) for t in (x, g))
    c = x - mg.mean(x, axis=(2, 3), keepdims=True)
    inv = 1 / mg.sqrt(mg.mean(c * c, axis=(2, 3), keepdims=True) + eps)
    xhat, scale = c * inv, mg.reshape(gamma, c_shape)
    db, ds = (mg.sum(t, axis=3, keepdims=True) for t in (g, g * c))
    p = mg.sum(scale * db, axis=2, keepdims=True)
    q = inv * mg.sum(scale * ds, axis=2, keepdims=True)
    dx = inv * (scale * g - p / m - xhat * q / m)
    y = xhat * scale + mg.reshape(beta, c_shape)
    whole = (n, channels, *spatial)
    dgamma, dbeta = mg.sum(inv * ds, axis=0), mg.sum(db, axis=0)
    return [mg.reshape(y, whole), mg.reshape(dx, whole), flat(dgamma), flat(dbeta)]


def row_norm(x: Tensor, gamma: Tensor, g: Tensor, eps: float, centred: bool) -> list[Tensor]:
    """x_hat gamma of rows, dx and dgamma: layer (centred) and root-mean-square normalization."""
    mean = mg.mean(x, axis=1, keepdims=True) if centred else 0.0
    c = x - mean
    inv = 1 / mg.sqrt(mg.mean(c * c, axis=1, keepdims=True) + eps)
    xhat, h = c * inv, gamma * g
    dx = h - xhat * mg.mean(h * xhat, axis=1, keepdims=True)
    dx = dx - mg.mean(h, axis=1, keepdims=True) if centred else dx
    return [xhat * gamma, inv * dx, mg.sum(g * xhat, axis=0)]


def local_response(
    x: Tensor, g: Tensor, size: int, alpha: float, beta: float, k: float, within: bool
) -> list[Tensor]:
    """y = x S^-beta and dx = g S^-beta - 2 a beta x win(g y / S), a = alpha / n."""

    def windows(t: Tensor) -> Tensor:
        for axis in (2, 3) if within else (1,):
            r, extent = size // 2, t.shape[axis]
            moved = mg.moveaxis(t, axis, 0)
            sums = [mg.sum(moved[max(i - r, 0) : i + r + 1], axis=0) for i in range(extent)]
            t = mg.moveaxis(mg.stack(sums), 0, axis)
        return t

    a = alpha / (size**2 if within else size)
    s = k + a * windows(x * x)
    power = mg.exp(-beta * mg.log(s))
    y = x * power
    return [y, g * power - 2 * a * beta * x * windows(g * y / s)]
