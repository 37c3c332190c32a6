"""What all optimizers share: parameter groups, state, and hyper-parameters that are tensors.

[Note: a step is a graph] An update is an expression over parameters, gradients, state and
hyper-parameters, all of them tensors, so a captured training step contains it and replays it. A
Python number would be baked into the captured graph, and a schedule would change nothing. Hence
each number of a group (its rate, momentum, ...) lives in a 0-d float64 tensor that `refresh()`
brings up to date, before a step or a replay, when the number in the group has changed. float64,
because 1 - beta ** t in float32 is wrong in the fifth digit at the first steps of Adam. Step counts
are tensors that the graph itself advances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from minigrad.context import context
from minigrad.creation import filled, zeros_like
from minigrad.device import Device
from minigrad.dtype import float64
from minigrad.execution.compute import capturing, evaluate
from minigrad.execution.modes import no_grad
from minigrad.optim.checked import Checked
from minigrad.tensor import Tensor

__all__ = ["Optimizer"]

Group = dict[str, Any]
State = dict[str, Tensor]

NOT_NEGATIVE = ("lr", "weight_decay", "eps", "momentum", "lr_decay", "initial_accumulator_value")


class Optimizer(Checked):
    """The base: a subclass says how one parameter is updated.

    Args:
        params: the parameters, or dicts that each describe a group: {"params": [...], "lr": 0.1}.
            Beside its options a group may have "lr_mult" and "decay_mult" (default 1), Caffe's
            multipliers of its "lr" and "weight_decay".
        defaults: the options, for groups that do not set them.

    State: `state[parameter]` holds tensors by name; made before the first step, so that the graph
    of the first step is that of all others.
    Raises: TypeError for something that is no tensor, ValueError for no parameters, one that does
    not require a gradient, one that is in two groups, an unknown option.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], defaults: Mapping[str, Any]):
        self.defaults = dict(defaults)
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, State] = {}
        self._numbers: dict[tuple[int, str, Device], tuple[Tensor, float]] = {}
        if isinstance(params, Tensor):
            raise TypeError(f"{self._name}: expected an iterable of tensors, got one. Pass [p].")
        groups = cast("list[Any]", list(params))
        self.require(bool(groups), "at least one parameter", "none")
        if not all(isinstance(g, dict) for g in groups):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: Group) -> None:
        """Add parameters with options of their own; those that require no gradient stay as is."""
        unknown = group.keys() - self.defaults - {"params", "lr_mult", "decay_mult", "initial_lr"}
        known = ", ".join(["params", *self.defaults, "lr_mult", "decay_mult"])
        good = "params" in group and not unknown
        self.require(good, f"a group with the keys {known}", ", ".join(group))
        params = self._checked(group["params"])
        new = {"params": params, **self.defaults, "lr_mult": 1.0, "decay_mult": 1.0}
        new.update((k, v) for k, v in group.items() if k != "params")
        self.check_options(new)
        self.param_groups.append(new)

    def _checked(self, given: Tensor | Iterable[Tensor]) -> list[Tensor]:
        """The parameters of a new group: tensors that no group has, and some of them trained."""
        params = [given] if isinstance(given, Tensor) else list(given)
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"{self._name}: expected tensors as parameters, got {type(p).__name__} "
                    f"at position {i}."
                )
            again = f"{p.dtype.name}{list(p.shape)} at position {i} again"
            self.require(id(p) not in seen, "each parameter once", again)
            seen.add(id(p))
        some = not params or any(p.requires_grad for p in params)  # others may be frozen
        cure = "Make them with requires_grad=True, or unfreeze() their module."
        got = f"{len(params)} without"
        self.require(some, "parameters that require a gradient", got, cure)
        return params

    def check_options(self, group: Group) -> None:
        """Raise ValueError for an option out of its range."""
        for name in (n for n in NOT_NEGATIVE if n in group):
            self.require(group[name] >= 0, f"{name} of 0 or more", group[name])
        if "betas" in group:
            betas = group["betas"]
            good = len(betas) == 2 and all(0 <= b < 1 for b in betas)
            self.require(good, "two betas in [0, 1)", betas)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with `set_to_none=False` make them zero instead."""
        for p in self._parameters():
            p.grad = None if set_to_none or p.grad is None else zeros_like(p)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient, and compute all that is new at once.

        `closure` computes the loss and its gradients first; its result is returned.
        """
        loss = None if closure is None else closure()
        context.observer.used(self, self.refresh_numbers)
        with no_grad():
            self.refresh()
            changed: list[Tensor] = []
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                self.advance(group, params)
                for p in params:
                    self.update(p, p.grad, self.state[p], group)
                    changed += [p, *self.state[p].values()]
            evaluate(*changed)
        return loss

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """Assign new values to the parameter and its state; `g` is its gradient."""
        raise NotImplementedError

    def initial_state(self, group: Group) -> dict[str, float]:
        """What is kept for each parameter of a group beside the step count, and its first value."""
        return {}

    counts_steps = False  # whether "step", a float64 count, is part of the state

    def refresh(self) -> None:
        """Make what a step reads exist and be up to date. See [Note: a step is a graph]."""
        counts: dict[Device, Tensor] = {}
        for group in self.param_groups:
            names = self.initial_state(group)
            for p in group["params"]:
                state = self.state.get(p)
                if state is None:
                    state = self.state[p] = {}
                    if self.counts_steps:
                        if p.device not in counts:
                            counts[p.device] = filled(0.0, (), float64, p.device)
                        state["step"] = counts[p.device]
                for name, value in names.items():  # options may have changed since the last step
                    if name not in state:
                        state[name] = filled(value, p.shape, p.dtype, p.device)
        self.refresh_numbers()

    def refresh_numbers(self) -> None:
        """Bring the tensors of the hyper-parameters up to date."""
        for (index, name, _), (handle, known) in list(self._numbers.items()):
            value = _number(self.param_groups[index], name)
            if value != known:
                with no_grad():
                    handle.assign(filled(value, (), float64, handle.device))
                self._numbers[index, name, handle.device] = handle, value

    def baked_in(self) -> list[str]:
        """The attributes that a recorded step takes for granted. See [Note: what is guarded]."""
        return ["choices"]

    @property
    def choices(self) -> tuple[Any, ...]:
        """What the graph of a step depends on beside numbers: parameters, flags, what is zero."""
        return tuple(
            tuple(
                len(value) if name == "params" else bool(value)
                for name, value in group.items()
                if name not in ("lr", "initial_lr")
            )
            for group in self.param_groups
        )

    def hyperparameter(self, group: Group, name: str, device: Device) -> Tensor:
        """A number of the group as a 0-d float64 tensor, kept up to date by `refresh`.

        `name` is a key of the group, or "beta1" or "beta2"; "lr" and "weight_decay" include the
        group's multipliers.
        """
        key = next(i for i, g in enumerate(self.param_groups) if g is group), name, device
        if key not in self._numbers:
            value = _number(group, name)
            self._numbers[key] = filled(value, (), float64, device), value
        handle, _ = self._numbers[key]
        # While a step is recorded, what is assigned becomes an input that a replay reads anew.
        return handle.assign(handle) if capturing() else handle

    def numbers(self, p: Tensor, group: Group, *names: str) -> list[Tensor]:
        """Hyper-parameters in the dtype of `p`, ready to be multiplied with it."""
        return [self.hyperparameter(group, n, p.device).astype(p.dtype) for n in names]

    def advance(self, group: Group, params: list[Tensor]) -> None:
        """Add one to the step counts of `params`, which all have a gradient.

        Parameters that have always been updated together share one count, so a model has one such
        tensor, not hundreds. A parameter without a gradient in this step leaves the others.
        """
        if not self.counts_steps:
            return
        stepping: dict[int, list[Tensor]] = {}
        for p in params:
            stepping.setdefault(id(self.state[p]["step"]), []).append(p)
        for members in stepping.values():
            count = self.state[members[0]]["step"]
            sharers = sum(self.state[p]["step"] is count for p in self.state)
            if sharers > len(members):
                count = count.detach()
                for p in members:
                    self.state[p]["step"] = count
            count.assign(count + 1.0)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: {"state": {index: {name: tensor}}, "param_groups": [...]} as PyTorch's.

        Parameters are numbered in the order of the groups.
        """
        self.refresh()
        groups, n = [], 0
        for group in self.param_groups:
            indices = list(range(n, n + len(group["params"])))
            groups.append({k: v for k, v in group.items() if k != "params"} | {"params": indices})
            n += len(indices)
        state = {
            i: {name: value.detach() for name, value in self.state[p].items()}
            for i, p in enumerate(self._parameters())
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict` of an optimizer with equal groups; their options come along.

        Raises: ValueError when groups, names or shapes differ; then nothing is changed.
        """
        groups = state_dict["param_groups"]
        sizes, own = ([len(g["params"]) for g in gs] for gs in (groups, self.param_groups))
        if sizes != own:
            raise ValueError(
                f"{self._name}.load_state_dict: expected groups of {own} parameters, got {sizes}."
            )
        loaded: dict[Tensor, State] = {}
        for group, saved in zip(self.param_groups, groups, strict=True):
            names = self.initial_state({**group, **saved})
            for p, i in zip(group["params"], saved["params"], strict=True):
                loaded[p] = state_dict["state"].get(i, {})
                if loaded[p]:  # a parameter that never stepped may have none
                    self._check_state(i, p, loaded[p], names)
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update((k, v) for k, v in saved.items() if k != "params")
        self.refresh()
        counts: dict[tuple[Device, float], Tensor] = {}  # equal counts are shared again
        for p, values in loaded.items():
            for name, mine in self.state[p].items():
                if name == "step":
                    key = p.device, float(values["step"]) if values else 0.0
                    if key not in counts:
                        counts[key] = filled(key[1], (), float64, p.device)
                    self.state[p][name] = counts[key]
                elif name in values:
                    mine.assign(values[name].detach().astype(mine.dtype).to(mine.device))

    def _check_state(self, i: int, p: Tensor, loaded: State, names: dict[str, float]) -> None:
        for name in [*names, "step"] if self.counts_steps else names:
            if name not in loaded:
                raise ValueError(
                    f"{self._name}.load_state_dict: expected {name!r} in the state of "
                    f"parameter {i}, got {', '.join(loaded)}."
                )
            if name in names and tuple(loaded[name].shape) != p.shape:
                raise ValueError(
                    f"{self._name}.load_state_dict: expected {name!r} of parameter {i} of "
                    f"shape {p.shape}, got {tuple(loaded[name].shape)}."
                )

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def __repr__(self) -> str:
        lines = [
            f"  group {i}: {len(g['params'])} parameters, "
            + ", ".join(f"{k}={v}" for k, v in g.items() if k != "params")
            for i, g in enumerate(self.param_groups)
        ]
        return "\n".join([f"{self._name}(", *lines, ")"])


def _number(group: Group, name: str) -> float:
    """The value of a hyper-parameter as the group has it now."""
    if name == "lr":
        return group["lr"] * group["lr_mult"]
    if name == "weight_decay":
        return group["weight_decay"] * group["decay_mult"]
    if name in ("beta1", "beta2"):
        return group["betas"][int(name[-1]) - 1]
    return group[name]
