"""Graphs whose simplified cost is known: layers and losses as a user would write them.

Each case gives the forward's nodes and the gradients'. Shapes are small, since values are computed
by the reference interpreter; cotangents are random leaves (a plain sum is no probe: the right
answer would be 0).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from cases import store

import minigrad as mg
from minigrad import Tensor, nn
from minigrad.autodiff import gradients
from minigrad.device import default_device
from minigrad.dtype import DType, float64, int64
from minigrad.graph import Node
from minigrad.tensor_base import wrap

EPS = 1e-5
BN, ROW = (0, 2, 3), (1,)
IMAGE, TABLE = (4, 3, 2, 2), (4, 5)


class Leaves:
    """Random leaves, numbered so that every build of a case has the same values."""

    def __init__(self, seed: int = 0, dtype: DType = float64):
        self.random, self.dtype = random.Random(seed), dtype

    def __call__(self, *shape: int, low: float = -1.0, high: float = 2.0) -> Tensor:
        values = [self.random.uniform(low, high) for _ in range(prod(shape))]
        return wrap(store(values, shape, self.dtype, default_device(), needs_grad=True))

    def labels(self, n: int, classes: int) -> Tensor:
        values = [self.random.randrange(classes) for _ in range(n)]
        return wrap(store(values, (n,), int64, default_device()))

    def channels(self, n: int, ndim: int = 4) -> Tensor:
        return mg.reshape(self(n, low=0.5), (1, n, *(1,) * (ndim - 2)))


Case = tuple[list[Node], list[Node]]


def nodes(tensors: Any) -> list[Node]:
    return [t.node for t in tensors]


def backward(leaves: Leaves, y: Tensor, inputs: Sequence[Tensor]) -> Case:
    """The gradients for a random cotangent."""
    g = leaves(*y.shape)
    return [y.node], nodes(mg.gradients(y, list(inputs), g, create_graph=True))


def twice(leaves: Leaves, y: Tensor, inputs: Sequence[Tensor], parameters: bool = True) -> Case:
    """First and second derivatives: cotangents on dx and, with `parameters`, on the others."""
    g = leaves(*y.shape)
    first = mg.gradients(y, list(inputs), g, create_graph=True)
    asked = first if parameters else first[:1]
    outer = [leaves(*d.shape) for d in asked]
    sources = nodes([*inputs, g])
    second = gradients(nodes(asked), sources, nodes(outer), unreached="none")
    return [y.node], [*nodes(first), *(n for n in second if n is not None)]


def mean(x: Tensor, axes: Any) -> Tensor:
    return mg.mean(x, axis=axes, keepdims=True)


def total(x: Tensor, axes: Any) -> Tensor:
    return mg.sum(x, axis=axes, keepdims=True)


def shared(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    c = x - mean(x, axes)
    return c, mean(c * c, axes)


def separate(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    m = mean(x, axes)
    return x - m, mean(-(m - x) * (x + (-m)), axes)


def raw(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    m = mean(x, axes)
    return x - m, mean(x * x, axes) - m * m


def detached(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    m = mean(x, axes)
    d = x - mg.stop_gradient(m)
    return x - m, mean(d * d, axes)


def dropped(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    """Statistics without the reduced axes, put back by a reshape."""
    kept = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    m = mg.reshape(mg.mean(x, axis=axes), kept)
    c = x - m
    return c, mg.reshape(mg.mean(c * c, axis=axes), kept)


def permuted(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    """Computed with the channels last, over all axes but that."""
    assert axes == BN
    back = (0, 3, 1, 2)
    z = mg.permute_dims(x, (0, 2, 3, 1))
    c, v = shared(z, (0, 1, 2))
    return mg.permute_dims(c, back), mg.permute_dims(v, back)


def barriered(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    z, _ = nn.centre(x, axes)
    return shared(z, axes)


Moments = Callable[[Tensor, Any], tuple[Tensor, Tensor]]


def normalized(x: Tensor, axes: Any, how: Moments = shared) -> Tensor:
    c, v = how(x, axes)
    return c * mg.rsqrt(v + EPS)


def bn(how: Moments = shared, shape: tuple[int, ...] = IMAGE) -> Case:
    L = Leaves()
    x, gamma, beta = L(*shape), L.channels(shape[1]), L.channels(shape[1])
    return backward(L, gamma * normalized(x, BN, how) + beta, [x, gamma, beta])


def bn_plain() -> Case:
    L = Leaves()
    x = L(*IMAGE)
    return backward(L, normalized(x, BN), [x])


def bn_folded() -> Case:
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    m = mean(x, BN)
    d = x - mg.stop_gradient(m)
    inv = gamma * mg.rsqrt(mean(d * d, BN) + EPS)
    return backward(L, x * inv + (beta - m * inv), [x, gamma, beta])


def bn_divided(extra: float = 0.0) -> Case:
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    c, v = shared(x, BN)
    deviation = mg.sqrt(v + EPS)
    return backward(
        L, gamma * (c / (deviation + extra if extra else deviation)) + beta, [x, gamma, beta]
    )


def bias_norm(axes: Any) -> Case:
    """A bias before a normalization; its gradient comes last."""
    L = Leaves()
    x, gamma, beta, b = L(*IMAGE), L.channels(3), L.channels(3), L.channels(3)
    return backward(L, gamma * normalized(x + b, axes) + beta, [x, gamma, beta, b])


def bias_gn() -> Case:
    """As `bias_norm`, with groups of two channels."""
    L = Leaves()
    x, b, gamma, beta = L(2, 4, 2, 2), *(L.channels(4) for _ in range(3))
    xhat = normalized(mg.reshape(x + b, (2, 2, 2, 2, 2)), (2, 3, 4))
    return backward(L, gamma * mg.reshape(xhat, x.shape) + beta, [x, gamma, beta, b])


def bn_scale() -> Case:
    L = Leaves()
    x, gamma, beta, s, t = L(*IMAGE), *(L.channels(3) for _ in range(4))
    return backward(L, s * (gamma * normalized(x, BN) + beta) + t, [x, gamma, beta, s, t])


def caffe_bn_scale() -> Case:
    """Caffe's two layers: a root and a division without affine; then scale and bias."""
    L = Leaves()
    x, s, t = L(*IMAGE), L.channels(3), L.channels(3)
    c, v = shared(x, BN)
    xhat = c / mg.broadcast_to((v + EPS) ** 0.5, x.shape)
    return backward(L, s * xhat + t, [x, s, t])


