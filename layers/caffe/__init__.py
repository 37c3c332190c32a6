"""Caffe's normalization layers, and networks from Caffe's files.

`BatchNorm`, `Scale` and `LRN` compute what Caffe's layers of these names do. `load_prototxt` makes
a module of a network definition, `load_caffemodel` reads weights. Reading files needs the package
protobuf: `pip install 'minigrad[caffe]'`.
"""

from layers.caffe import convert, net, norm, pooling, scale, weights
from layers.caffe.convert import *
from layers.caffe.net import *
from layers.caffe.norm import *
from layers.caffe.pooling import *
from layers.caffe.scale import *
from layers.caffe.weights import *

__all__: list[str] = []
__all__ += convert.__all__
__all__ += net.__all__
__all__ += norm.__all__
__all__ += pooling.__all__
__all__ += scale.__all__
__all__ += weights.__all__
