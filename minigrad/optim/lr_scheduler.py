"""Learning-rate schedules: a rate as a function of the epoch, written into the parameter groups.

Each schedule is one closed formula, `_rate(base_lr, epoch)`; PyTorch's recursive ones agree with it
to rounding. It follows that a schedule owns the rate: a value set by hand lasts until the next
`step()`. Rates are in the optimizer's units, epochs are counted from 0. An "epoch" is one call of
`step()`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.optim.optimizer import Optimizer
from minigrad.optim.schedule import LRScheduler, Schedule

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


class LambdaLR(LRScheduler):
    """rate = base * f(epoch), with one function or one for each group."""

    lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]

    def _prepare(self) -> None:
        self.lr_lambdas = self.one_for_each("function", self.lr_lambda)

    def _apply(self) -> None:
        groups = self.optimizer.param_groups
        for group, base, f in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * f(self.last_epoch)


class StepLR(LRScheduler):
    """rate = base * gamma ** floor(epoch / step_size)."""

    step_size: int
    gamma: float = 0.1
    counts = ("step_size",)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """rate = base * gamma ** (number of milestones reached)."""

    milestones: Sequence[int]
    gamma: float = 0.1

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * self.gamma ** sum(epoch >= reached for reached in self.milestones)


class ConstantLR(LRScheduler):
    """rate = base * factor for the first total_iters epochs, then base."""

    factor: float = 1 / 3
    total_iters: int = 5

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * (self.factor if epoch < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """rate = base * (a straight line from start_factor to end_factor over total_iters epochs)."""

    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: int = 5
    counts = ("total_iters",)

    def _prepare(self) -> None:
        start, end = self.start_factor, self.end_factor
        self.require(0 < start <= 1, "start_factor in (0, 1]", start)
        self.require(0 <= end <= 1, "end_factor in [0, 1]", end)

    def _rate(self, base_lr: float, epoch: int) -> float:
        progress = min(epoch, self.total_iters) / self.total_iters
        return base_lr * _line(self.start_factor, self.end_factor, progress)


class ExponentialLR(LRScheduler):
    """rate = base * gamma ** epoch."""

    gamma: float

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * self.gamma**epoch


class PolynomialLR(LRScheduler):
    """rate = base * (1 - epoch / total_iters) ** power, then 0."""

    total_iters: int = 5
    power: float = 1.0
    counts = ("total_iters",)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(LRScheduler):
    """rate = eta_min + (base - eta_min) * (1 + cos(pi * epoch / T_max)) / 2.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts: it rises again after
    T_max.
    """

    T_max: int
    eta_min: float = 0.0
    counts = ("T_max",)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return _cosine(base_lr, self.eta_min, epoch / self.T_max)


class OneCycleLR(LRScheduler):
    """Up to max_lr, then far down, with the momentum going the other way.

    The rate goes from max_lr / div_factor to max_lr in the first `pct_start` of the steps, then to
    max_lr / div_factor / final_div_factor (`three_phase`: back to the start first, equally fast).

    Source: Smith & Topin 2017, arXiv:1708.07120. Meant to be stepped once a batch, total_steps
    times.
    """

    max_lr: float | Sequence[float]
    total_steps: int | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False
    counts = ("total_steps",)

    def _prepare(self) -> None:
        self._check()
        if self.last_epoch < 0:
            peaks = self.one_for_each("max_lr", self.max_lr)
            for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
                group["initial_lr"] = peak / self.div_factor

    def _check(self) -> None:
        if self.total_steps is None:
            epochs, steps = self.epochs or 0, self.steps_per_epoch or 0
            self.total_steps = epochs * steps
            expected = "total_steps, or epochs and steps_per_epoch"
            self.require(
                self.total_steps > 0, expected, f"{self.epochs} and {self.steps_per_epoch}"
            )
        self.require(0 <= self.pct_start <= 1, "pct_start in [0, 1]", self.pct_start)
        strategy = self.anneal_strategy
        known = strategy in ("cos", "linear")
        self.require(known, "anneal_strategy 'cos' or 'linear'", repr(strategy))
        turns = not self.cycle_momentum or {"momentum", "betas"} & set(self.optimizer.defaults)
        got, cure = type(self.optimizer).__name__, "Pass cycle_momentum=False."
        self.require(bool(turns), "an optimizer with momentum or betas", got, cure)

    def _position(self) -> tuple[int, float]:
        """The phase, and how much of it is done."""
        epoch, total = self.last_epoch, self.total_steps
        assert total is not None
        self.require(epoch <= total, f"at most {total} steps", epoch, "Pass a larger total_steps.")
        up = self.pct_start * total - 1  # the step at which the peak is reached
        ends = [up, 2 * up, total - 1] if self.three_phase else [up, total - 1]
        phase = next((i for i, end in enumerate(ends) if epoch <= end), len(ends) - 1)
        start = ends[phase - 1] if phase else 0.0
        return phase, (epoch - start) / (ends[phase] - start)

    def _apply(self) -> None:
        phase, progress = self._position()
        anneal = _line if self.anneal_strategy == "linear" else _cosine
        high, low = self.max_momentum, self.base_momentum
        levels = [high, low, high, high]
        momentum = anneal(levels[phase], levels[phase + 1], progress)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            peak, last = base * self.div_factor, base / self.final_div_factor
            rates = [base, peak, base, last] if self.three_phase else [base, peak, last]
            group["lr"] = anneal(rates[phase], rates[phase + 1], progress)
            if self.cycle_momentum and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif self.cycle_momentum:
                group["momentum"] = momentum


class SequentialLR(LRScheduler):
    """One schedule after another: number i + 1 begins, at its own epoch 0, at milestones[i].

    A warm-up is `SequentialLR(o, [LinearLR(o, ...), CosineAnnealingLR(o, ...)], [warmup_epochs])`.
    """

    schedulers: Sequence[LRScheduler]
    milestones: Sequence[int]

    def _prepare(self) -> None:
        n, milestones = len(self.schedulers), len(self.milestones)
        between = f"one milestone between each two of {n} schedulers"
        self.require(milestones == n - 1, between, f"{milestones} milestones")
        for scheduler in self.schedulers:
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    "SequentialLR: expected schedules of the epoch, got "
                    f"{type(scheduler).__name__}."
                )
            same = scheduler.optimizer is self.optimizer
            self.require(same, "schedulers of the optimizer passed", "another's")

    def _apply(self) -> None:
        i = bisect_right(self.milestones, self.last_epoch)
        current = self.schedulers[i]
        current.last_epoch = self.last_epoch - (self.milestones[i - 1] if i else 0)
        current._apply()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the state of each schedule."""
        return super().state_dict() | {"schedulers": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`, and set the rates it stands for."""
        for scheduler, part in zip(self.schedulers, state["schedulers"], strict=True):
            vars(scheduler).update(part)
        super().load_state_dict({k: v for k, v in state.items() if k != "schedulers"})


@dataclass(eq=False, repr=False)
class ReduceLROnPlateau(Schedule):
    """Multiplies the rate by `factor` after more than `patience` steps without improvement.

    Args:
        mode: "min" if a smaller metric is better, "max" if a larger one is.
        threshold, threshold_mode: the least improvement, as a share of the best ("rel") or in the
            metric's units ("abs").
        cooldown: steps after a reduction in which nothing is counted.
        min_lr: a floor, one for all groups or one each.
        eps: a reduction smaller than this is not made.
    """

    optimizer: Optimizer
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float | Sequence[float] = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Check the options, and begin without a best metric."""
        self.check_optimizer()
        self.require(0 <= self.factor < 1, "factor in [0, 1)", self.factor)
        mode, threshold_mode = self.mode, self.threshold_mode
        self.require(mode in ("min", "max"), "mode 'min' or 'max'", repr(mode))
        known = threshold_mode in ("rel", "abs")
        self.require(known, "threshold_mode 'rel' or 'abs'", repr(threshold_mode))
        self.min_lrs = self.one_for_each("min_lr", self.min_lr)
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def is_better(self, metric: float) -> bool:
        """Whether the metric improves on the best by more than the threshold."""
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            bar = self.best * (1 + sign * self.threshold)
        else:
            bar = self.best + sign * self.threshold
        return metric < bar if self.mode == "min" else metric > bar

    def step(self, metrics: Any) -> None:
        """Count one epoch with this metric (a number or a 0-d tensor)."""
        metric = float(metrics)
        self.last_epoch += 1
        if self.is_better(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, floor in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                reduced = max(group["lr"] * self.factor, floor)
                if group["lr"] - reduced > self.eps:
                    group["lr"] = reduced
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _line(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress
