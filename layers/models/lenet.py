"""LeNet-5, in its modern form: ReLU and max pooling, colour input."""

from __future__ import annotations

from collections.abc import Callable

import minigrad as mg
from layers.activation import ReLU
from layers.conv import Conv2d
from layers.linear import Linear
from layers.module import Module
from layers.norm.registry import NormFactory, norm_factory
from layers.pool import MaxPool2d
from minigrad import Tensor


class LeNet5(Module):
    """Two 5x5 convolutions of 6 and 16 maps, then 120, 84 and `classes` features.

        conv -> norm -> activation -> pool, twice;  fc -> norm -> activation, twice;  fc

    Source: LeCun et al. 1998, with ReLU, max pooling and full connections.
    Shapes: x (N, in_channels, 32, 32) -> scores (N, classes).
    Parameters: 62006 for colour and 10 classes without norm; 62232 with BatchNorm.

    Args:
        in_channels: 3 for colour, 1 for grey.
        classes: the number of scores.
        norm: a name such as "batch" or "group:2", or a factory `channels -> Module`, such as
            `BatchNorm2d` (see `layers.norm_factory`), for a norm after both convolutions and the
            first two fully connected layers. It always sees maps (N, C, H, W): features are maps
            of one pixel. The layer before a norm has no bias.
        activation: a factory `() -> Module`.
    Init: that of the layers, U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)). Without a norm, He's larger
        weights start at a loss of 3.8 instead of 2.3, and with momentum some seeds never recover.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        norm: str | NormFactory | None = None,
        activation: Callable[[], Module] = ReLU,
    ):
        bias = norm is None
        make_norm = norm_factory(norm)
        self.conv1 = Conv2d(in_channels, 6, 5, bias=bias)
        self.norm1 = make_norm(6)
        self.conv2 = Conv2d(6, 16, 5, bias=bias)
        self.norm2 = make_norm(16)
        self.fc1 = Linear(16 * 5 * 5, 120, bias=bias)
        self.norm3 = make_norm(120)
        self.fc2 = Linear(120, 84, bias=bias)
        self.norm4 = make_norm(84)
        self.fc3 = Linear(84, classes)
        self.activation, self.pool = activation(), MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2:] != (32, 32):
            raise ValueError(
                f"LeNet5: expected x of shape (N, {self.conv1.in_channels}, 32, 32), got "
                f"{x.shape}. Pad or resize the images to 32 x 32."
            )
        x = self.pool(self.activation(self.norm1(self.conv1(x))))  # (N, 6, 14, 14)
        x = self.pool(self.activation(self.norm2(self.conv2(x))))  # (N, 16, 5, 5)
        x = mg.reshape(x, (x.shape[0], 400))
        x = self.activation(_on_features(self.norm3, self.fc1(x)))  # (N, 120)
        x = self.activation(_on_features(self.norm4, self.fc2(x)))  # (N, 84)
        return self.fc3(x)


def _on_features(norm: Module, x: Tensor) -> Tensor:
    """A norm for maps on features, so that one factory serves the whole network."""
    return norm(mg.reshape(x, (*x.shape, 1, 1))).reshape(x.shape)
