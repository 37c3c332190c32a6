"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.functions.elementwise import sqrt
from minigrad.optim.optimizer import Group, Optimizer, State
from minigrad.tensor import Tensor

__all__ = ["RMSprop"]


class RMSprop(Optimizer):
    """The gradient over the root of its running mean square.

        g = g + weight_decay * p
        s = alpha * s + (1 - alpha) * g**2
        r = g / (sqrt(s - a**2 if centered else s) + eps),  a the running mean of g
        p = p - lr * (b = momentum * b + r)

    Source: Hinton's lecture 6e; `centered`: Graves 2013, arXiv:1308.0850.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ):
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"momentum": momentum, "centered": centered})

    def check_options(self, group: Group) -> None:
        """Raise ValueError for an option out of its range."""
        super().check_options(group)
        self.require(0 <= group["alpha"] <= 1, "alpha in [0, 1]", group["alpha"])

    def initial_state(self, group: Group) -> dict[str, float]:
        """The mean square, and what the options ask for."""
        asked_for = {"momentum_buffer": group["momentum"], "grad_avg": group["centered"]}
        return {"square_avg": 0.0} | {name: 0.0 for name, wanted in asked_for.items() if wanted}

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """One step of one parameter."""
        lr, decay, eps, momentum = self.numbers(p, group, "lr", "weight_decay", "eps", "momentum")
        alpha = self.hyperparameter(group, "alpha", p.device)
        old, new = alpha.astype(p.dtype), (1.0 - alpha).astype(p.dtype)
        if group["weight_decay"]:
            g = g + decay * p
        square = old * state["square_avg"] + new * (g * g)
        state["square_avg"].assign(square)
        if group["centered"]:
            mean = old * state["grad_avg"] + new * g
            state["grad_avg"].assign(mean)
            square = square - mean * mean
        r = g / (sqrt(square) + eps)
        if group["momentum"]:
            r = momentum * state["momentum_buffer"] + r
            state["momentum_buffer"].assign(r)
        p.assign(p - lr * r)