def bn_relu(residual: bool = False) -> Case:
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    y, inputs = gamma * normalized(x, BN) + beta, [x, gamma, beta]
    if residual:
        r = L(*IMAGE)
        y, inputs = y + r, [*inputs, r]
    return backward(L, nn.relu(y), inputs)


def bn_of_residual() -> Case:
    L = Leaves()
    a, r, gamma, beta = L(*IMAGE), L(*IMAGE), L.channels(3), L.channels(3)
    return backward(L, gamma * normalized(a + r, BN) + beta, [a, r, gamma, beta])


def bn_eval(parameters: bool = True) -> Case:
    L = Leaves()
    x, gamma, beta, m, v = L(*IMAGE), *(L.channels(3) for _ in range(4))
    y = gamma * ((x - m) * mg.rsqrt(v * v + EPS)) + beta
    return backward(L, y, [x, gamma, beta] if parameters else [x])


def renorm(offset: bool = True, order: int = 1) -> Case:
    L = Leaves()
    x, gamma, beta, m, s = L(*IMAGE), *(L.channels(3) for _ in range(4))
    c, v = shared(x, BN)
    deviation, s = mg.sqrt(v + EPS), s * s + 0.5
    r = mg.stop_gradient(mg.clip(deviation / s, 1 / 1.1, 1.1))
    d = mg.stop_gradient(mg.clip((mean(x, BN) - m) / s, -0.25, 0.25))
    y = gamma * (c / deviation * r + d) + beta
    inputs = [x, gamma, beta] if offset else [x, gamma]
    return backward(L, y, inputs) if order == 1 else twice(L, y, inputs)


