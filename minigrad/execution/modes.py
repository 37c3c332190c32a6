"""Modes: how what is built inside a `with` block is computed, and how exactly a GPU multiplies."""

from __future__ import annotations

from typing import Literal

from minigrad.config import STRICT, config, matmul_precision
from minigrad.context import setting
from minigrad.execution.anomaly import require_finite
from minigrad.execution.compute import capturing, compute
from minigrad.graph import Node, const_value

__all__ = [
    "detect_anomaly",
    "eager",
    "get_float32_matmul_precision",
    "no_grad",
    "rewrites",
    "set_float32_matmul_precision",
]


class no_grad(setting):
    """Ops inside record no gradient: `with no_grad():`, or `@no_grad()` on a function."""

    def __init__(self) -> None:
        super().__init__("grad_enabled", False)


class rewrites(setting):
    """Switch algebraic simplification off or on for what is computed inside: `rewrites(False)`.

    Values agree with it and without to the rounding of the dtype, wherever those without are
    finite; see `minigrad.rewrite`. With "strict" that is so for NaN and infinities, too: x - x,
    0 * x, x / x and sqrt(x)^2 are computed as written, at the price of one reduction in a
    BatchNorm's backward. `MINIGRAD_REWRITE=0` switches rewriting off for a process, 2 makes it
    strict. Never on in `eager` and `detect_anomaly`.

    Raises:
        ValueError: `on` is something else.
    """

    def __init__(self, on: bool | Literal["strict"] = True):
        if on not in (True, False, "strict"):
            raise ValueError(f"rewrites: expected True, False or 'strict', got {on!r}.")
        super().__init__("rewrite", STRICT if on == "strict" else int(on))


class eager(setting):
    """Compute each op at once, by itself, unfused and unrewritten: `with eager():`.

    For stepping through a program, and the oracle that the compiled path is tested against.
    """

    def __init__(self) -> None:
        super().__init__("op_by_op", _compute_at_once)


def _compute_at_once(node: Node) -> None:
    """Compute one node; a broadcast constant stays a constant."""
    if const_value(node) is None and not capturing():
        compute([node])


class detect_anomaly(setting):
    """Stop at the op that makes the first NaN or Inf: `with detect_anomaly():`.

    Every op is computed by itself, so this is slow. `MINIGRAD_CHECK=1` does it for a whole process.

    Raises:
        AnomalyError: names the op, its input and output shapes and the line that built it.
    """

    def __init__(self) -> None:
        super().__init__("op_by_op", require_finite)


def set_float32_matmul_precision(precision: str) -> None:
    """How exactly a GPU multiplies float32 matrices and convolves, from now on, as in PyTorch.

    Args:
        precision: "highest" (the default) keeps every bit of the factors; "high" allows 10 bits of
            them after the point (TensorFloat32), "medium" as few as 7 (bfloat16). Sums stay in
            float32. The CPU computes in full float32 always. `MINIGRAD_MATMUL_PRECISION` sets it
            for a process.

    Raises:
        ValueError: `precision` is something else.
    """
    config.matmul_precision = matmul_precision("set_float32_matmul_precision", precision)


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` has set."""
    return config.matmul_precision


if config.check:  # MINIGRAD_CHECK=1: for the whole process
    detect_anomaly().__enter__()
