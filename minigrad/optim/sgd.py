"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.functions.elementwise import where
from minigrad.optim.optimizer import Group, Optimizer, State
from minigrad.tensor import Tensor

__all__ = ["SGD"]


class SGD(Optimizer):
    """Gradient descent with momentum, weight decay, and Nesterov's look-ahead.

        g = g + weight_decay * p
        v = momentum * v + (1 - dampening) * g          (v = g at the first step)
        p = p - lr * (g + momentum * v  if nesterov else  v)

    Source: Sutskever et al. 2013. The rate multiplies v when it is used, as in PyTorch, not g when
    it is accumulated, as in Caffe: the two differ once the rate changes.

    Args:
        lr: learning rate, in units of p per unit of gradient.
        momentum, dampening, weight_decay: 0 or more; nesterov needs momentum and no dampening.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, options | {"weight_decay": weight_decay, "nesterov": nesterov})

    counts_steps = True  # dampening does not hold at the first step

    def check_options(self, group: Group) -> None:
        """Raise ValueError for an option out of its range."""
        super().check_options(group)
        if group["nesterov"]:
            good = group["momentum"] > 0 and group["dampening"] == 0
            self.require(
                good,
                "momentum > 0 and dampening 0 with nesterov",
                f"momentum={group['momentum']} and dampening={group['dampening']}",
            )

    def initial_state(self, group: Group) -> dict[str, float]:
        """The velocity v."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """One step of one parameter."""
        names = ("lr", "momentum", "dampening", "weight_decay")
        lr, momentum, dampening, decay = self.numbers(p, group, *names)
        if group["weight_decay"]:
            g = g + decay * p
        if group["momentum"]:
            fresh = g
            if group["dampening"]:
                fresh = where(state["step"] == 1.0, g, (1.0 - dampening) * g)
            v = momentum * state["momentum_buffer"] + fresh
            state["momentum_buffer"].assign(v)
            g = g + momentum * v if group["nesterov"] else v
        p.assign(p - lr * g)
