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
from typing import Any

from minigrad.optim.optimizer import Optimizer


class LRScheduler:
    """The base: a subclass says only what `_rate(base_lr, epoch)` is.

    Args:
        optimizer: whose groups' "lr" is set; "initial_lr" keeps the base rate.
        last_epoch: -1 to begin; to resume, the epoch last done ("initial_lr" must be in the
        groups).

    Raises: TypeError for something that is no optimizer, ValueError when resuming without base
    rates.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        _check_optimizer(type(self).__name__, optimizer)
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            if last_epoch < 0:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{type(self).__name__}: expected 'initial_lr' in every parameter group when "
                    f"last_epoch={last_epoch}, got none. Load the optimizer's state first."
                )
        self.base_lrs: list[float] = [g["initial_lr"] for g in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.step()

    def _rate(self, base_lr: float, epoch: int) -> float:
        """The learning rate of a group whose base rate is `base_lr`."""
        raise NotImplementedError

    def step(self) -> None:
        """Go to the next epoch."""
        self.last_epoch += 1
        self._apply()

    def _apply(self) -> None:
        """Write the rates of the current epoch into the groups."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self._rate(base, self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """The rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to resume: all but the optimizer and functions."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "optimizer" and not _holds_functions(value)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`, and set the rates it stands for."""
        vars(self).update(state)
        self._apply()


class LambdaLR(LRScheduler):
    """rate = base * f(epoch), with one function or one for each group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        _check_optimizer("LambdaLR", optimizer)
        n = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * n if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != n:
            raise ValueError(
                f"LambdaLR: expected one function for each of {n} groups, "
                f"got {len(self.lr_lambdas)}."
            )
        super().__init__(optimizer, last_epoch)

    def _apply(self) -> None:
        groups = self.optimizer.param_groups
        for group, base, f in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * f(self.last_epoch)


class StepLR(LRScheduler):
    """rate = base * gamma ** floor(epoch / step_size)."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ):
        self.step_size, self.gamma = _at_least_one("StepLR.step_size", step_size), gamma
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """rate = base * gamma ** (number of milestones reached)."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * self.gamma ** bisect_right(self.milestones, epoch)


class ConstantLR(LRScheduler):
    """rate = base * factor for the first total_iters epochs, then base."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * (self.factor if epoch < self.total_iters else 1.0)


class LinearLR(LRScheduler):
    """rate = base * (a straight line from start_factor to end_factor over total_iters epochs)."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 < start_factor <= 1:
            raise ValueError(f"LinearLR: expected start_factor in (0, 1], got {start_factor}.")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: expected end_factor in [0, 1], got {end_factor}.")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = _at_least_one("LinearLR.total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        progress = min(epoch, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * progress)


class ExponentialLR(LRScheduler):
    """rate = base * gamma ** epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * self.gamma**epoch


class PolynomialLR(LRScheduler):
    """rate = base * (1 - epoch / total_iters) ** power, then 0."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ):
        self.total_iters, self.power = _at_least_one("PolynomialLR.total_iters", total_iters), power
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return base_lr * (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(LRScheduler):
    """rate = eta_min + (base - eta_min) * (1 + cos(pi * epoch / T_max)) / 2.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts: it rises again after
    T_max.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        self.T_max, self.eta_min = _at_least_one("CosineAnnealingLR.T_max", T_max), eta_min
        super().__init__(optimizer, last_epoch)

    def _rate(self, base_lr: float, epoch: int) -> float:
        return _cosine(base_lr, self.eta_min, epoch / self.T_max)


