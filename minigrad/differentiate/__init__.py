"""Derivatives of tensors and of functions of tensors, to any order.

Everything here is built of one thing, the vector-Jacobian product of `autodiff`. There are no
forward rules: a Jacobian-vector product is the transpose of a transpose (`jvp`), a Hessian-vector
product is the vector-Jacobian product of a gradient. Nothing is computed until it is looked at.

Where an argument is said to be a tree, it is a Tensor, or a tuple, list or dict of trees.
"""

from minigrad.differentiate import functions, tensors
from minigrad.differentiate.functions import *
from minigrad.differentiate.tensors import *

__all__: list[str] = []
__all__ += functions.__all__
__all__ += tensors.__all__
