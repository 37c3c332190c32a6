"""Optimizers and learning-rate schedules, with PyTorch's names and defaults."""

from minigrad.optim import adagrad, adam, lr_scheduler, optimizer, rmsprop, sgd
from minigrad.optim.adagrad import *
from minigrad.optim.adam import *
from minigrad.optim.optimizer import *
from minigrad.optim.rmsprop import *
from minigrad.optim.sgd import *

__all__: list[str] = ["lr_scheduler"]
__all__ += adagrad.__all__
__all__ += adam.__all__
__all__ += optimizer.__all__
__all__ += rmsprop.__all__
__all__ += sgd.__all__
