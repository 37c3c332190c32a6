"""Data sets, batch transforms and the loader. Plain bytes until the last step, then Tensors.

Importing this package touches neither a backend nor the network.
"""

from minigrad.data import cifar10, dataset, digits, idx, loader, moments, transforms, whitening
from minigrad.data.cifar10 import *
from minigrad.data.dataset import *
from minigrad.data.digits import *
from minigrad.data.idx import *
from minigrad.data.loader import *
from minigrad.data.moments import *
from minigrad.data.transforms import *
from minigrad.data.whitening import *

__all__: list[str] = []
__all__ += cifar10.__all__
__all__ += dataset.__all__
__all__ += digits.__all__
__all__ += idx.__all__
__all__ += loader.__all__
__all__ += moments.__all__
__all__ += transforms.__all__
__all__ += whitening.__all__
