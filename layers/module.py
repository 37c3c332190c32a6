"""Modules: a function with parameters and buffers, found by the type of its attributes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Self, cast

import minigrad as mg
from minigrad import Tensor, dtype
from minigrad.context import context
from minigrad.device import Device, as_device
from minigrad.dtype import DType, as_dtype
from minigrad.execution.compute import compute_with_next

__all__ = ["Buffer", "Module", "Parameter"]


class Parameter(Tensor):
    """A tensor that is trained: it requires a gradient and is part of the state dict.

    Args:
        value: the initial value; the parameter does not depend on how it was computed.
        requires_grad: False for a frozen parameter.
    """

    __slots__ = ()

    def __init__(self, value: Tensor, requires_grad: bool = True):
        super().__init__(value.detach().node, requires_grad)


class Buffer(Tensor):
    """A tensor that is saved and moved with the model, but never trained.

    `assign` only binds a new, detached node, which is computed with whatever is computed next: see
    `compute_with_next`.
    """

    def __init__(self, value: Tensor):
        super().__init__(value.detach().node)

    def assign(self, value: Any) -> Self:
        """Bind a new value of the same shape and type, computed with whatever is computed next."""
        super().assign(value)
        compute_with_next(self)
        return self


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` left out."""

    missing: list[str]
    unexpected: list[str]


class HookHandle:
    """Removes a hook again."""

    def __init__(self, hooks: dict[int, Callable[..., Any]], key: int):
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        """Take the hook out; a second call does nothing."""
        self._hooks.pop(self._key, None)


