"""Normalization layers, one file per family: state around a function of `minigrad.nn`."""

from layers.norm import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    moving_average,
    population,
    rms_norm,
)
from layers.norm.batch_norm import *
from layers.norm.group_norm import *
from layers.norm.instance_norm import *
from layers.norm.layer_norm import *
from layers.norm.local_response_norm import *
from layers.norm.moving_average import *
from layers.norm.population import *
from layers.norm.rms_norm import *

__all__: list[str] = []
__all__ += batch_norm.__all__
__all__ += group_norm.__all__
__all__ += instance_norm.__all__
__all__ += layer_norm.__all__
__all__ += local_response_norm.__all__
__all__ += moving_average.__all__
__all__ += population.__all__
__all__ += rms_norm.__all__
from layers.norm.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d
from layers.norm.group_norm import GroupNorm
from layers.norm.instance_norm import InstanceNorm, InstanceNorm1d, InstanceNorm2d
from layers.norm.layer_norm import LayerNorm
from layers.norm.local_response_norm import LocalResponseNorm
from layers.norm.moving_average import ExponentialMovingAverage
from layers.norm.norm_prop import NormProp, NormPropConv2d, NormPropLinear
from layers.norm.population import estimate_population_statistics
from layers.norm.rms_norm import RMSNorm
from layers.norm.spectral_norm import SpectralNorm
from layers.norm.weight_norm import WeightNorm, initialize_weight_norm
from layers.norm.weight_standardization import WeightStandardization

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "ExponentialMovingAverage",
    "GroupNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "LayerNorm",
    "LocalResponseNorm",
    "NormProp",
    "NormPropConv2d",
    "NormPropLinear",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
    "WeightStandardization",
    "estimate_population_statistics",
    "initialize_weight_norm",
]
