"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.functions.elementwise import sqrt
from minigrad.optim.optimizer import Group, Optimizer, State
from minigrad.tensor import Tensor

__all__ = ["Adagrad"]


class Adagrad(Optimizer):
    """The gradient over the root of the sum of its squares.

        g = g + weight_decay * p
        s = s + g**2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Source: Duchi, Hazan & Singer 2011.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ):
        options = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        start = {"initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, options | start)

    counts_steps = True

    def initial_state(self, group: Group) -> dict[str, float]:
        """The sum of squares."""
        return {"sum": group["initial_accumulator_value"]}

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """One step of one parameter."""
        decay, eps = self.numbers(p, group, "weight_decay", "eps")
        lr, lr_decay = (self.hyperparameter(group, n, p.device) for n in ("lr", "lr_decay"))
        rate = (lr / (1.0 + (state["step"] - 1.0) * lr_decay)).astype(p.dtype)
        if group["weight_decay"]:
            g = g + decay * p
        total = state["sum"] + g * g
        state["sum"].assign(total)
        p.assign(p - rate * g / (sqrt(total) + eps))
