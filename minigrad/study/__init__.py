"""Looking at what the engine does: derivations of gradients, step by step."""

from minigrad.study.derive import Derivation, Step, Value, derive

__all__ = ["Derivation", "Step", "Value", "derive"]
