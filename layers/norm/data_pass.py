"""One pass of a data set through a model, to see what its layers are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import minigrad as mg
from layers.module import Module
from minigrad import Tensor

Hook = Callable[[Any, tuple[Any, ...], Any], None]


def data_pass(
    model: Module,
    batches: Iterable[Any],
    training: Iterable[Module] = (),
    watched: Iterable[Module] = (),
    hook: Hook | None = None,
) -> int:
    """Run a model on all batches without gradients, and give their number. Modes are put back.

    Args:
        batches: x, or tuples and lists that begin with x.
        training: the modules that run in training mode; all others are in inference mode.
        watched: whose forwards call `hook(module, args, output)`. Where there is a hook, nothing is
            computed but what it asks for.
    """
    modes = [(m, m.training) for m in model.modules()]
    hooks = [m.register_forward_hook(hook) for m in watched] if hook else []
    count = 0
    try:
        model.eval()
        for module in training:
            module.training = True
        with mg.no_grad():
            for batch in batches:
                y = model(batch[0] if isinstance(batch, (tuple, list)) else batch)
                if hook is None:
                    mg.evaluate(y)
                count += 1
    finally:
        for handle in hooks:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return count


def channel_rows(x: Tensor) -> Tensor:
    """(N, C, *spatial) as one row of channels for each value that a channel has."""
    return mg.moveaxis(x, 1, -1).reshape((-1, x.shape[1]))