def bn_mean_only() -> Case:
    L = Leaves()
    x, beta = L(*IMAGE), L.channels(3)
    return backward(L, x - mean(x, BN) + beta, [x, beta])


def ln(shape: tuple[int, ...] = TABLE, axes: Any = ROW, how: Moments = shared) -> Case:
    L = Leaves()
    x, gamma, beta = L(*shape), L(*shape[axes[0] :]), L(*shape[axes[0] :])
    return backward(L, gamma * normalized(x, axes, how) + beta, [x, gamma, beta])


def per_channel(axes: Any, how: Moments = shared) -> Case:
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    return backward(L, gamma * normalized(x, axes, how) + beta, [x, gamma, beta])


def gn(flat: bool = False, how: Moments = shared) -> Case:
    L = Leaves()
    shape = n, c, h, w = (2, 6, 2, 2)
    groups = 2
    x, gamma, beta = L(*shape), L.channels(c), L.channels(c)
    if flat:
        xhat = normalized(mg.reshape(x, (n, groups, c // groups * h * w)), (2,), how)
    else:
        xhat = normalized(mg.reshape(x, (n, groups, c // groups, h, w)), (2, 3, 4), how)
    return backward(L, gamma * mg.reshape(xhat, shape) + beta, [x, gamma, beta])


def rms() -> Case:
    L = Leaves()
    x, gamma = L(*TABLE), L(TABLE[1])
    return backward(L, gamma * (x * mg.rsqrt(mean(x * x, ROW) + EPS)), [x, gamma])


def weight_norm(order: int = 1) -> Case:
    L = Leaves()
    v, scale = L(*TABLE), L(TABLE[0], 1)
    w = scale * v / mg.sqrt(total(v * v, ROW))
    return backward(L, w, [v, scale]) if order == 1 else twice(L, w, [v, scale])


def weight_standardization() -> Case:
    L = Leaves()
    w = L(*TABLE)
    c, v = shared(w, ROW)
    return backward(L, c / (mg.sqrt(v) + EPS), [w])


def filter_response() -> Case:
    L = Leaves()
    x, gamma, beta, tau = L(*IMAGE), *(L.channels(3) for _ in range(3))
    y = gamma * (x * mg.rsqrt(mean(x * x, (2, 3)) + EPS)) + beta
    return backward(L, mg.where(y < tau, tau, y), [x, gamma, beta, tau])


def cross_entropy(by_probabilities: bool = False) -> Case:
    L = Leaves()
    z, labels = L(*TABLE), L.labels(*TABLE)
    if not by_probabilities:
        loss = nn.cross_entropy(z, labels)
        return [loss.node], nodes([mg.gradients(loss, z)])
    e = mg.exp(z - mg.stop_gradient(mg.max(z, axis=1, keepdims=True)))
    s = total(e, ROW)
    loss = -mg.sum(mg.one_hot(labels, TABLE[1], z.dtype) * mg.log(e / s)) / TABLE[0]
    return nodes([loss, e, s]), nodes([mg.gradients(loss, z)])


def softmax() -> Case:
    L = Leaves()
    z = L(*TABLE)
    return backward(L, nn.softmax(z, 1), [z])


def mse() -> Case:
    L = Leaves()
    x, t = L(*TABLE), L(*TABLE)
    loss = mg.mean((x - t) * (x - t))
    return [loss.node], nodes([mg.gradients(loss, x)])


def bn_twice(parameters: bool = True, how: Moments = shared) -> Case:
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    return twice(L, gamma * normalized(x, BN, how) + beta, [x, gamma, beta], parameters)


def ln_twice(how: Moments = shared) -> Case:
    L = Leaves()
    x, gamma, beta = L(*TABLE), L(TABLE[1]), L(TABLE[1])
    return twice(L, gamma * normalized(x, ROW, how) + beta, [x, gamma, beta])


def bn_thrice() -> Case:
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    y = gamma * normalized(x, BN) + beta
    g, u, w = L(*IMAGE), L(*IMAGE), L(*IMAGE)
    (dx,) = mg.gradients(y, [x], g, create_graph=True)
    (ddx,) = mg.gradients(dx, [x], u, create_graph=True)
    return [y.node], nodes(mg.gradients(ddx, [x, gamma, g, u], w, create_graph=True))


def penalty(axes: Any) -> Case:
    """The gradients of sum((|dL/dx| - 1)^2) through a normalization."""
    L = Leaves()
    x, gamma, beta = L(*IMAGE), L.channels(3), L.channels(3)
    y, s = mg.tanh(gamma * normalized(x, axes) + beta), L(*IMAGE)
    (dx,) = mg.gradients(y, [x], s, create_graph=True)
    length = mg.sqrt(total(dx * dx, (1, 2, 3)))
    p = mg.mean((length - 1) * (length - 1))
    return [y.node], nodes(mg.gradients(p, [gamma, beta, s], create_graph=True))


def bn_with_running_statistics() -> Case:
    L = Leaves()
    x, gamma, beta, m, v = L(*IMAGE), *(L.channels(3) for _ in range(4))
    mu = mean(x, BN)
    c = x - mu
    var = mean(c * c, BN)
    n = 16
    updated = [
        m * 0.9 + mg.stop_gradient(mu) * 0.1,
        v * 0.9 + mg.stop_gradient(var * (n / (n - 1))) * 0.1,
    ]
    forward, gradients = backward(L, gamma * (c * mg.rsqrt(var + EPS)) + beta, [x, gamma, beta])
    return [*forward, *nodes(updated)], gradients


def layer(
    f: Callable[..., Tensor],
    *sizes: tuple[int, ...],
    x: tuple[int, ...] | None = None,
    order: int = 1,
) -> Case:
    """A function of `minigrad.nn` with parameters of the given shapes."""
    L = Leaves()
    inputs = [L(*(x or IMAGE)), *(L(*s, low=0.5) for s in sizes)]
    return (backward if order == 1 else twice)(L, f(*inputs), inputs)


def chain(depth: int, activation: Callable[[Tensor], Tensor] | None = None) -> Case:
    L = Leaves()
    h = L(*IMAGE)
    inputs = [h]
    for _ in range(depth):
        gamma, beta = L.channels(3), L.channels(3)
        h = gamma * normalized(h, BN) + beta
        h = activation(h) if activation else h
        inputs += [gamma, beta]
    return backward(L, h, inputs)


def blocks(depth: int) -> Case:
    """Residual blocks of two convolutions with BN each."""
    L = Leaves()
    h = L(2, 4, 3, 3)
    inputs = [h]
    for _ in range(depth):
        r = h
        for last in (False, True):
            w, gamma, beta = L(4, 4, 1, 1), L.channels(4), L.channels(4)
            inputs += [w, gamma, beta]
            h = gamma * normalized(nn.conv2d(h, w), BN) + beta
            h = nn.relu(h + r if last else h)
    return backward(L, h, inputs)


def adam() -> list[Node]:
    L = Leaves()
    p, g, m, v = (L(*TABLE) for _ in range(4))
    m = m * 0.9 + g * 0.1
    v = v * v * 0.999 + g * g * 0.001
    step = (m / (1 - 0.9**3)) / (mg.sqrt(v / (1 - 0.999**3)) + 1e-8) * 1e-3
    return nodes([p - step, m, v])


def sgd() -> list[Node]:
    L = Leaves()
    p, g, v = (L(*TABLE) for _ in range(3))
    v = v * 0.9 + (g + p * 5e-4)
    return nodes([v, p - v * 0.1])


def gelu() -> list[Node]:
    L = Leaves()
    x = L(*TABLE)
    y = nn.gelu(x, "tanh")
    return [y.node, *nodes(mg.gradients(y, [x], L(*TABLE), create_graph=True))]
