"""Normalization and activation, training: forward, backward and double backward."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F

import layers
import minigrad as mg
from tests.bench.timing import Ratio, paired

Shape = tuple[int, ...]


def from_torch(t: torch.Tensor, requires_grad: bool = False) -> mg.Tensor:
    """A copy in our own memory."""
    return mg.tensor(t.detach(), requires_grad=requires_grad)


def named(shape: Shape) -> str:
    return "x".join(map(str, shape))


def copy_of(arrays: int, elements: int) -> Callable[[], object]:
    """Moves as many bytes as reading half of `arrays` and writing the other half does."""
    source = torch.randn(arrays // 2 * elements)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def batch_norm_relu(shape: Shape, together: bool = True) -> Callable[[], Ratio]:
    """Training forward and backward with a given cotangent: input and parameter gradients.

    `together`: in one captured plan. Else the forward is computed before the backward is built,
    as where the cotangent depends on the output, and nothing is captured.
    """

    def run() -> Ratio:
        x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
        theirs = torch.nn.BatchNorm2d(shape[1])
        ours = layers.BatchNorm2d(shape[1])
        mine, cotangent = from_torch(x, True), from_torch(g)

        @mg.compile
        def forward_backward(x: mg.Tensor, g: mg.Tensor) -> list[mg.Tensor]:
            y = mg.nn.relu(ours(x))
            return [y, *mg.gradients([y], [x, ours.weight, ours.bias], [g])]

        def one_after_the_other() -> None:
            y = mg.nn.relu(ours(mine))
            mg.evaluate(y)
            mg.evaluate(*mg.gradients([y], [mine, ours.weight, ours.bias], [cotangent]))

        def their_step() -> None:
            x.grad = None
            theirs.zero_grad()
            torch.relu(theirs(x)).backward(g)

        if not together:
            name = f"BN+ReLU forward, then backward {named(shape)}"
            return paired(name, one_after_the_other, their_step)
        name = f"BN+ReLU forward+backward {named(shape)}"
        copy = copy_of(4, prod(shape))
        return paired(name, lambda: forward_backward(mine, cotangent), their_step, copy=copy)

    return run


def _normalized(kind: str, shape: Shape) -> tuple[Shape, Callable[..., object], Callable]:
    """Shape of weight and bias, and `(x, weight, bias) -> y` of ours and of theirs."""
    if kind == "layer":
        sizes = shape[1:] if len(shape) > 3 else shape[-1:]
        return (
            sizes,
            lambda x, w, b: mg.nn.layer_norm(x, sizes, w, b),
            lambda x, w, b: F.layer_norm(x, sizes, w, b),
        )
    channels = shape[1:2]
    if kind == "group":
        groups = min(32, shape[1] // 2)
        return (
            channels,
            lambda x, w, b: mg.nn.group_norm(x, groups, w, b),
            lambda x, w, b: F.group_norm(x, groups, w, b),
        )
    return (
        channels,
        lambda x, w, b: mg.nn.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    )


def norm_activation(kind: str, shape: Shape, activation: str = "relu") -> Callable[[], Ratio]:
    """Layer, group or instance normalization and an activation, forward and backward."""

    def run() -> Ratio:
        sizes, ours, theirs = _normalized(kind, shape)
        x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
        w, b = torch.ones(sizes, requires_grad=True), torch.zeros(sizes, requires_grad=True)
        arguments = [from_torch(t, True) for t in (x, w, b)]
        cotangent = from_torch(g)
        mine, other = getattr(mg.nn, activation), getattr(F, activation)

        @mg.compile
        def step(x: mg.Tensor, w: mg.Tensor, b: mg.Tensor, g: mg.Tensor) -> list[mg.Tensor]:
            y = mine(ours(x, w, b))
            return [y, *mg.gradients([y], [x, w, b], [g])]

        def their_step() -> None:
            x.grad = w.grad = b.grad = None
            other(theirs(x, w, b)).backward(g)

        name = f"{kind} norm+{activation} forward+backward {named(shape)}"
        copy = copy_of(4, prod(shape))
        return paired(name, lambda: step(*arguments, cotangent), their_step, copy=copy)

    return run


def double_backward(shape: Shape) -> Callable[[], Ratio]:
    """The gradients of <dx, u> with respect to x, the weight and the cotangent of BN+ReLU."""

    def run() -> Ratio:
        x, g = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
        u = torch.randn(shape)
        theirs = torch.nn.BatchNorm2d(shape[1])
        ours = layers.BatchNorm2d(shape[1])
        mine = [from_torch(x, True), from_torch(g, True), from_torch(u)]

        @mg.compile
        def step(x: mg.Tensor, g: mg.Tensor, u: mg.Tensor) -> list[mg.Tensor]:
            y = mg.nn.relu(ours(x))
            (dx,) = mg.gradients([y], [x], [g], create_graph=True)
            return [y, dx, *mg.gradients([dx], [x, ours.weight, g], [u])]

        def their_step() -> None:
            y = torch.relu(theirs(x))
            (dx,) = torch.autograd.grad(y, x, g, create_graph=True)
            torch.autograd.grad(dx, [x, theirs.weight, g], u)

        return paired(f"BN+ReLU double backward {named(shape)}", lambda: step(*mine), their_step)

    return run
