"""Caffe's normalization layers, and networks from Caffe's files.

`BatchNorm`, `Scale` and `LRN` compute what Caffe's layers of these names do. `load_prototxt` makes
a module of a network definition, `load_caffemodel` reads weights. Reading files needs the package
protobuf: `pip install 'minigrad[caffe]'`.
"""

from layers.caffe.convert import from_batch_norm, to_batch_norm
from layers.caffe.net import Net, load_prototxt
from layers.caffe.norm import LRN, MVN, BatchNorm
from layers.caffe.pooling import Pooling
from layers.caffe.scale import Bias, Scale
from layers.caffe.weights import load_caffemodel

__all__ = [
    "LRN",
    "MVN",
    "BatchNorm",
    "Bias",
    "Net",
    "Pooling",
    "Scale",
    "from_batch_norm",
    "load_caffemodel",
    "load_prototxt",
    "to_batch_norm",
]