class Module:
    """The base class of layers and models: subclasses define `forward`.

    Attributes register themselves by type: `Parameter` (trained, saved), `Buffer` (saved), `Module`
    (its own state, under a dotted name); anything else is configuration. A plain Tensor, or a
    list, tuple or dict that hides one of these, is an error.
    """

    training: bool = True
    frozen: bool = False  # see `freeze`
    thaws: tuple[str, ...] = ()  # names of the parameters that `unfreeze` trains again
    _hooks: dict[int, Callable[..., Any]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output for an input; call the module itself, so that hooks run."""
        raise NotImplementedError(f"{type(self).__name__}: expected a forward method, got none.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        context.observer.used(self)
        output = self.forward(*args, **kwargs)
        if self._hooks:
            for hook in list(self._hooks.values()):
                replaced = hook(self, args, output)
                output = output if replaced is None else replaced
        return output

    def baked_in(self) -> set[str]:
        """The attributes that a recorded step bakes in: all. See [Note: what is guarded]."""
        return {*vars(self), "training", "frozen", "_hooks"}

    def register_forward_hook(self, hook: Callable[..., Any]) -> HookHandle:
        """Call `hook(module, args, output)` after every forward; a result replaces the output."""
        if self._hooks is None:
            self._hooks = {}
        key = max(self._hooks, default=-1) + 1
        self._hooks[key] = hook
        return HookHandle(self._hooks, key)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and not isinstance(value, Parameter | Buffer):
            raise TypeError(
                f"{type(self).__name__}.{name}: expected a Parameter or a Buffer, got a Tensor of "
                f"shape {value.shape}. Wrap it: Parameter(t) is trained, Buffer(t) only saved; to "
                f"change a value in place use .assign()."
            )
        if isinstance(value, (list, tuple, dict)):
            items = cast(Collection[object], value)
            held = cast(dict[object, object], value).values() if isinstance(value, dict) else items
            if any(isinstance(v, Module | Tensor) for v in held):
                raise TypeError(
                    f"{type(self).__name__}.{name}: expected no modules or tensors inside a "
                    f"{type(items).__name__}, where they cannot be found, got {len(items)} items. "
                    f"Use ModuleList or Sequential, or one attribute each."
                )
        object.__setattr__(self, name, value)

    # Walks over the tree. A module or tensor that is reached twice is given once.

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one, each with its attribute's name."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of this one."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (named `prefix`) and all below it, parents first."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(f"{path}.{name}" if path else name, m) for name, m in module.named_children()]
            stack.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def _named_tensors(
        self, kind: type[Tensor] | tuple[type[Tensor], ...]
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its dotted attribute path."""
        return self._named_tensors(Parameter)

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter."""
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Every buffer with its dotted attribute path."""
        return self._named_tensors(Buffer)

    def buffers(self) -> Iterator[Buffer]:
        """Every buffer."""
        return (b for _, b in self.named_buffers())

    def apply(self, fn: Callable[[Module], object]) -> Self:
        """Call `fn` on every module, children before their parent."""
        for module in reversed(list(self.modules())):
            fn(module)
        return self

    # State.

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as values: later training does not change them."""
        return {name: t.detach() for name, t in self._named_tensors((Parameter, Buffer))}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Take the values of `state`, cast to each tensor's own type and device.

        Nothing is changed unless everything fits.

        Args:
            state: names to tensors, or to anything that `mg.asarray` takes.
            strict: whether missing and unexpected names are errors.

        Raises:
            ValueError: with every missing and unexpected name and every shape that differs.
        """
        own = dict(self._named_tensors((Parameter, Buffer)))
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        values = {name: mg.asarray(state[name]) for name in own if name in state}
        wrong = [
            f"{name}: expected shape {own[name].shape}, got {value.shape}"
            for name, value in values.items()
            if value.shape != own[name].shape
        ]
        if strict:
            wrong += [f"missing: {name}" for name in missing]
            wrong += [f"unexpected: {name}" for name in unexpected]
        if wrong:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: expected the names and shapes of this "
                f"model, got a state that differs.\n  " + "\n  ".join(wrong)
            )
        for name, value in values.items():
            target = own[name]
            target.assign(value.to(target.device).astype(target.dtype))
        return IncompatibleKeys(missing, unexpected)

    def to(self, *where: Device | DType | str) -> Self:
        """Move to a device, change the floating type, or both: `model.to("cuda", mg.float64)`.

        The parameters stay the same objects, so an optimizer keeps them. Integer buffers keep
        their type.
        """
        for target in where:
            if isinstance(target, DType) or target in dtype.BY_NAME:
                to = as_dtype(cast(Any, target), "Module.to")
            else:
                to = as_device(target, "Module.to")
            for _, tensor in self._named_tensors((Parameter, Buffer)):
                if isinstance(to, Device) or tensor.dtype.is_floating:
                    _convert(tensor, to)
        return self

    # Mode and gradients.

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and in every module below, but those that are frozen."""
        for module in self.modules():
            context.observer.used(module)
            module.training = mode and not module.frozen
        return self

    def eval(self) -> Self:
        """Set inference mode here and in every module below."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train (True) or freeze (False) all parameters."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def freeze(self) -> Self:
        """Hold every parameter and buffer here and below, whatever `train` says from now on.

        Frozen modules stay in inference mode, so a batch norm is the affine map of its running
        statistics; their parameters require no gradient, and optimizers leave them out. Loading a
        state dict still changes them. Gradients flow through to their inputs.
        """
        for module in self.modules():
            context.observer.used(module)
            if not module.frozen:
                own = {k: v for k, v in vars(module).items() if isinstance(v, Parameter)}
                module.thaws = tuple(k for k, p in own.items() if p.requires_grad)
            module.frozen, module.training = True, False
        for p in self.parameters():
            p.requires_grad_(False)
            p.grad = None
        return self

    def unfreeze(self) -> Self:
        """Undo `freeze` here and below: train what was trained, and follow `train` and `eval`.

        The mode stays that of inference until `train` is called.
        """
        for module in self.modules():
            if module.frozen:
                for name in module.thaws:
                    vars(module)[name].requires_grad_()
                module.frozen = False
        return self

    def summary(self, input_shape: tuple[int, ...]) -> str:
        """A table of layers, output shapes and parameter counts, for an input of `input_shape`.

        The shapes come from the graph of one forward in inference mode; nothing is computed.
        """
        from layers.summary import summary

        return summary(self, input_shape)

    def extra_repr(self) -> str:
        """The arguments that `repr` shows."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({n}): {m!r}".replace("\n", "\n  ") for n, m in self.named_children()]
        head = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({head})"
        body = "".join(f"\n  {line}" for line in lines)
        return f"{type(self).__name__}({head}{body}\n)"


def _convert(tensor: Tensor, to: Device | DType) -> None:
    """Give an existing parameter or buffer another type or device, and its gradient with it."""

    def conversion(t: Tensor) -> Tensor:
        return t.astype(to) if isinstance(to, DType) else t.to(to)

    trained, converted = tensor.is_leaf, conversion(tensor.detach())
    tensor.requires_grad_(False)
    tensor.rebind(converted.node)
    tensor.requires_grad_(trained)
    if tensor.grad is not None:
        tensor.grad = conversion(tensor.grad)
