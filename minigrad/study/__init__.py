"""Looking at what the engine does: how gradients are derived, and what is run to compute."""

from minigrad.study.derivation import Derivation, Step, Value
from minigrad.study.derive import derive
from minigrad.study.formula import Formula
from minigrad.study.kernels import KernelReport, Kernels, copy_bandwidth, kernels

__all__ = [
    "Derivation",
    "Formula",
    "KernelReport",
    "Kernels",
    "Step",
    "Value",
    "copy_bandwidth",
    "derive",
    "kernels",
]
