"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Self, cast, overload

import minigrad as mg
from layers.module import Module
from minigrad import Tensor

__all__ = ["Concat", "Flatten", "ModuleList", "Residual", "Sequential"]


class ModuleList(Module):
    """A list of modules, named by their position; what runs when is up to the owner.

    Args:
        modules: the modules, in order.
    """

    def __init__(self, modules: Iterable[Module] = ()):
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Self:
        """Add a module at the end."""
        if not isinstance(cast(object, module), Module):
            raise TypeError(
                f"{type(self).__name__}: expected modules, got {type(module).__name__}. "
                f"Wrap a function in a Module."
            )
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module | Self:
        modules = list(self.children())
        if isinstance(index, int):
            return modules[index]
        part = type(self).__new__(type(self))
        ModuleList.__init__(part, modules[index])
        part.training = self.training
        return part


class Sequential(ModuleList):
    """One module after the other: y = m_k(... m_2(m_1(x)))."""

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class Residual(Module):
    """y = body(x) + shortcut(x); without a shortcut, y = body(x) + x.

    Source: He et al. 2015, arXiv:1512.03385.
    """

    def __init__(self, body: Module, shortcut: Module | None = None):
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


class Concat(ModuleList):
    """Branches side by side on the same input, joined along the channels (axis 1)."""

    def __init__(self, *branches: Module):
        super().__init__(branches)

    def forward(self, x: Tensor) -> Tensor:
        return mg.concat([branch(x) for branch in self.children()], axis=1)


class Flatten(Module):
    """The axes from start_dim to end_dim as one: (N, C, H, W) -> (N, C * H * W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.start_dim % x.ndim, self.end_dim % x.ndim
        size = prod(x.shape[first : last + 1])
        return x.reshape((*x.shape[:first], size, *x.shape[last + 1 :]))
