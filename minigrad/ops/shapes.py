"""The algebra of reshapes: how two shapes of the same elements fit together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul


def matched_axes(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of two shapes that hold the same elements, from the first axis on.

    (2, 1, 15) and (2, 3, 5) -> [([0], [0]), ([2], [1, 2])]. Axes of extent 1 belong to no run, and
    no extent is 0.
    """
    runs: list[tuple[list[int], list[int]]] = []
    left, right = list[int](), list[int]()
    m = n = 1  # elements of the axes so far
    j = 0
    for i, extent in enumerate(a):
        if extent == 1:
            continue
        left.append(i)
        m *= extent
        while n < m:
            if b[j] != 1:
                right.append(j)
            n *= b[j]
            j += 1
        if m == n:
            runs.append((left, right))
            left, right = [], []
    return runs


def common_refinement(a: Sequence[int], b: Sequence[int]) -> list[int] | None:
    """The fewest extents, none of them 1, of which both shapes are products of neighbours.

    (12, 5) and (3, 20) -> [3, 4, 5]. None where there are none, as for (4, 6) and (6, 4).
    """
    if 0 in (*a, *b):
        return None
    ends = sorted({1, *accumulate(a, mul), *accumulate(b, mul)})
    steps = list(pairwise(ends))
    return None if any(n % m for m, n in steps) else [n // m for m, n in steps]
