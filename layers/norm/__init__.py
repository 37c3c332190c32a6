"""Normalization layers, one file per family."""

from layers.norm.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d"]
