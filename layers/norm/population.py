"""Population statistics: what batch normalizations use in inference, from a pass over the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import minigrad as mg
from layers.module import Module
from layers.norm.batch_norm import BatchNorm
from layers.norm.data_pass import channel_rows, data_pass
from minigrad import Tensor
from minigrad.data import PooledMoments

__all__ = ["estimate_population_statistics"]


def estimate_population_statistics(
    model: Module, loader: Iterable[Any], mode: str = "batches"
) -> Module:
    """Replace the running statistics of every `BatchNorm` by those of the data; gives the model.

    Each batch goes through the model once, every batch norm normalizing it by its own statistics,
    as in training. All else is in inference mode, and no parameter changes.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 2, lines 8 to 11.

    Args:
        loader: gives batches x, or tuples and lists that begin with x.
        mode: "batches" averages over batches, as the paper: E[x] is the mean of the batches' means,
            Var[x] that of their unbiased variances, m / (m - 1) times the biased ones, where m
            counts the values per channel. "exact" takes the mean and the unbiased variance of all
            values together; it differs where batches differ by more than chance.
    State: running_mean and running_var are replaced, num_batches_tracked becomes the number of
        batches. Frozen batch norms, and those without running statistics, stay as they are.
    Raises: ValueError for another mode, no batch norm to update, a batch with one value per
        channel, or no batches at all; then nothing is changed.
    """
    caller = "estimate_population_statistics"
    if mode not in ("batches", "exact"):
        raise ValueError(f"{caller}: expected mode 'batches' or 'exact', got {mode!r}.")
    norms = [
        m
        for m in model.modules()
        if isinstance(m, BatchNorm)
        and m.running_mean is not None
        and not (m.frozen or m.frozen_statistics)
    ]
    if not norms:
        raise ValueError(
            f"{caller}: expected batch norms with running statistics that are not frozen, got none "
            f"in {type(model).__name__}."
        )
    found: dict[BatchNorm, PooledMoments] = {}

    def note(norm: BatchNorm, args: tuple[Any, ...], output: Any) -> None:
        rows = channel_rows(args[0])
        if not rows.shape[0]:
            return  # an empty batch has no statistics
        if rows.shape[0] == 1:
            raise ValueError(
                f"{caller}: expected batches of more than one value per channel, got x of shape "
                f"{args[0].shape}. Use larger batches."
            )
        if mode == "batches":  # the mean and the unbiased variance of each are a row to average
            own = PooledMoments()
            own.add(rows)
            rows = mg.concat([own.mean, own.unbiased_variance]).reshape((1, -1))
        found.setdefault(norm, PooledMoments()).add(rows)

    state = model.state_dict()
    try:
        batches = data_pass(model, loader, training=norms, watched=norms, hook=note)
        if not found:
            raise ValueError(f"{caller}: expected a loader that gives batches, got none.")
    except BaseException:
        model.load_state_dict(state)
        raise
    for norm, moments in found.items():
        mean, var = moments.mean, moments.unbiased_variance
        if mode == "batches":
            mean, var = mg.split(mean, norm.num_features)
        _replace(norm, mean, var, batches)
    return model


def _replace(norm: BatchNorm, mean: Tensor, var: Tensor, batches: int) -> None:
    new = (norm.running_mean, mean), (norm.running_var, var), (norm.num_batches_tracked, batches)
    for buffer, value in new:
        if buffer is not None:
            buffer.assign(mg.asarray(value, device=buffer.device).astype(buffer.dtype))
