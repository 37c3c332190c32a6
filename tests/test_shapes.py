"""The algebra of reshapes, on random shapes and against what it promises."""

from __future__ import annotations

import random
from itertools import pairwise
from math import prod

import pytest

from minigrad.ops.shapes import common_refinement, matched_axes


def shapes(seed: int) -> list[tuple[int, ...]]:
    """Two shapes of the same number of elements, ones among them."""
    rng = random.Random(seed)
    size = rng.choice([1, 2, 12, 36, 60, 96])

    def shape() -> tuple[int, ...]:
        out, rest = [1] * rng.randrange(3), size
        while rest > 1:
            out.append(rng.choice([k for k in range(2, rest + 1) if rest % k == 0]))
            rest //= out[-1]
        rng.shuffle(out)
        return tuple(out)

    return [shape(), shape()]


@pytest.mark.parametrize("seed", range(200))
def test_matched_axes(seed):
    a, b = shapes(seed)
    runs = matched_axes(a, b)
    for side, shape in enumerate((a, b)):  # each long axis once, and in order
        assert [i for run in runs for i in run[side]] == [i for i, n in enumerate(shape) if n != 1]
    for left, right in runs:
        before = {prod(a[i] for i in left[:k]) for k in range(1, len(left))}
        assert prod(a[i] for i in left) == prod(b[j] for j in right)
        assert not before & {prod(b[j] for j in right[:k]) for k in range(1, len(right))}


@pytest.mark.parametrize("seed", range(200))
def test_common_refinement(seed):
    a, b = shapes(seed)
    parts = common_refinement(a, b)
    ends = [{prod(s[: k + 1]) for k in range(len(s))} - {1} for s in (a, b)]
    if parts is None:  # no chain of divisors has both as parts
        both = sorted(ends[0] | ends[1])
        assert any(n % m for m, n in pairwise(both))
    else:
        assert {prod(parts[: k + 1]) for k in range(len(parts))} == ends[0] | ends[1]
        assert len(parts) == len(ends[0] | ends[1])


def test_an_axis_of_no_extent_has_no_refinement():
    assert common_refinement((4, 0), (0, 2)) is None
