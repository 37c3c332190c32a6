"""Normalization layers."""

from layers.norm.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d
from layers.norm.moving_average import ExponentialMovingAverage
from layers.norm.population import estimate_population_statistics

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "ExponentialMovingAverage",
    "estimate_population_statistics",
]
