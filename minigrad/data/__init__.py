"""Data sets, batch transforms and the loader. Plain bytes until the last step, then Tensors.

Importing this package touches neither a backend nor the network.
"""

from minigrad.data.cifar10 import CIFAR10
from minigrad.data.dataset import ImageDataset, TensorDataset
from minigrad.data.digits import Digits
from minigrad.data.idx import IDX, MNIST, FashionMNIST, IDXDataset
from minigrad.data.loader import DataLoader
from minigrad.data.moments import PooledMoments
from minigrad.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from minigrad.data.whitening import Whitening

__all__ = [
    "CIFAR10",
    "IDX",
    "MNIST",
    "Compose",
    "DataLoader",
    "Digits",
    "FashionMNIST",
    "IDXDataset",
    "ImageDataset",
    "Normalize",
    "PooledMoments",
    "RandomCrop",
    "RandomHorizontalFlip",
    "TensorDataset",
    "Whitening",
]
