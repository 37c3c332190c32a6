"""Training steps of whole networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

import layers
import minigrad as mg
from tests.bench.normalization import from_torch
from tests.bench.timing import Ratio, paired


def their_lenet(norm: bool) -> nn.Module:
    """LeNet-5 as `layers.models.LeNet5` has it."""

    def block(layer: nn.Module, normalization: nn.Module) -> list[nn.Module]:
        return [layer, *([normalization] if norm else []), nn.ReLU()]

    return nn.Sequential(
        *block(nn.Conv2d(3, 6, 5, bias=not norm), nn.BatchNorm2d(6)),
        nn.MaxPool2d(2),
        *block(nn.Conv2d(6, 16, 5, bias=not norm), nn.BatchNorm2d(16)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *block(nn.Linear(400, 120, bias=not norm), nn.BatchNorm1d(120)),
        *block(nn.Linear(120, 84, bias=not norm), nn.BatchNorm1d(84)),
        nn.Linear(84, 10),
    )


def lenet(norm: bool, captured: bool = True, inductor: bool = False) -> Callable[[], Ratio]:
    """One SGD step at batch 128; `inductor`: theirs through `torch.compile`."""

    def run() -> Ratio:
        x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
        settings = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        theirs = their_lenet(norm)
        their_optimizer = torch.optim.SGD(theirs.parameters(), **settings)
        ours = layers.models.LeNet5(norm=layers.BatchNorm2d if norm else None)
        optimizer = mg.optim.SGD(ours.parameters(), **settings)
        mine, labels = from_torch(x), from_torch(y)

        def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
            optimizer.zero_grad()
            loss = mg.nn.cross_entropy(ours(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def their_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(theirs(x), y)

        loss_of = torch.compile(their_loss) if inductor else their_loss

        def their_step() -> None:
            their_optimizer.zero_grad()
            loss_of(x, y).backward()
            their_optimizer.step()

        run_step = mg.compile(step) if captured else step
        name = f"LeNet-5{'+BN' if norm else ''} step, batch 128"
        name += ", compiled" if captured else ", not compiled"
        name += ", torch.compile" if inductor else ""
        return paired(name, lambda: run_step(mine, labels), their_step)

    return run


class TheirBlock(nn.Module):
    """The basic block of He et al. 2016."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.short = nn.Sequential()
        if (inner, stride) != (outer, 1):
            self.short = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.main(x) + self.short(x))


class OurBlock(layers.Module):
    """The same."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        conv, norm = layers.Conv2d, layers.BatchNorm2d
        self.main = layers.Sequential(
            conv(inner, outer, 3, stride, 1, bias=False), norm(outer), layers.ReLU(),
            conv(outer, outer, 3, 1, 1, bias=False), norm(outer),
        )  # fmt: skip
        self.short = layers.Sequential()
        if (inner, stride) != (outer, 1):
            self.short = layers.Sequential(conv(inner, outer, 1, stride, bias=False), norm(outer))

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.nn.relu(self.main(x) + self.short(x))


STAGES = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]


def resnet18(batch: int = 256) -> Callable[[], Ratio]:
    """One SGD step of ResNet-18 with a 3x3 stem, as usual for CIFAR-10 (He et al. 2016)."""

    def blocks(block: Callable[[int, int, int], object]) -> list:
        return [b for i, o, s in STAGES for b in (block(i, o, s), block(o, o, 1))]

    def run() -> Ratio:
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
        settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        theirs = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            *blocks(TheirBlock), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        ours = layers.Sequential(
            layers.Conv2d(3, 64, 3, 1, 1, bias=False), layers.BatchNorm2d(64), layers.ReLU(),
            *blocks(OurBlock), layers.GlobalAvgPool2d(), layers.Flatten(), layers.Linear(512, 10),
        )  # fmt: skip
        their_optimizer = torch.optim.SGD(theirs.parameters(), **settings)
        optimizer = mg.optim.SGD(ours.parameters(), **settings)
        mine, labels = from_torch(x), from_torch(y)

        @mg.compile
        def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
            optimizer.zero_grad()
            loss = mg.nn.cross_entropy(ours(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def their_step() -> None:
            their_optimizer.zero_grad()
            F.cross_entropy(theirs(x), y).backward()
            their_optimizer.step()

        name = f"ResNet-18 step, {batch}x3x32x32"
        return paired(name, lambda: step(mine, labels), their_step, rounds=5)

    return run


def gradient_penalty(penalized: bool) -> Callable[[], Ratio]:
    """A critic of three convolutions with BN and tanh, width 32, on 64x3x32x32.

    The loss is the critic's mean; `penalized` adds (|d critic / d x| - 1)**2 of each image
    (Gulrajani et al. 2017, arXiv:1704.00028), so parameters are reached through a gradient.
    """

    def run() -> Ratio:
        widths = [(3, 32), (32, 32), (32, 32)]
        x = torch.randn(64, 3, 32, 32, requires_grad=True)
        theirs = nn.Sequential(
            *[
                part
                for a, b in widths
                for part in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.Tanh())
            ]
        )
        ours = layers.Sequential(
            *[
                part
                for a, b in widths
                for part in (
                    layers.Conv2d(a, b, 3, padding=1),
                    layers.BatchNorm2d(b),
                    layers.Tanh(),
                )
            ]
        )
        mine, parameters = from_torch(x, True), ours.parameters()

        @mg.compile
        def step(x: mg.Tensor) -> list[mg.Tensor]:
            score = ours(x).mean(axis=(1, 2, 3))
            loss = score.mean()
            if penalized:
                (dx,) = mg.gradients([score.sum()], [x], create_graph=True)
                norm = mg.sqrt((dx * dx).sum(axis=(1, 2, 3)) + 1e-12)
                loss = loss + 10 * ((norm - 1) ** 2).mean()
            return [loss, *mg.gradients([loss], parameters)]

        def their_step() -> None:
            score = theirs(x).mean(dim=(1, 2, 3))
            loss = score.mean()
            if penalized:
                (dx,) = torch.autograd.grad(score.sum(), x, create_graph=True)
                norm = torch.sqrt((dx * dx).sum(dim=(1, 2, 3)) + 1e-12)
                loss = loss + 10 * ((norm - 1) ** 2).mean()
            torch.autograd.grad(loss, list(theirs.parameters()))

        name = "critic with gradient penalty" if penalized else "critic, plain"
        return paired(f"{name}, 64x3x32x32", lambda: step(mine), their_step, rounds=5)

    return run
