"""The table that `Module.summary` prints."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from layers.module import Module, Parameter


def summary(model: Module, input_shape: tuple[int, ...]) -> str:
    """Layers, output shapes and parameter counts for an input of `input_shape`, as text."""
    names = {id(m): name for name, m in model.named_modules()}
    rows: list[tuple[str, str, str]] = []
    counted: set[int] = set()

    def record(module: Module, args: tuple[Any, ...], output: Any) -> None:
        new = [p for p in _parameters(module) if id(p) not in counted]
        counted.update(map(id, new))
        count = sum(p.size for p in new)
        frozen = ", frozen" if module.frozen else ""
        if not frozen and getattr(module, "frozen_statistics", False):
            frozen = ", frozen statistics"
        label = f"{names[id(module)]} ({type(module).__name__}{frozen})".lstrip()
        rows.append((label, str(getattr(output, "shape", "")), f"{count:,}" if count else ""))

    modes = [(m, m.training) for m in model.modules()]
    shown = [m for m in model.modules() if _parameters(m) or not list(m.children())]
    hooks = [m.register_forward_hook(record) for m in shown]
    reference = next(iter(model.parameters()), None)
    dtype, device = (mg.float32, None) if reference is None else (reference.dtype, reference.device)
    try:
        model.eval()  # neither updates running statistics nor minds a batch of one
        with mg.no_grad():
            model(mg.zeros(input_shape, dtype=dtype, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return _table(model, input_shape, rows)


def _parameters(module: Module) -> list[Parameter]:
    return [p for p in vars(module).values() if isinstance(p, Parameter)]


def _table(model: Module, input_shape: tuple[int, ...], rows: list[tuple[str, str, str]]) -> str:
    head = ("layer", "output shape", "parameters")
    rows = [("input", str(tuple(input_shape)), ""), *rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]
    rule = "-" * (sum(widths) + 4)
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in [head, *rows]]
    trained = sum(p.size for p in model.parameters() if p.requires_grad)
    frozen = sum(p.size for p in model.parameters() if not p.requires_grad)
    buffers = sum(b.size for b in model.buffers())
    total = f"parameters: {trained:,} trained, {frozen:,} frozen; buffer elements: {buffers:,}"
    return "\n".join([lines[0], rule, *lines[1:], rule, total])
