"""Normalization layers, one file per family: state around a function of `minigrad.nn`."""

from layers.norm import (
    adabn,
    batch_norm,
    batch_renorm,
    decorrelated_batch_norm,
    filter_response_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    mean_only_batch_norm,
    moving_average,
    norm_prop,
    population,
    registry,
    rms_norm,
    spectral_norm,
    weight_norm,
    weight_standardization,
)
from layers.norm.adabn import *
from layers.norm.batch_norm import *
from layers.norm.batch_renorm import *
from layers.norm.decorrelated_batch_norm import *
from layers.norm.filter_response_norm import *
from layers.norm.group_norm import *
from layers.norm.instance_norm import *
from layers.norm.layer_norm import *
from layers.norm.local_response_norm import *
from layers.norm.mean_only_batch_norm import *
from layers.norm.moving_average import *
from layers.norm.norm_prop import *
from layers.norm.population import *
from layers.norm.registry import *
from layers.norm.rms_norm import *
from layers.norm.spectral_norm import *
from layers.norm.weight_norm import *
from layers.norm.weight_standardization import *

__all__: list[str] = []
__all__ += adabn.__all__
__all__ += batch_norm.__all__
__all__ += batch_renorm.__all__
__all__ += decorrelated_batch_norm.__all__
__all__ += filter_response_norm.__all__
__all__ += group_norm.__all__
__all__ += instance_norm.__all__
__all__ += layer_norm.__all__
__all__ += local_response_norm.__all__
__all__ += mean_only_batch_norm.__all__
__all__ += moving_average.__all__
__all__ += norm_prop.__all__
__all__ += population.__all__
__all__ += registry.__all__
__all__ += rms_norm.__all__
__all__ += spectral_norm.__all__
__all__ += weight_norm.__all__
__all__ += weight_standardization.__all__
