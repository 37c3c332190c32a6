"""What `norm=` may name, and what is to be known of every normalization: a table for the README."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from layers.activation import Identity
from layers.module import Module
from layers.norm.batch_norm import BatchNorm
from layers.norm.batch_renorm import BatchRenorm
from layers.norm.decorrelated_batch_norm import DecorrelatedBatchNorm
from layers.norm.filter_response_norm import FilterResponseNorm
from layers.norm.group_norm import GroupNorm
from layers.norm.instance_norm import InstanceNorm
from layers.norm.local_response_norm import LocalResponseNorm
from layers.norm.mean_only_batch_norm import MeanOnlyBatchNorm

__all__ = ["NORMALIZATIONS", "NormFactory", "Normalization", "norm_factory", "norm_table"]

NormFactory = Callable[[int], Module]  # the number of channels -> the layer

# What `norm=` may name: the channels, and for "name:number" the number, to the layer.
NAMED: dict[str, Callable[[int, int], Module]] = {
    "batch": lambda channels, _: BatchNorm(channels),
    "renorm": lambda channels, _: BatchRenorm(channels),
    "mean_only": lambda channels, _: MeanOnlyBatchNorm(channels),
    "decorrelated": lambda channels, groups: DecorrelatedBatchNorm(channels, groups=groups),
    "group": lambda channels, groups: GroupNorm(groups, channels),
    "layer": lambda channels, _: GroupNorm(1, channels),
    "instance": lambda channels, _: InstanceNorm(channels, affine=True),
    "filter_response": lambda channels, _: FilterResponseNorm(channels),
    "local_response": lambda _, size: LocalResponseNorm(size),
}
NUMBERS = {"decorrelated": 1, "group": 32, "local_response": 5}  # where none is given


def norm_factory(norm: str | NormFactory | None) -> NormFactory:
    """What makes a normalization of so many channels: the argument `norm=` of models.

    >>> norm_factory("group:8")(32)
    GroupNorm(8, 32, eps=1e-05, affine=True)

    Args:
        norm: a name, or "name:number" where it takes a number (of groups, or the size of a window);
            None for no normalization; or a factory, which is returned as it is.
    Raises: ValueError for another name.
    """
    if norm is None:
        return lambda channels: Identity()
    if not isinstance(norm, str):
        return norm
    name, colon, given = norm.partition(":")
    if name not in NAMED or (colon and not (name in NUMBERS and given.isdecimal())):
        names = ", ".join(f"{n}:{NUMBERS[n]}" if n in NUMBERS else n for n in NAMED)
        raise ValueError(
            f"norm: expected None, a factory channels -> Module, or one of {names}, got {norm!r}."
        )
    make, number = NAMED[name], int(given or NUMBERS.get(name, 0))
    return lambda channels: make(channels, number)


class Normalization(NamedTuple):
    """A row of the table."""

    layer: str
    name: str  # in `norm=`; empty where the channels do not say what to make
    formula: str
    sets: str  # over what a statistic is taken
    state: str  # beside parameters
    modes: str  # how training and eval differ
    smallest: str  # batch that it trains with
    source: str


BOTH = "(x - mean) / sqrt(var + eps) * weight + bias"
SCALE = "x / sqrt(mean(x^2) + eps) * weight"
RUNNING = "batch's statistics; running ones"
SAMPLE = "none", "alike", "1"

NORMALIZATIONS = tuple(
    Normalization(*row)
    for row in (
        (
            "BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d", "batch", BOTH, "batch and space",
            "running_mean, running_var, num_batches_tracked", RUNNING, "2 values a channel",
            "Ioffe & Szegedy 2015",
        ),
        (
            "BatchRenorm, BatchRenorm1d, BatchRenorm2d", "renorm",
            "(x_hat * r + d) * weight + bias; r, d: from the batch's statistics to the running ones"
            ", within limits", "batch and space", "running_mean, running_std, num_batches_tracked",
            "batch's statistics, corrected; running ones", "2 values a channel", "Ioffe 2017",
        ),
        (
            "MeanOnlyBatchNorm", "mean_only", "x - mean + bias", "batch and space",
            "running_mean, num_batches_tracked", "batch's mean; running one", "2 values a channel",
            "Salimans & Kingma 2016",
        ),
        (
            "DecorrelatedBatchNorm", "decorrelated",
            "(covariance + eps I)^(-1/2) (x - mean) * weight + bias",
            "batch and space, for a group of channels",
            "running_mean, running_whitener, num_batches_tracked", RUNNING,
            "more values a channel than channels in a group", "Huang et al. 2018, 2019",
        ),
        (
            "AdaBN", "", "a model's BatchNorm by the statistics of a domain",
            "all data of a domain", "BatchNorm's, for each domain", "as BatchNorm",
            "as BatchNorm", "Li et al. 2016",
        ),
        ("LayerNorm", "", BOTH, "trailing axes of a sample", *SAMPLE, "Ba et al. 2016"),
        (
            "GroupNorm", "group", BOTH, "channels of a group and space, of a sample", *SAMPLE,
            "Wu & He 2018",
        ),
        (
            "GroupNorm(1, C)", "layer", BOTH, "channels and space, of a sample", *SAMPLE,
            "Ba et al. 2016; Wu & He 2018",
        ),
        (
            "InstanceNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d", "instance", BOTH,
            "space, of a channel of a sample", "none, or BatchNorm's", "alike without state",
            "2 pixels", "Ulyanov et al. 2016",
        ),
        ("RMSNorm", "", SCALE, "trailing axes of a sample", *SAMPLE, "Zhang & Sennrich 2019"),
        (
            "FilterResponseNorm", "filter_response", f"max({SCALE} + bias, threshold)",
            "space, of a channel of a sample", *SAMPLE, "Singh & Krishnan 2019",
        ),
        (
            "LocalResponseNorm", "local_response", "x / (k + alpha / n * sum(x^2))^beta",
            "n neighbouring channels, or a window of a channel", *SAMPLE, "Krizhevsky et al. 2012",
        ),
        (
            "WeightNorm", "", "a layer with weight g * v / norm(v)", "weights of an output",
            *SAMPLE, "Salimans & Kingma 2016",
        ),
        (
            "WeightStandardization", "", "a layer with weight (v - mean) / sqrt(var + eps)",
            "weights of an output", *SAMPLE, "Qiao et al. 2019",
        ),
        (
            "SpectralNorm", "", "a layer with weight W / sigma; sigma: largest singular value",
            "the whole weight", "u, v", "u and v improve; stay", "1", "Miyato et al. 2018",
        ),
        (
            "NormProp, NormPropLinear, NormPropConv2d", "",
            "(f(g * w x / norm(w) + bias) - E f(Z)) / std f(Z); Z: standard normal",
            "weights of an output", *SAMPLE, "Arpit et al. 2016",
        ),
    )
)  # fmt: skip


def norm_table() -> str:
    """The table of all normalizations, in Markdown."""
    head = "layer", "`norm=`", "formula", "statistics over", "state", "training; eval"
    rows = [(*head, "smallest batch to train", "source"), ("---",) * 8]
    for row in NORMALIZATIONS:
        name = f"{row.name}:{NUMBERS[row.name]}" if row.name in NUMBERS else row.name
        rows.append(row._replace(name=f'`"{name}"`' if name else ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
