"""What every device asks of the operands of a library kernel, before it writes one."""

from __future__ import annotations

from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, contiguous_strides


def require_numeric(caller: str, first: Operand, *others: Operand) -> None:
    """Raise TypeError unless the operands share one dtype, and it is not bool."""
    if first.dtype.kind == "bool" or any(o.dtype != first.dtype for o in others):
        found = ", ".join(o.dtype.name for o in (first, *others))
        raise TypeError(
            f"{caller}: expected operands of one numeric dtype, got {found}. Cast first."
        )


def require_indexed(caller: str, whole: Operand, part: Operand, indices: Operand) -> None:
    """Raise unless `indices` can pick `part`, or add it up, along the middle axis of `whole`."""
    if whole.dtype != part.dtype:
        raise TypeError(f"{caller}: expected one dtype, got {whole.dtype.name}, {part.dtype.name}.")
    if indices.dtype.name not in ("int32", "int64"):
        raise TypeError(
            f"{caller}: expected int32 or int64 indices, got {indices.dtype.name}. Cast them."
        )
    if whole.shape[1] == 0 and part.size:
        raise IndexError(f"{caller}: expected a non-empty axis to index, got shape {whole.shape}.")


def require_additive(out: Operand) -> None:
    """Raise TypeError if `scatter_add` cannot add up in `out`."""
    if out.dtype.kind == "bool":
        raise TypeError("scatter_add: expected a numeric dtype, got bool. Cast first.")


def out_of_range(caller: str, length: int) -> str:
    """What a program raises that met an index outside an axis of `length`."""
    return (
        f"{caller}: expected indices in [{-length}, {length}), got {{value}}. "
        "Check the indices, or the axis they index."
    )


def require_argmax(x: Operand, out: Operand) -> None:
    """Raise unless `out` can hold the places of maxima along the middle axis of `x`."""
    if out.dtype.name != "int64":
        raise TypeError(f"argmax: expected out of dtype int64, got {out.dtype.name}.")
    if out.size and x.shape[1] == 0:
        raise ValueError(f"argmax: expected a non-empty axis, got x of shape {x.shape}.")


def require_random_bits(state: Operand, out: Operand) -> None:
    """Raise unless `state` is [seed, counter] and `out` dense int32."""
    if state.shape != (2,) or state.dtype.name != "int64" or out.dtype.name != "int32":
        raise TypeError(
            f"random_bits: expected state (2,) int64 and out int32, "
            f"got {state.shape} {state.dtype.name} and {out.dtype.name}."
        )
    if out.size and any(
        n > 1 and stride != dense
        for n, stride, dense in zip(
            out.shape, out.strides, contiguous_strides(out.shape), strict=True
        )
    ):
        raise ValueError(
            f"random_bits: expected a dense out, got strides {out.strides}. Copy after."
        )


def require_product(a: Operand, b: Operand, out: Operand) -> None:
    """Raise unless out = a @ b is a batch of matrix products of numbers."""
    if len(a.shape) != 3 or len(b.shape) != 3 or len(out.shape) != 3:
        raise ValueError(
            f"dot: expected operands with 3 axes, got {a.shape} @ {b.shape} -> {out.shape}. "
            "Collapse the batch axes first."
        )
    (batch, m, k), (_, _, n) = a.shape, b.shape
    if b.shape != (batch, k, n) or out.shape != (batch, m, n):
        raise ValueError(
            f"dot: expected (B, M, K) @ (B, K, N) -> (B, M, N), got {a.shape} @ {b.shape} -> "
            f"{out.shape}. Broadcast the batch with stride 0, and transpose with strides."
        )
    if not (a.dtype == b.dtype == out.dtype) or out.dtype.kind == "bool":
        raise TypeError(
            "dot: expected one integer or float dtype, got "
            f"{a.dtype.name} @ {b.dtype.name} -> {out.dtype.name}. Cast the operands first."
        )


def require_convolution(x: Operand, w: Operand, out: Operand, window: Window, groups: int) -> None:
    """Raise unless dtypes, channels and extents of a convolution fit together."""
    if not x.dtype == w.dtype == out.dtype:
        raise TypeError(
            f"conv2d: expected operands of one dtype, got {x.dtype}, {w.dtype} and {out.dtype}. "
            "Cast them first."
        )
    whole = groups >= 1 and x.shape[1] % groups == 0 == w.shape[0] % groups
    shapes = (out.shape[0], w.shape[1] * groups, out.shape[1])
    if not whole or shapes != (x.shape[0], x.shape[1], w.shape[0]):
        raise ValueError(
            f"conv2d: expected x (N, C, H, W), w (O, C/groups, KH, KW) and out (N, O, OH, OW), got "
            f"{x.shape}, {w.shape} and {out.shape} with groups={groups}. "
            "Both channel counts must be multiples of groups."
        )
    if min(*window.stride, *window.dilation, *window.input_dilation) < 1:
        raise ValueError(
            f"conv2d: expected stride and dilations of at least 1, got {window}. Pass 1 for none."
        )
    expected = window.windows(x.shape[2:])
    if window.size != w.shape[2:] or out.shape[2:] != expected:
        raise ValueError(
            f"conv2d: expected an output of size {expected} for an input of size {x.shape[2:]}, "
            f"{w.shape[2:]} taps and {window}, got {out.shape[2:]}."
        )
