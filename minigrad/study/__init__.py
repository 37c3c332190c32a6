"""Looking at what the engine does: how gradients are derived, and what is run to compute."""

from minigrad.study.derive import Derivation, Step, Value, derive
from minigrad.study.kernels import KernelReport, Kernels, copy_bandwidth, kernels

__all__ = [
    "Derivation",
    "KernelReport",
    "Kernels",
    "Step",
    "Value",
    "copy_bandwidth",
    "derive",
    "kernels",
]
