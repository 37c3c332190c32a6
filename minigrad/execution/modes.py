"""Modes: how what is built inside a `with` block is computed, and how exactly a GPU multiplies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from typing import Literal

from minigrad import graph
from minigrad.config import STRICT, config, matmul_precision
from minigrad.device import backend_of
from minigrad.errors import AnomalyError
from minigrad.execution.compute import capturing, compute
from minigrad.graph import Node, const_value

__all__ = [
    "detect_anomaly",
    "eager",
    "get_float32_matmul_precision",
    "rewrites",
    "set_float32_matmul_precision",
]


class rewrites(ContextDecorator):
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
        self.level = STRICT if on == "strict" else int(on)
        self._previous: list[int] = []

    def __enter__(self) -> None:
        """Switch."""
        self._previous.append(config.rewrite)
        config.rewrite = self.level

    def __exit__(self, *exception: object) -> None:
        """Put the mode back as it was."""
        config.rewrite = self._previous.pop()


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


class _EachNode(ContextDecorator):
    """Runs a function on every node as it is built."""

    def __init__(self) -> None:
        self._previous: list[Callable[[Node], None] | None] = []

    def __enter__(self) -> None:
        self._previous.append(graph.on_build)
        graph.on_build = self.visit

    def __exit__(self, *exception: object) -> None:
        graph.on_build = self._previous.pop()

    def visit(self, node: Node) -> None:
        raise NotImplementedError


class eager(_EachNode):
    """Compute each op at once, by itself, unfused and unrewritten: `with eager():`.

    For stepping through a program, and the oracle that the compiled path is tested against.
    """

    def visit(self, node: Node) -> None:
        """Compute one node; a broadcast constant stays a constant."""
        if const_value(node) is None and not capturing():
            compute([node])


class detect_anomaly(_EachNode):
    """Stop at the op that makes the first NaN or Inf: `with detect_anomaly():`.

    Every op is computed by itself, so this is slow. `MINIGRAD_CHECK=1` does it for a whole process.

    Raises:
        AnomalyError: names the op, its input and output shapes and the line that built it.
    """

    def visit(self, node: Node) -> None:
        """Compute and check one node."""
        if const_value(node) is not None or capturing():
            return
        inputs, op = node.inputs, node.op  # a computed node may forget them
        # The inputs too: one that was built before this mode may not have been computed.
        compute([n for n in (*inputs, node) if const_value(n) is None])
        if not node.dtype.is_floating or op.kind in ("view", "identity"):
            return
        with _unwatched():
            bad = _count_non_finite(node)
            if bad and not any(_count_non_finite(n) for n in inputs if n.dtype.is_floating):
                raise AnomalyError(_describe(node, op.name, inputs, bad))


class _unwatched:
    def __enter__(self) -> None:
        self._previous, graph.on_build = graph.on_build, None

    def __exit__(self, *exception: object) -> None:
        graph.on_build = self._previous


def _count_non_finite(node: Node) -> int:
    from minigrad import ops
    from minigrad.dtype import int64

    value = const_value(node)
    if value is not None:
        return int(value != value or value in (float("inf"), float("-inf")))
    x = graph.leaf(node.storage, node.shape, node.dtype, node.device)
    finite = ops.less(ops.abs_(x), graph.like(float("inf"), x))  # false for NaN
    total = ops.sum_(
        ops.cast(ops.bitwise_invert(finite), dtype=int64), axes=tuple(range(node.ndim))
    )
    compute([total])
    return int(backend_of(node.device).to_bytes(total.storage, 8).cast("q")[0])


def _describe(node: Node, name: str, inputs: Sequence[Node], bad: int) -> str:
    shapes = ", ".join(f"{n.dtype.name}{list(n.shape)}" for n in inputs)
    where = f"{node.site[0]}:{node.site[1]}" if node.site else "an unknown line"
    return (
        f"detect_anomaly: expected finite values, got {bad} NaN or Inf of {node.size} from "
        f"{name}({shapes}), built for {where}. Its inputs are all finite."
    )


if config.check:  # MINIGRAD_CHECK=1: for the whole process
    detect_anomaly().__enter__()
