"""The CPU's kernels by the names the compiler lowers to."""

from minigrad.backend.cpu.contract.conv import conv2d
from minigrad.backend.cpu.contract.gemm import dot
from minigrad.backend.cpu.gather import argmax, scatter_add, take
from minigrad.backend.cpu.nests.loops import emit as loop_nest
from minigrad.backend.cpu.random_bits import random_bits
from minigrad.backend.cpu.window.window import (
    window_max,
    window_scatter,
    window_select,
    window_sum,
)

__all__ = [
    "argmax",
    "conv2d",
    "dot",
    "loop_nest",
    "random_bits",
    "scatter_add",
    "take",
    "window_max",
    "window_scatter",
    "window_select",
    "window_sum",
]
