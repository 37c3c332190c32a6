"""Running statistics: what a normalization remembers of the batches that it saw in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from minigrad.execution.compute import compute_with_next
from minigrad.execution.modes import no_grad
from minigrad.functions.manipulation import reshape
from minigrad.graph import Node

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["move_running", "update_running"]


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    n: int,
    momentum: float | Tensor | None,
    num_batches_tracked: Tensor | None = None,
) -> None:
    """Move running statistics towards those of a batch; see `move_running`.

    Args:
        var: biased; its unbiased counterpart, var * n / (n - 1), is what is stored.
        n: elements that each statistic was taken over. Of fewer than 2 nothing is learned.
        momentum, num_batches_tracked: as in `move_running`.
    """
    if n > 1:
        pairs = (running_mean, mean), (running_var, var * (n / (n - 1)))
        move_running(pairs, momentum, num_batches_tracked)


def move_running(
    pairs: Iterable[tuple[Tensor, Tensor]],
    momentum: float | Tensor | None,
    num_batches_tracked: Tensor | None = None,
) -> None:
    """For pairs (running, batch): running = (1 - momentum) * running + momentum * batch.

    They are computed with the next thing that is, so that updates never pile up.

    Args:
        momentum: weight of the batch; None: 1 / num_batches_tracked, the average of all batches.
        num_batches_tracked: a count of batches, which becomes one more.
    """
    with no_grad():
        if num_batches_tracked is not None:
            compute_with_next(num_batches_tracked.assign(num_batches_tracked + 1))
        for running, new in pairs:
            weight = momentum
            if weight is None:
                if num_batches_tracked is None:
                    raise ValueError(
                        "move_running: expected num_batches_tracked with momentum=None, got None. "
                        "Pass the count of batches, or a weight of the new one."
                    )
                weight = 1 / num_batches_tracked.astype(running.dtype)
            new = reshape(new, running.shape).astype(running.dtype)
            compute_with_next(running.assign(running * (1 - weight) + new * weight))


def running_pair(
    caller: str, x: Node, running_mean: Tensor | None, running_var: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The running statistics of x's channels, or None where there are none."""
    if running_mean is None and running_var is None:
        return None
    if running_mean is None or running_var is None:
        raise ValueError(f"{caller}: expected running_mean and running_var together, got one.")
    channels = (x.shape[1],)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running.shape != channels:
            raise ValueError(f"{caller}: expected {name} of shape {channels}, got {running.shape}.")
    return running_mean, running_var
