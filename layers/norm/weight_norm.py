"""Weight normalization."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from layers.functional import functional_call
from layers.module import Module, Parameter
from layers.norm.reparametrized import Reparametrized
from minigrad import Tensor

__all__ = ["WeightNorm", "initialize_weight_norm"]


class WeightNorm(Reparametrized):
    """A layer whose weight has its length and its direction trained apart.

        weight = g * v / ||v||;  with log_scale c: g = exp(c * s)

    Source: Salimans & Kingma 2016, arXiv:1602.07868.
    Shapes: those of the layer; scale (out,) is g or s, and v is the layer's own weight.

    Args:
        layer: Linear, Conv2d, or another with a weight; what it computes stays as it is.
        axis: of the weight, along which the outputs are.
        log_scale: c > 0, to train the logarithm of g, which then stays positive.
    State: no statistics; training and eval are alike. `initialize` fits g and bias to a batch.
    Raises: ValueError if the weight of an output is 0: it has no direction.
    """

    def __init__(self, layer: Module, axis: int = 0, log_scale: float | None = None):
        super().__init__(layer)
        self.axis, self.log_scale = axis, log_scale
        length = mg.sqrt(mg.sum(self.trained**2, axis=_all_but(axis, self.trained)))
        self._check(length)
        self.scale = Parameter(self._scale_of(length))

    @property
    def g(self) -> Tensor:
        """The length of the weight of each output."""
        c = self.log_scale
        return self.scale if c is None else mg.exp(c * self.scale)

    def _scale_of(self, g: Tensor) -> Tensor:
        c = self.log_scale
        return g if c is None else mg.log(g) / c

    @property
    def weight(self) -> Tensor:
        return mg.nn.weight_norm(self.trained, self.g, self.axis)

    @mg.no_grad()
    def initialize(self, x: Tensor, init_scale: float = 1.0, eps: float = 1e-10) -> None:
        """Give the outputs for the batch x mean 0 and standard deviation init_scale.

            t = v / ||v|| x;  g = init_scale / std(t);  bias = -mean(t) * g

        The paper draws v ~ N(0, 0.05^2) before: `init.normal(layer.trained, 0, 0.05)`.

        Args:
            eps: added to the variance of t, in units of t squared.
        """
        bias = self.layer.bias
        state = {"weight": mg.nn.weight_norm(self.trained, mg.ones_like(self.g), self.axis)}
        if bias is not None:
            state["bias"] = mg.zeros_like(bias)
        t = functional_call(self.layer, state, x)
        mean, var = mg.nn.moments(t, _all_but(1 if self.trained.ndim > 2 else -1, t))
        g = init_scale * mg.rsqrt(var + eps)
        self.scale.assign(self._scale_of(g))
        if bias is not None:
            bias.assign(-mean * g)

    def _check(self, length: Tensor) -> None:
        if self.log_scale is not None and not self.log_scale > 0:
            raise ValueError(f"WeightNorm.log_scale: expected a number > 0, got {self.log_scale}.")
        if mg.any(length == 0).item():
            raise ValueError(
                "WeightNorm: expected a weight that is not 0 for each output, got one that is: it "
                "has no direction. Initialize the layer first."
            )

    def extra_repr(self) -> str:
        return f"axis={self.axis}, log_scale={self.log_scale}"


def initialize_weight_norm(model: Module, x: Tensor, init_scale: float = 1.0) -> None:
    """`WeightNorm.initialize` for every layer of a model on one batch, from the first to the last.

    Each takes the outputs of the layers before as they are once those are initialized.
    """

    def initialized(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
        layer.initialize(*args, init_scale=init_scale)
        return layer.forward(*args)  # the output that was there is never computed

    hooks = [
        m.register_forward_hook(initialized) for m in model.modules() if isinstance(m, WeightNorm)
    ]
    try:
        with mg.no_grad():
            mg.evaluate(model(x), *model.parameters())
    finally:
        for hook in hooks:
            hook.remove()


def _all_but(axis: int, x: Tensor) -> tuple[int, ...]:
    return tuple(a for a in range(x.ndim) if a != axis % x.ndim)
