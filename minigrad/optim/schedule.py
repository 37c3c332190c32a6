"""What learning-rate schedules have in common: groups, rates, state and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import get_annotations
from typing import Any, ClassVar, TypeVar, dataclass_transform

from minigrad.optim.checked import Checked
from minigrad.optim.optimizer import Optimizer

T = TypeVar("T")


class Schedule(Checked):
    """What schedules of the epoch and of a metric share."""

    optimizer: Optimizer

    def check_optimizer(self) -> None:
        """Raise TypeError unless it is one."""
        if not isinstance(self.optimizer, Optimizer):
            got = type(self.optimizer).__name__
            raise TypeError(f"{self._name}: expected an Optimizer, got {got}.")

    def one_for_each(self, what: str, value: T | Sequence[T]) -> list[T]:
        """A value for each parameter group, from one for all or a sequence."""
        n = len(self.optimizer.param_groups)
        values: list[Any] = list(value) if isinstance(value, Sequence) else [value] * n
        self.require(len(values) == n, f"one {what} for each of {n} groups", len(values))
        return values

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
        """Resume from a `state_dict`."""
        vars(self).update(state)


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class LRScheduler(Schedule):
    """The base: a subclass says only what `_rate(base_lr, epoch)` is.

    Its annotated attributes are its options: the arguments of its constructor between `optimizer`
    and `last_epoch`.

    Args:
        optimizer: whose groups' "lr" is set; "initial_lr" keeps the base rate.
        last_epoch: -1 to begin; to resume, the epoch last done ("initial_lr" must be in the
        groups).

    Raises: TypeError for something that is no optimizer, ValueError when resuming without base
    rates.
    """

    optimizer: Optimizer
    last_epoch: int = field(default=-1, kw_only=True)
    counts: ClassVar[tuple[str, ...]] = ()  # the options that are integers of 1 or more

    def __init_subclass__(cls) -> None:
        # A dataclass alone would put `last_epoch`, which has a default, before the options.
        options = get_annotations(cls)
        cls.__annotations__ = {"optimizer": Optimizer, **options, "last_epoch": int}
        cls.last_epoch = -1
        dataclass(eq=False, repr=False)(cls)

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        self.optimizer, self.last_epoch = optimizer, last_epoch
        self.check_optimizer()
        self._prepare()
        for name in self.counts:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{self._name}.{name}: expected an integer of 1 or more, got {value!r}."
                )
        for group in optimizer.param_groups:
            if last_epoch < 0:
                group.setdefault("initial_lr", group["lr"])
            everywhere = f"'initial_lr' in every parameter group when last_epoch={last_epoch}"
            cure = "Load the optimizer's state first."
            self.require("initial_lr" in group, everywhere, "none", cure)
        self.base_lrs: list[float] = [g["initial_lr"] for g in optimizer.param_groups]
        self.step()

    def __post_init__(self) -> None:
        """Begin, once the fields of a subclass are set."""
        LRScheduler.__init__(self, self.optimizer, self.last_epoch)

    def _prepare(self) -> None:
        """Check the options, and derive from them what the rates need."""

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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`, and set the rates it stands for."""
        super().load_state_dict(state)
        self._apply()


def _holds_functions(value: Any) -> bool:
    items: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return any(callable(item) or isinstance(item, LRScheduler) for item in items)
