"""Convolutions by their definition, problems for every backend, and how operands may lie in memory.

All values are small integers, so every algorithm has one right answer in every dtype, and a NaN
from scratch or an uninitialised output cannot hide in a tolerance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product
from math import prod

import pytest
from hypothesis import strategies as st

from minigrad.backend.geometry import Window
from minigrad.backend.launch import contiguous_strides

FLOATS = ("float32", "float64")


POISON = {"float32": float("nan"), "float64": float("nan"), "bool": True, "uint8": 255}


@dataclass(frozen=True)
class Layout:
    """How a dense array lies in memory: axis order (outermost first), flipped axes, gaps."""

    order: tuple[int, ...] = (0, 1, 2, 3)
    flips: tuple[int, ...] = ()
    gap: int = 0  # poisoned elements after each run of the innermost axis

    def place(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], int]:
        """(elements of storage, strides, offset)."""
        stored = [shape[axis] for axis in self.order]
        stored[-1] += self.gap
        strides = [0] * 4
        for axis, step in zip(self.order, contiguous_strides(tuple(stored)), strict=True):
            strides[axis] = step
        offset = 0
        for axis in self.flips:
            offset += max(0, shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
        return prod(stored), tuple(strides), offset


DENSE = Layout()


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    input_dilation: tuple[int, int] = (1, 1)
    kernel_dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layouts: tuple[Layout, Layout, Layout] = field(default=(DENSE, DENSE, DENSE))

    @property
    def out(self) -> tuple[int, int, int, int]:
        sizes = []
        for i in range(2):
            padded = max(0, (self.x[2 + i] - 1) * self.input_dilation[i] + 1)
            padded += sum(self.padding[i])
            extent = (self.w[2 + i] - 1) * self.kernel_dilation[i] + 1
            sizes.append((padded - extent) // self.stride[i] + 1 if padded >= extent else 0)
        return (self.x[0], self.w[0], *sizes)

    @property
    def parameters(self) -> dict:
        window = Window(
            self.w[2:], self.stride, self.padding, self.kernel_dilation, self.input_dilation
        )
        return {"window": window, "groups": self.groups}


def indices(shape):
    return product(*(range(n) for n in shape))


def at(index, strides, offset=0):
    return offset + sum(i * s for i, s in zip(index, strides, strict=True))


def plain(case: Case, x: list, w: list) -> list:
    """The definition, element by element."""
    out = []
    x_strides, w_strides = contiguous_strides(case.x), contiguous_strides(case.w)
    per_group = case.w[0] // case.groups
    for n, o, oh, ow in indices(case.out):
        total = 0
        for c, kh, kw in indices(case.w[1:]):
            place = []
            for i, (p, k) in enumerate(((oh, kh), (ow, kw))):
                position = p * case.stride[i] + k * case.kernel_dilation[i] - case.padding[i][0]
                index, rest = divmod(position, case.input_dilation[i])
                place.append(index if rest == 0 and 0 <= index < case.x[2 + i] else None)
            if None not in place:
                channel = o // per_group * case.w[1] + c
                total += x[at((n, channel, *place), x_strides)] * w[at((o, c, kh, kw), w_strides)]
        out.append(total)
    return out


def with_torch(case: Case, x: list, w: list) -> list:
    """The same by torch in float64, for larger shapes."""
    torch = pytest.importorskip("torch")
    dilated = torch.tensor(x, dtype=torch.float64).reshape(case.x)
    if max(case.input_dilation) > 1:
        a, b = case.input_dilation
        spread = torch.zeros(*case.x[:2], (case.x[2] - 1) * a + 1, (case.x[3] - 1) * b + 1)
        spread = spread.double()
        spread[:, :, ::a, ::b] = dilated
        dilated = spread
    padded = torch.nn.functional.pad(dilated, (*case.padding[1], *case.padding[0]))
    weights = torch.tensor(w, dtype=torch.float64).reshape(case.w)
    result = torch.nn.functional.conv2d(
        padded, weights, None, case.stride, 0, case.kernel_dilation, case.groups
    )
    assert tuple(result.shape) == case.out
    return result.flatten().tolist()


def store(values: list, shape: tuple[int, ...], layout: Layout, dtype: str) -> list:
    size, strides, offset = layout.place(shape)
    storage = [POISON.get(dtype, 12345)] * size
    for value, index in zip(values, indices(shape), strict=True):
        storage[at(index, strides, offset)] = value
    return storage


def values(case: Case, seed: int, limit: int = 3) -> tuple[list, list]:
    rng = random.Random(seed)
    return tuple([rng.randint(-limit, limit) for _ in range(prod(s))] for s in (case.x, case.w))


def backward_data(case: Case, h: int, w: int) -> Case:
    """How the gradient of `case` for an input of size (h, w) arrives, as a Case."""
    n, o, oh, ow = case.out
    padding = []
    for i, size in enumerate((h, w)):
        reach = (case.w[2 + i] - 1) * case.kernel_dilation[i]
        low = reach - case.padding[i][0]
        dilated = ((oh, ow)[i] - 1) * case.stride[i] + 1
        padding.append((low, size + reach - dilated - low))
    return Case(
        (n, o, oh, ow),
        (case.x[1], o, *case.w[2:]),
        (1, 1),
        tuple(padding),
        case.stride,
        case.kernel_dilation,
        # the weights are stored (O, C, KH, KW)
        layouts=(DENSE, Layout((1, 0, 2, 3), (2, 3)), DENSE),
    )


def backward_weight(case: Case) -> Case:
    """How the gradient of `case` for its weights arrives, as a Case."""
    n, o, oh, ow = case.out
    padding = []
    for i, size in enumerate(case.x[2:]):
        reach = (case.w[2 + i] - 1) * case.kernel_dilation[i]
        extent = ((oh, ow)[i] - 1) * case.stride[i] + 1
        padding.append((case.padding[i][0], reach + extent - size - case.padding[i][0]))
    swapped = Layout((1, 0, 2, 3))
    return Case(
        (case.x[1], n, *case.x[2:]),
        (o, n, oh, ow),
        case.kernel_dilation,
        tuple(padding),
        kernel_dilation=case.stride,
        layouts=(swapped, swapped, swapped),
    )


FORWARDS = {
    "lenet 1": Case((5, 3, 32, 32), (6, 3, 5, 5)),
    "lenet 2": Case((5, 6, 14, 14), (16, 6, 5, 5)),
    "ragged": Case((3, 5, 13, 11), (19, 5, 3, 3), padding=((1, 1), (1, 1))),
    "wide": Case((2, 4, 9, 70), (9, 4, 3, 3), padding=((1, 1), (1, 1))),
    "stride 2": Case((3, 4, 17, 18), (10, 4, 3, 3), (2, 2), ((1, 1), (1, 1))),
    "stride 2 k1": Case((3, 8, 16, 16), (12, 8, 1, 1), (2, 2)),
    "stride 3": Case((2, 3, 20, 19), (7, 3, 5, 4), (3, 3), ((2, 1), (1, 2))),
    "mixed stride": Case((2, 3, 12, 17), (7, 3, 2, 5), (1, 2), ((0, 1), (2, 2))),
    "one by one": Case((3, 20, 9, 9), (33, 20, 1, 1)),
    "dilated": Case((2, 3, 15, 16), (8, 3, 3, 3), (1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2)),
    "cropped": Case((2, 3, 15, 16), (8, 3, 3, 3), (1, 1), ((-2, 1), (3, -4))),
    "many channels": Case((2, 40, 6, 6), (70, 40, 3, 3), padding=((1, 1), (1, 1))),
    "one image": Case((1, 16, 24, 24), (24, 16, 3, 3), padding=((1, 1), (1, 1))),
    "less than a vector": Case((9, 4, 3, 4), (7, 4, 2, 3)),
    "mostly padding": Case((6, 4, 5, 7), (9, 4, 5, 3), padding=((6, 4), (2, 0))),
    "patches": Case((2, 3, 32, 32), (20, 3, 8, 8), (8, 8)),
}


layouts = st.builds(
    Layout,
    st.permutations(range(4)).map(tuple),
    st.sets(st.integers(0, 3)).map(lambda s: tuple(sorted(s))),
    st.integers(0, 2),
)


@st.composite
def cases(draw) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    n, c, o = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    h, w, kh, kw = (draw(st.integers(1, top)) for top in (9, 20, 5, 5))

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    return Case(
        (n, c * groups, h, w),
        (o * groups, c, kh, kw),
        pair(1, 3),
        (pair(-2, 4), pair(-2, 4)),
        pair(1, 3) if draw(st.booleans()) else (1, 1),
        pair(1, 3),
        groups,
        tuple(draw(st.just(DENSE) | layouts) for _ in range(3)),
    )
