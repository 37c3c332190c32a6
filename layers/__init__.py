"""Layers, models and initial values, composed of graph ops: no gradient is written here."""

from layers import (
    activation,
    caffe,
    container,
    conv,
    dropout,
    fold,
    functional,
    init,
    linear,
    models,
    module,
    norm,
    pool,
)
from layers.activation import *
from layers.container import *
from layers.conv import *
from layers.dropout import *
from layers.fold import *
from layers.functional import *
from layers.linear import *
from layers.module import *
from layers.norm import *
from layers.pool import *

__all__: list[str] = ["caffe", "init", "models"]
__all__ += activation.__all__
__all__ += container.__all__
__all__ += conv.__all__
__all__ += dropout.__all__
__all__ += fold.__all__
__all__ += functional.__all__
__all__ += linear.__all__
__all__ += module.__all__
__all__ += norm.__all__
__all__ += pool.__all__
