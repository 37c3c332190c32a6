"""Adaptive batch normalization: the statistics of several domains in one model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Self

import minigrad as mg
from layers.container import ModuleList
from layers.module import Buffer, Module
from layers.norm.batch_norm import BatchNorm
from layers.norm.data_pass import channel_rows, data_pass
from layers.norm.population import estimate_population_statistics
from minigrad import Tensor
from minigrad.data import PooledMoments

__all__ = ["AdaBN", "symmetric_divergence"]


class Statistics(Module):
    """The running statistics of one BatchNorm in one domain."""

    def __init__(self, layer: Any):
        self.running_mean = Buffer(layer.running_mean)
        self.running_var = Buffer(layer.running_var)
        self.num_batches_tracked = Buffer(layer.num_batches_tracked)

    def lend(self, layer: Module) -> None:
        """Let the layer use, and in training update, these statistics."""
        for name, buffer in vars(self).items():
            if isinstance(buffer, Buffer):
                setattr(layer, name, buffer)

    def replace(self, found: PooledMoments) -> None:
        """Take the moments of all values together, the variance unbiased."""
        dtype = self.running_mean.dtype
        self.running_mean.assign(found.mean.astype(dtype))
        self.running_var.assign(found.unbiased_variance.astype(dtype))


class AdaBN(Module):
    """A model that shares all it learned between domains, each with batch statistics of its own.

        y = (x - mean of the domain) / sqrt(var of the domain + eps) * weight + bias

    Source: Li et al. 2016, arXiv:1603.04779.

    Args:
        model: a model with `BatchNorm` layers that track statistics.
        domain: the name of what it has been trained on.
    State: all domains' statistics, saved together. `use` says which is in use; training in one
        updates its own, so every batch is to be of one domain.
    Raises: ValueError for a model without such layers.
    """

    def __init__(self, model: Module, domain: str = "source"):
        self.domain, self.domains = domain, Module()  # before the model: names of the state dict
        self.model = model
        if not self._layers():
            raise ValueError("AdaBN: expected a model with BatchNorm layers that track statistics.")
        self.add(domain)
        self.use(domain)

    def _layers(self) -> dict[str, BatchNorm]:
        found = {n: m for n, m in self.model.named_modules() if isinstance(m, BatchNorm)}
        return {n: m for n, m in found.items() if m.running_mean is not None}

    def forward(self, *args: Any) -> Any:
        return self.model(*args)

    def add(self, domain: str) -> None:
        """A new domain, with the statistics of the one in use."""
        if not domain.isidentifier() or hasattr(self.domains, domain):
            raise ValueError(f"AdaBN: expected a new name (letters and digits), got {domain!r}.")
        setattr(self.domains, domain, ModuleList(map(Statistics, self._layers().values())))

    def use(self, domain: str) -> Self:
        """Normalize by the statistics of a domain from now on."""
        if domain not in vars(self.domains):
            raise ValueError(
                f"AdaBN: expected a domain of {', '.join(vars(self.domains))}, got {domain!r}. "
                f"Call add or adapt first."
            )
        self.domain = domain
        for layer, statistics in self._lent():
            statistics.lend(layer)
        return self

    def _lent(self) -> list[tuple[BatchNorm, Statistics]]:
        """Each layer with its statistics in the domain in use."""
        banks: list[Statistics] = list(vars(self.domains)[self.domain])
        return list(zip(self._layers().values(), banks, strict=True))

    def adapt(self, domain: str, batches: Iterable[Any], mode: str = "exact") -> Self:
        """Take the statistics of a domain (a new one, or again) from its data, and use them.

        Args:
            batches: a DataLoader, or a list of x or of tuples that begin with x.
            mode: "exact": one layer after the other, from the moments of all its inputs as they are
                once the layers before it have been adapted; a pass over the data for each layer.
                "onepass": `estimate_population_statistics`, each batch normalized by itself. "ema":
                the running statistics of training, from those in use on.
        """
        if mode not in ("exact", "onepass", "ema"):
            raise ValueError(f"AdaBN.adapt: expected exact, onepass or ema, got {mode!r}.")
        if iter(batches) is batches:
            raise ValueError(
                f"AdaBN.adapt: expected batches that can be gone through again, got a "
                f"{type(batches).__name__}. Pass a DataLoader or a list."
            )
        held = [n for n, m in self._layers().items() if m.frozen or m.frozen_statistics]
        if held:
            raise ValueError(
                f"AdaBN.adapt: expected batch norms that may learn, got frozen ones: "
                f"{', '.join(held)}. Call unfreeze() or freeze_statistics(False) first."
            )
        if next(iter(batches), None) is None:
            raise ValueError("AdaBN.adapt: expected batches, got none.")
        if domain not in vars(self.domains):
            self.add(domain)
        self.use(domain)
        if mode == "onepass":
            estimate_population_statistics(self.model, batches)
        elif mode == "ema":
            data_pass(self.model, batches, training=self._layers().values())
        else:
            statistics = dict(self._lent())
            in_order = self._moments(islice(batches, 1), statistics)
            for layer in in_order:
                statistics[layer].replace(self._moments(batches, [layer])[layer])
        return self

    def divergence(
        self, first: tuple[str, Iterable[Any]], second: tuple[str, Iterable[Any]]
    ) -> dict[str, float]:
        """How far the outputs of each batch normalization are apart in two domains.

        Mean over the channels of `symmetric_divergence`, by the name of the layer.

        Args:
            first, second: the name of the domain whose statistics are used, and data: of the same
                name twice, what adapting is about to remove.
        """
        used, layers = self.domain, self._layers()
        (i, x), (j, y) = first, second
        a = self.use(i)._moments(x, layers.values(), of_outputs=True)
        b = self.use(j)._moments(y, layers.values(), of_outputs=True)
        self.use(used)
        return {
            name: symmetric_divergence(a[m].mean, a[m].variance, b[m].mean, b[m].variance).item()
            for name, m in layers.items()
            if m in a and m in b
        }

    def _moments(
        self, batches: Iterable[Any], layers: Iterable[BatchNorm], of_outputs: bool = False
    ) -> dict[BatchNorm, PooledMoments]:
        """The moments of what enters or leaves each layer, over all batches."""
        found: dict[BatchNorm, PooledMoments] = {}

        def note(layer: BatchNorm, args: tuple[Any, ...], output: Any) -> None:
            rows = channel_rows(output if of_outputs else args[0])
            found.setdefault(layer, PooledMoments()).add(rows)

        data_pass(self.model, batches, watched=layers, hook=note)
        return found


def symmetric_divergence(mean_i: Tensor, var_i: Tensor, mean_j: Tensor, var_j: Tensor) -> Tensor:
    """KL(i || j) + KL(j || i) of normal distributions, averaged over the features that vary.

        ((var_i + d) / var_j + (var_j + d) / var_i) / 2 - 1,  d = (mean_i - mean_j)**2

    Source: Li et al. 2016, arXiv:1603.04779.
    """
    alive = mg.minimum(var_i, var_j) > 0
    i, j = mg.where(alive, var_i, 1.0), mg.where(alive, var_j, 1.0)
    d = (mean_i - mean_j) ** 2
    apart = mg.where(alive, ((i + d) / j + (j + d) / i) / 2 - 1, 0.0)
    return mg.sum(apart) / mg.maximum(mg.sum(alive.astype(apart.dtype)), 1.0)
