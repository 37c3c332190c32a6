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
from minigrad.nn.conv import conv2d, conv_transpose2d, linear
from minigrad.nn.dropout import dropout
from minigrad.nn.local_response import local_response_norm
from minigrad.nn.loss import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    nll_loss,
)
from minigrad.nn.norm_prop import propagate, propagation
from minigrad.nn.normalization import (
    batch_norm,
    batch_normalization,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from minigrad.nn.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minigrad.nn.reparametrization import (
    power_iteration,
    spectral_norm,
    weight_norm,
    weight_standardization,
)
from minigrad.nn.running import update_running
from minigrad.nn.standardization import affine, centre, moments, normalize, standardize, unit_rms

__all__ = [
    "adaptive_avg_pool2d",
    "affine",
    "avg_pool2d",
    "batch_norm",
    "batch_normalization",
    "binary_cross_entropy_with_logits",
    "centre",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "elu",
    "gelu",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log_softmax",
    "max_pool2d",
    "moments",
    "mse_loss",
    "nll_loss",
    "normalize",
    "power_iteration",
    "propagate",
    "propagation",
    "relu",
    "rms_norm",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "spectral_norm",
    "standardize",
    "tanh",
    "unit_rms",
    "update_running",
    "weight_norm",
    "weight_standardization",
]
