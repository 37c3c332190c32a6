"""Computing one node and looking for NaN and Inf in it: what `detect_anomaly` does to each."""

from __future__ import annotations

from collections.abc import Sequence

from minigrad import ops
from minigrad.context import setting
from minigrad.device import backend_of
from minigrad.dtype import int64
from minigrad.errors import AnomalyError
from minigrad.execution.compute import capturing, compute
from minigrad.graph import Node, const_value, leaf, like


def require_finite(node: Node) -> None:
    """Compute a node; raise if it makes a NaN or Inf that its inputs do not have."""
    if const_value(node) is not None or capturing():
        return
    inputs, op = node.inputs, node.op  # a computed node may forget them
    # The inputs too: one that was built before this mode may not have been computed.
    compute([n for n in (*inputs, node) if const_value(n) is None])
    if not node.dtype.is_floating or op.kind in ("view", "identity"):
        return
    with setting("op_by_op", None):
        bad = _count_non_finite(node)
        if bad and not any(_count_non_finite(n) for n in inputs if n.dtype.is_floating):
            raise AnomalyError(_describe(node, op.name, inputs, bad))


def _count_non_finite(node: Node) -> int:
    value = const_value(node)
    if value is not None:
        return int(value != value or value in (float("inf"), float("-inf")))
    x = leaf(node.storage, node.shape, node.dtype, node.device)
    finite = ops.less(ops.abs_(x), like(float("inf"), x))  # false for NaN
    total = ops.sum_(
        ops.cast(ops.bitwise_invert(finite), dtype=int64), axes=tuple(range(node.ndim))
    )
    compute([total])
    return int(backend_of(node.device).to_bytes(total.storage, 8).cast("q")[0])


def _describe(node: Node, name: str, inputs: Sequence[Node], bad: int) -> str:
    shapes = ", ".join(f"{n.dtype.name}{list(n.shape)}" for n in inputs)
    line = f"{node.site[0]}:{node.site[1]}" if node.site else "an unknown line"
    return (
        f"detect_anomaly: expected finite values, got {bad} NaN or Inf of {node.size} from "
        f"{name}({shapes}), built for {line}. Its inputs are all finite."
    )
