"""Functions of neural networks, composed of primitives: no derivative, device or kernel code."""

from minigrad.nn import (
    activations,
    conv,
    local_response,
    loss,
    normalization,
    pooling,
    regularization,
    running,
    standardization,
)
from minigrad.nn.activations import *
from minigrad.nn.conv import *
from minigrad.nn.local_response import *
from minigrad.nn.loss import *
from minigrad.nn.normalization import *
from minigrad.nn.pooling import *
from minigrad.nn.regularization import *
from minigrad.nn.running import *
from minigrad.nn.standardization import *

__all__: list[str] = []
__all__ += activations.__all__
__all__ += conv.__all__
__all__ += local_response.__all__
__all__ += loss.__all__
__all__ += normalization.__all__
__all__ += pooling.__all__
__all__ += regularization.__all__
__all__ += running.__all__
__all__ += standardization.__all__
