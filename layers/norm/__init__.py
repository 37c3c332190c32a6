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
