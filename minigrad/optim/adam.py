"""Adam, and AdamW with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.functions.elementwise import maximum, sqrt
from minigrad.optim.optimizer import Group, Optimizer, State
from minigrad.tensor import Tensor

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    """Steps of the size of the rate, from running moments of the gradient.

        g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

    Source: Kingma & Ba 2015, arXiv:1412.6980; amsgrad (the largest v so far): arXiv:1904.09237.

    Args:
        lr: learning rate, in units of p.
        betas: weights of the old moments, in [0, 1).
        eps: in units of the gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"amsgrad": amsgrad})

    counts_steps = True

    def initial_state(self, group: Group) -> dict[str, float]:
        """The moments."""
        moments = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        return moments | {"max_exp_avg_sq": 0.0} if group["amsgrad"] else moments

    def decayed(self, p: Tensor, g: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """The parameter and the gradient after weight decay."""
        (decay,) = self.numbers(p, group, "weight_decay")
        return p, g + decay * p

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """One step of one parameter."""
        # The factors are float64 numbers: see [Note: a step is a graph].
        names = ("lr", "beta1", "beta2")
        lr, beta1, beta2 = (self.hyperparameter(group, n, p.device) for n in names)
        t = state["step"]
        size = (lr / (1.0 - beta1**t)).astype(p.dtype)
        correction = sqrt(1.0 - beta2**t).astype(p.dtype)
        old1, old2 = beta1.astype(p.dtype), beta2.astype(p.dtype)
        new1, new2 = (1.0 - beta1).astype(p.dtype), (1.0 - beta2).astype(p.dtype)
        (eps,) = self.numbers(p, group, "eps")
        w = p
        if group["weight_decay"]:
            w, g = self.decayed(p, g, group)
        m = old1 * state["exp_avg"] + new1 * g
        v = old2 * state["exp_avg_sq"] + new2 * (g * g)
        state["exp_avg"].assign(m)
        state["exp_avg_sq"].assign(v)
        if group["amsgrad"]:
            v = maximum(state["max_exp_avg_sq"], v)
            state["max_exp_avg_sq"].assign(v)
        p.assign(w - size * m / (sqrt(v) / correction + eps))


class AdamW(Adam):
    """Adam with a weight decay of the parameter, not the gradient: p = p * (1 - lr * weight_decay).

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101. Note the default weight_decay of 0.01.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)

    def decayed(self, p: Tensor, g: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """The parameter and the gradient after weight decay."""
        lr, decay = (self.hyperparameter(group, n, p.device) for n in ("lr", "weight_decay"))
        return p * (1.0 - lr * decay).astype(p.dtype), g
