"""Recompute or keep: a value that several sections of code need, computed again or written once.

Sections run one after the other: the passes of a kernel, or the kernels of a plan. Each computes
what its roots need; what an earlier section kept, it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def worth_keeping(
    sections: Sequence[Sequence[K]],
    arguments: Callable[[K], Iterable[K]],
    cost: Callable[[K], float],
    read: Callable[[K], float],
    write: Callable[[K], float],
    fits: Callable[[list[K]], bool] = lambda kept: True,
) -> list[K]:
    """The values to keep, those that save most first.

    Greedy: the value that saves most is kept, then what saves most beside it, while anything does.

    Args:
        sections: the roots of each.
        arguments: what a value is computed from; nothing for one that is at hand.
        cost: of computing a value once from its arguments.
        read, write: the cost of reading a kept value in one section, and of keeping it.
        fits: whether these values may be kept together; the last is the one in question.
    """

    def needs(section: int, kept: dict[K, int]) -> tuple[set[K], set[K]]:
        return _needed(sections[section], arguments, {k for k in kept if kept[k] < section})

    def price(section: int, kept: dict[K, int]) -> float:
        computed, found = needs(section, kept)
        return sum(map(cost, computed)) + sum(map(read, found))

    kept: dict[K, int] = {}  # value -> the section that keeps it
    while True:
        computed_in: dict[K, list[int]] = {}
        for section in range(len(sections)):
            for k in needs(section, kept)[0]:
                computed_in.setdefault(k, []).append(section)
        now = [price(section, kept) for section in range(len(sections))]
        best: tuple[float, K] | None = None
        for k, places in computed_in.items():
            if len(places) < 2 or k in kept or not fits([*kept, k]):
                continue
            after = {**kept, k: places[0]}
            saved = sum(now[s] - price(s, after) for s in places[1:]) - write(k)
            if saved > 0 and (best is None or saved > best[0]):
                best = saved, k
        if best is None:
            used = set().union(*(needs(s, kept)[1] for s in range(len(sections))))
            return [k for k in kept if k in used]
        kept[best[1]] = computed_in[best[1]][0]


def _needed(
    roots: Sequence[K], arguments: Callable[[K], Iterable[K]], at_hand: set[K]
) -> tuple[set[K], set[K]]:
    """What a section computes, and what it reads of the values that earlier ones kept."""
    computed: set[K] = set()
    found: set[K] = set()
    stack = list(roots)
    while stack:
        k = stack.pop()
        if k in computed or k in found:
            continue
        if k in at_hand:
            found.add(k)
        else:
            computed.add(k)
            stack.extend(arguments(k))
    return computed, found
