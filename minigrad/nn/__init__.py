"""Functions of neural networks, composed of primitives: no derivative, device or kernel code."""

from minigrad.nn import (
    activations,
    batch_statistics,
    conv,
    decorrelation,
    filter_response,
    local_response,
    loss,
    norm_prop,
    normalization,
    pooling,
    regularization,
    reparametrization,
    running,
    standardization,
)
from minigrad.nn.activations import *
from minigrad.nn.batch_statistics import *
from minigrad.nn.conv import *
from minigrad.nn.decorrelation import *
from minigrad.nn.filter_response import *
from minigrad.nn.local_response import *
from minigrad.nn.loss import *
from minigrad.nn.norm_prop import *
from minigrad.nn.normalization import *
from minigrad.nn.pooling import *
from minigrad.nn.regularization import *
from minigrad.nn.reparametrization import *
from minigrad.nn.running import *
from minigrad.nn.standardization import *

__all__: list[str] = []
__all__ += activations.__all__
__all__ += batch_statistics.__all__
__all__ += conv.__all__
__all__ += decorrelation.__all__
__all__ += filter_response.__all__
__all__ += local_response.__all__
__all__ += loss.__all__
__all__ += norm_prop.__all__
__all__ += normalization.__all__
__all__ += pooling.__all__
__all__ += regularization.__all__
__all__ += reparametrization.__all__
__all__ += running.__all__
__all__ += standardization.__all__
