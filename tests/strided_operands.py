"""Operands of any strides for tests of backend lowerings; gaps must stay untouched."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from backend_harness import Prepared
from hypothesis import strategies as st

from minigrad.backend.cpu.runtime import memory
from minigrad.backend.launch import contiguous_strides
from minigrad.dtype import as_dtype


@dataclass(frozen=True)
class Layout:
    """Where the elements of `shape` lie in a buffer of `size` elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    size: int

    def places(self) -> list[int]:
        """The place of each element, in row-major order."""
        return [
            self.offset + sum(i * s for i, s in zip(index, self.strides, strict=True))
            for index in product(*map(range, self.shape))
        ]


def dense(shape: Sequence[int]) -> Layout:
    return Layout(tuple(shape), contiguous_strides(tuple(shape)), 0, prod(shape))


@st.composite
def layouts(draw: Any, shape: Sequence[int]) -> Layout:
    """Dense, or permuted, with gaps after and between elements, and reversed axes."""
    shape = tuple(shape)
    if draw(st.booleans()):
        return dense(shape)
    order = draw(st.permutations(range(len(shape))))
    strides = [0] * len(shape)
    offset, step = draw(st.integers(0, 3)), draw(st.sampled_from((1, 1, 2, 3)))
    for axis in reversed(order):
        strides[axis] = step
        step = step * max(shape[axis], 1) + draw(st.sampled_from((0, 0, 1)))
        if draw(st.sampled_from((False, False, True))):
            offset += strides[axis] * max(shape[axis] - 1, 0)
            strides[axis] = -strides[axis]
    return Layout(shape, tuple(strides), offset, offset + step)


def run_strided(
    build: Callable[..., None],
    inputs: Sequence[tuple[str, Layout, Sequence[Any]]],
    out: Layout,
    out_dtype: str,
) -> list[Any]:
    """The output of `build(program, *inputs, out)` on such operands, in row-major order.

    Elements between the inputs' are huge, so that reading one shows; those between the output's
    must keep their poison.
    """
    flat_inputs, layouts_ = [], []
    for dtype, layout, values in inputs:
        flat: list[Any] = [101 if dtype in ("bool", "uint8") else 1_000_003] * layout.size
        for place, value in zip(layout.places(), values, strict=True):
            flat[place] = value
        flat_inputs.append((dtype, (layout.size,), flat))
        layouts_.append(layout)
    layouts_.append(out)

    def build_strided(program: Any, *operands: Any) -> None:
        build(
            program,
            *(
                replace(operand, shape=at.shape, strides=at.strides, offset=at.offset)
                for operand, at in zip(operands, layouts_, strict=True)
            ),
        )

    prepared = Prepared(build_strided, flat_inputs, (out.size,), out_dtype)
    prepared.run()
    itemsize = as_dtype(out_dtype).itemsize
    raw = ctypes.string_at(prepared.out.address, out.size * itemsize + memory.SLACK)
    places = set(out.places())
    gaps = (i for i in range(len(raw) // itemsize) if i not in places)
    assert all(raw[i * itemsize : (i + 1) * itemsize] == b"\xff" * itemsize for i in gaps)
    everything = prepared.output()
    return [everything[place] for place in out.places()]
