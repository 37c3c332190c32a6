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
    kept: dict[K, int] = {}  # with the section that keeps each
    prices: list[dict[K, float]] = [{} for _ in sections]
    changed: Iterable[int] = range(len(sections))
    while True:
        for s in changed:
            earlier = {k for k, keeper in kept.items() if keeper < s}
            prices[s] = _prices(sections[s], arguments, cost, read, earlier)
        where: dict[K, list[int]] = {}
        for s, priced in enumerate(prices):
            for k in priced:
                where.setdefault(k, []).append(s)
        saved = {
            k: sum(prices[s][k] - read(k) for s in others) - write(k)
            for k, (_, *others) in where.items()
            if others and k not in kept
        }
        falling = sorted(saved, key=lambda k: -saved[k])
        best = next((k for k in falling if saved[k] > 0 and fits([*kept, k])), None)
        if best is None:
            return [k for k, keeper in kept.items() if any(k in p for p in prices[keeper + 1 :])]
        kept[best], *changed = where[best]


def _prices(
    roots: Sequence[K],
    arguments: Callable[[K], Iterable[K]],
    cost: Callable[[K], float],
    read: Callable[[K], float],
    kept: set[K],
) -> dict[K, float]:
    """For each value that a section needs, what it spends on it and on what only it needs.

    What only a value needs are those that every path from a root reaches through it: the values
    below it in the tree of dominators, which is built here with the users of a value before it.
    """

    def needed(k: K) -> Iterable[K]:
        return () if k in kept else arguments(k)

    order = _users_first(roots, needed)
    rank: dict[K | None, int] = {k: i for i, k in enumerate([None, *order])}
    above: dict[K | None, K | None] = dict.fromkeys(roots)  # in the tree; None above the highest

    def common(a: K | None, b: K | None) -> K | None:
        while a != b:
            if rank[a] > rank[b]:
                a = above[a]
            else:
                b = above[b]
        return a

    for k in order:
        for n in needed(k):
            above[n] = common(above[n], k) if n in above else k
    prices = {k: read(k) if k in kept else cost(k) for k in order}
    for k in reversed(order):
        user = above[k]
        if user is not None:
            prices[user] += prices[k]
    return prices


def _users_first(roots: Iterable[K], arguments: Callable[[K], Iterable[K]]) -> list[K]:
    """All that the roots need, each value after those that it is an argument of."""
    order: list[K] = []
    entered: set[K] = set()
    stack = [(k, False) for k in roots]
    while stack:
        k, left = stack.pop()
        if left:
            order.append(k)
        elif k not in entered:
            entered.add(k)
            stack.append((k, True))
            stack += [(n, False) for n in arguments(k)]
    order.reverse()
    return order
