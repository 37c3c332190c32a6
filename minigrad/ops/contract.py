"""Contractions: one general dot, one general convolution. Both are closed under differentiation."""

from __future__ import annotations

from minigrad.backend.geometry import Window
from minigrad.dtype import DType
from minigrad.graph import Node, Primitive, Shape, register
from minigrad.ops.view import flip, inverse, permute, reshape

__all__ = ["conv", "dot", "turned_kernels"]

Ints = tuple[int, ...]
AxesPair = tuple[Ints, Ints]


def _free(ndim: int, *used: Ints) -> Ints:
    taken = {a for axes in used for a in axes}
    return tuple(a for a in range(ndim) if a not in taken)


def _dot_infer(a: Node, b: Node, *, batch: AxesPair, contract: AxesPair) -> tuple[Shape, DType]:
    """Output axes: batch, then the free axes of a, then those of b."""
    if a.dtype is not b.dtype or a.dtype.kind == "bool":
        raise TypeError(f"dot: expected one number dtype, got {a.dtype.name}, {b.dtype.name}.")
    for pair in (batch, contract):
        if [a.shape[i] for i in pair[0]] != [b.shape[i] for i in pair[1]]:
            raise ValueError(
                f"dot: expected equal extents on axes {pair[0]} of {a.shape} "
                f"and {pair[1]} of {b.shape}."
            )
    shape = [a.shape[i] for i in batch[0]]
    shape += [a.shape[i] for i in _free(a.ndim, batch[0], contract[0])]
    shape += [b.shape[i] for i in _free(b.ndim, batch[1], contract[1])]
    return tuple(shape), a.dtype


def _dot_vjp(g: Node, y: Node, a: Node, b: Node, *, batch: AxesPair, contract: AxesPair):
    n_batch = len(batch[0])
    free_a, free_b = _free(a.ndim, batch[0], contract[0]), _free(b.ndim, batch[1], contract[1])
    g_batch = tuple(range(n_batch))
    g_a = tuple(range(n_batch, n_batch + len(free_a)))
    g_b = tuple(range(n_batch + len(free_a), g.ndim))

    def back(other: Node, other_batch: Ints, other_free: Ints, other_contract: Ints, g_other: Ints,
             own: tuple[Ints, Ints, Ints]) -> Node:  # fmt: skip
        """Contract g with `other`'s free axes, then put the axes where `own` had them."""
        result = dot(g, other, batch=(g_batch, other_batch), contract=(g_other, other_free))
        # Its axes: batch, own free (in order), then other's contracted axes in ascending order.
        own_batch, own_free, own_contract = own
        ascending = sorted(range(len(other_contract)), key=lambda i: other_contract[i])
        order = (*own_batch, *own_free, *(own_contract[i] for i in ascending))
        return permute(result, axes=inverse(order))

    to_a = back(b, batch[1], free_b, contract[1], g_b, (batch[0], free_a, contract[0]))
    to_b = back(a, batch[0], free_a, contract[0], g_a, (batch[1], free_b, contract[1]))
    return to_a, to_b


def _conv_infer(x: Node, w: Node, *, window: Window, groups: int) -> tuple[Shape, DType]:
    """x (N, C, H, W), w (O, C / groups, KH, KW) -> (N, O, OH, OW); cross-correlation."""
    if x.dtype is not w.dtype or x.dtype.kind == "bool":
        raise TypeError(f"conv: expected one number dtype, got {x.dtype.name}, {w.dtype.name}.")
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(
            f"conv: expected x (N, C, H, W) and w (O, C / groups, KH, KW) with groups={groups}, "
            f"got {x.shape} and {w.shape}."
        )
    if window.size != w.shape[2:]:
        raise ValueError(f"conv: expected a window of size {w.shape[2:]}, got {window.size}.")
    return (x.shape[0], w.shape[0], *window.windows(x.shape[2:])), x.dtype


def turned_kernels(w: Node, groups: int) -> Node:
    """The kernels of a convolution's adjoint: turned around, in and out channels exchanged.

    Shapes: (G * O, C, KH, KW) -> (G * C, O, KH, KW), channels staying in their group.
    """
    out, inner, *size = w.shape
    split = reshape(w, shape=(groups, out // groups, inner, *size))
    swapped = permute(split, axes=(0, 2, 1, 3, 4))
    return flip(reshape(swapped, shape=(groups * inner, out // groups, *size)), axes=(2, 3))


def _conv_vjp(g: Node, y: Node, x: Node, w: Node, *, window: Window, groups: int):
    n, _, *size = x.shape
    inner = w.shape[1]
    to_x = conv(g, turned_kernels(w, groups), window=window.adjoint(size), groups=groups)
    # Weights: x against g; the batch is the contracted channel, windows and taps are exchanged.
    xt, gt = permute(x, axes=(1, 0, 2, 3)), permute(g, axes=(1, 0, 2, 3))
    if groups > 1:  # (G*C, N, H, W) -> (C, G*N, H, W)
        xt = reshape(xt, shape=(groups, inner, n, *size))
        xt = reshape(permute(xt, axes=(1, 0, 2, 3, 4)), shape=(inner, groups * n, *size))
    to_w = conv(xt, gt, window=window.exchanged(size), groups=groups)
    return to_x, permute(to_w, axes=(1, 0, 2, 3))


dot = register(Primitive("dot", "kernel", _dot_infer, _dot_vjp))
conv = register(Primitive("conv", "kernel", _conv_infer, _conv_vjp))
