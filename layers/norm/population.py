"""Population statistics: what batch normalizations use in inference, from a pass over the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import minigrad as mg
from layers.module import Module
from layers.norm.batch_norm import BatchNorm
from minigrad import Tensor
from minigrad.nn import moments

__all__ = ["estimate_population_statistics"]


class _Moments(NamedTuple):
    """A mean and a variance over n batches or values, for each channel."""

    n: int
    mean: Tensor
    var: Tensor

    def merged(self, other: _Moments, between: bool) -> _Moments:
        """Those of both. `between`: the variance of the two means counts, too (total variance)."""
        n = self.n + other.n
        share, apart = other.n / n, other.mean - self.mean
        var = self.var + (other.var - self.var) * share
        if between:
            var = var + apart * apart * (share * (1 - share))
        return _Moments(n, self.mean + apart * share, var)


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
    state = model.state_dict()
    try:
        found, batches = _collected(model, norms, loader, pooled=mode == "exact")
        if not found:
            raise ValueError(f"{caller}: expected a loader that gives batches, got none.")
    except BaseException:
        model.load_state_dict(state)
        raise
    for norm, (n, mean, var) in found.items():
        unbiased = var * (n / (n - 1)) if mode == "exact" else var
        _replace(norm, mean, unbiased, batches)
    return model


def _collected(
    model: Module, norms: list[BatchNorm], loader: Iterable[Any], pooled: bool
) -> tuple[dict[BatchNorm, _Moments], int]:
    """The moments of what each batch norm is given, and how many batches there are.

    `pooled`: biased ones, of all values; else unbiased ones, averaged over batches.
    """
    found: dict[BatchNorm, _Moments] = {}
    batches = 0

    def note(norm: Module, args: tuple[Any, ...], output: Any) -> None:
        assert isinstance(norm, BatchNorm)
        x = args[0].astype(mg.float64)
        m = x.size // x.shape[1]
        mean, var = moments(x, (0, *range(2, x.ndim)))
        new = _Moments(m, mean, var) if pooled else _Moments(1, mean, var * (m / (m - 1)))
        found[norm] = found[norm].merged(new, between=pooled) if norm in found else new

    modes = [(m, m.training) for m in model.modules()]
    hooks = [norm.register_forward_hook(note) for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.training = True
        with mg.no_grad():
            for batch in loader:
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
                mg.evaluate(*[t for m in found.values() for t in m[1:]])
                batches += 1
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return found, batches


def _replace(norm: BatchNorm, mean: Tensor, var: Tensor, batches: int) -> None:
    new = (norm.running_mean, mean), (norm.running_var, var), (norm.num_batches_tracked, batches)
    for buffer, value in new:
        if buffer is not None:
            buffer.assign(mg.asarray(value, device=buffer.device).astype(buffer.dtype))
