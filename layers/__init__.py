"""Layers, models and initial values, composed of graph ops: no gradient is written here."""

from layers import caffe, init, models
from layers.activation import (
    ELU,
    GELU,
    SELU,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from layers.container import Concat, Flatten, ModuleList, Residual, Sequential
from layers.conv import Conv2d
from layers.dropout import Dropout
from layers.fold import fold_batch_norm
from layers.functional import functional_call
from layers.linear import Linear
from layers.module import Buffer, Module, Parameter
from layers.norm import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    ExponentialMovingAverage,
    estimate_population_statistics,
)
from layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AvgPool2d",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "Concat",
    "Conv2d",
    "Dropout",
    "ExponentialMovingAverage",
    "Flatten",
    "GlobalAvgPool2d",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "caffe",
    "estimate_population_statistics",
    "fold_batch_norm",
    "functional_call",
    "init",
    "models",
]