class OneCycleLR(LRScheduler):
    """Up to max_lr, then far down, with the momentum going the other way.

    The rate goes from max_lr / div_factor to max_lr in the first `pct_start` of the steps, then to
    max_lr / div_factor / final_div_factor (`three_phase`: back to the start first, equally fast).

    Source: Smith & Topin 2017, arXiv:1708.07120. Meant to be stepped once a batch, total_steps
    times.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        _check_optimizer("OneCycleLR", optimizer)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError(
                    "OneCycleLR: expected total_steps, or epochs and steps_per_epoch, got neither."
                )
            total_steps = epochs * steps_per_epoch
        self.total_steps = _at_least_one("OneCycleLR.total_steps", total_steps)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: expected pct_start in [0, 1], got {pct_start}.")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"OneCycleLR: expected anneal_strategy 'cos' or 'linear', got {anneal_strategy!r}."
            )
        groups = optimizer.param_groups
        max_lrs = [max_lr] * len(groups) if isinstance(max_lr, (int, float)) else list(max_lr)
        if len(max_lrs) != len(groups):
            raise ValueError(
                f"OneCycleLR: expected one max_lr for each of {len(groups)} groups, "
                f"got {len(max_lrs)}."
            )
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError(
                f"OneCycleLR: expected an optimizer with momentum or betas, got "
                f"{type(optimizer).__name__}. Pass cycle_momentum=False."
            )
        if last_epoch < 0:
            for group, peak in zip(groups, max_lrs, strict=True):
                group["initial_lr"] = peak / div_factor
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        self.cycle_momentum = cycle_momentum
        self.base_momentum, self.max_momentum = base_momentum, max_momentum
        self.linear = anneal_strategy == "linear"
        up = pct_start * self.total_steps - 1  # the step at which the peak is reached
        self.ends = (
            [up, 2 * up, self.total_steps - 1] if three_phase else [up, self.total_steps - 1]
        )
        super().__init__(optimizer, last_epoch)

    def _apply(self) -> None:
        epoch = self.last_epoch
        if epoch > self.total_steps:
            raise ValueError(
                f"OneCycleLR: expected at most {self.total_steps} steps, got {epoch}. "
                "Pass a larger total_steps."
            )
        phase = next((i for i, end in enumerate(self.ends) if epoch <= end), len(self.ends) - 1)
        start = self.ends[phase - 1] if phase else 0.0
        progress = (epoch - start) / (self.ends[phase] - start)
        anneal = _line if self.linear else _cosine
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            peak, last = base * self.div_factor, base / self.final_div_factor
            rates = [base, peak, base, last] if len(self.ends) == 3 else [base, peak, last]
            group["lr"] = anneal(rates[phase], rates[phase + 1], progress)
            if self.cycle_momentum:
                high, low = self.max_momentum, self.base_momentum
                levels = [high, low, high, high]
                momentum = anneal(levels[phase], levels[phase + 1], progress)
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum


class SequentialLR(LRScheduler):
    """One schedule after another: number i + 1 begins, at its own epoch 0, at milestones[i].

    A warm-up is `SequentialLR(o, [LinearLR(o, ...), CosineAnnealingLR(o, ...)], [warmup_epochs])`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ):
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: expected one milestone between each two of {len(schedulers)} "
                f"schedulers, got {len(milestones)} milestones."
            )
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    "SequentialLR: expected schedules of the epoch, got "
                    f"{type(scheduler).__name__}."
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(
                    "SequentialLR: expected schedulers of the optimizer passed, got another's."
                )
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        super().__init__(optimizer, last_epoch)

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


class ReduceLROnPlateau:
    """Multiplies the rate by `factor` after more than `patience` steps without improvement.

    Args:
        mode: "min" if a smaller metric is better, "max" if a larger one is.
        threshold, threshold_mode: the least improvement, as a share of the best ("rel") or in the
            metric's units ("abs").
        cooldown: steps after a reduction in which nothing is counted.
        min_lr: a floor, one for all groups or one each.
        eps: a reduction smaller than this is not made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ):
        _check_optimizer("ReduceLROnPlateau", optimizer)
        if not 0 <= factor < 1:
            raise ValueError(f"ReduceLROnPlateau: expected factor in [0, 1), got {factor}.")
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: expected mode 'min' or 'max', got {mode!r}.")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"ReduceLROnPlateau: expected threshold_mode 'rel' or 'abs', "
                f"got {threshold_mode!r}."
            )
        n = len(optimizer.param_groups)
        self.min_lrs = [min_lr] * n if isinstance(min_lr, (int, float)) else list(min_lr)
        if len(self.min_lrs) != n:
            raise ValueError(
                f"ReduceLROnPlateau: expected one min_lr for each of {n} groups, "
                f"got {len(self.min_lrs)}."
            )
        self.optimizer = optimizer
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.factor, self.patience, self.cooldown, self.eps = factor, patience, cooldown, eps
        self.best = math.inf if mode == "min" else -math.inf
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

    def get_last_lr(self) -> list[float]:
        """The rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        vars(self).update(state)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _line(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _holds_functions(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(callable(item) for item in items) or any(isinstance(i, LRScheduler) for i in items)


def _check_optimizer(caller: str, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{caller}: expected an Optimizer, got {type(optimizer).__name__}.")


def _at_least_one(caller: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{caller}: expected an integer of 1 or more, got {value!r}.")
    return value
