"""Grouping stored nodes into kernels.

Nodes join one loop nest when they range over the same space with the same kept axes, each reads
what the nest itself makes only at the point where it is made, and no other kernel would have to run
both before and after. So BatchNorm and its ReLU become one nest of three passes over a
channel's slice, which stays in cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from minigrad.backend.loopnest import independent_points
from minigrad.compiler.layout import Index, identity_index, source_index
from minigrad.compiler.materialize import Placement
from minigrad.graph import Node, Shape

MOST_ROOTS = 8  # nodes that one kernel stores
# Below this many points a nest that runs on one core is no loss.
SMALL = 1 << 14
# How many of the last kernels a node may join because both read the same array. Beside these it may
# join any kernel that makes what it reads.
LOOK_BACK = 12


@dataclass
class Group:
    """The stored nodes one kernel computes. `space` is None for a node that is not a loop nest."""

    roots: list[Node]
    space: Shape | None
    kept: tuple[bool, ...] | None = None  # None while nothing is reduced
    before: int = 0  # bit mask of the groups that must run earlier, transitively
    reads: set[int] = field(default_factory=set)


def _space(node: Node) -> Shape | None:
    if node.op.kind == "reduce":
        return node.inputs[0].shape
    return node.shape if node.op.kind in ("map", "view", "leaf", "identity") else None


def _kept(node: Node) -> tuple[bool, ...] | None:
    if node.op.kind != "reduce":
        return None
    axes = node.attrs["axes"]
    return tuple(a not in axes for a in range(node.inputs[0].ndim))


def fuse(placement: Placement, threads: int) -> list[Group]:
    """The kernels of a plan in an order they can run in."""
    groups: list[Group] = []
    home: dict[int, int] = {}
    sizes = {n.id: n.size for n in (*placement.inputs, *placement.placed)}
    for node in sorted(placement.placed, key=lambda n: n.id):
        reads = placement.definition_sources(node)
        producers = {home[i] for i in reads if i in home}
        chosen = _choose(node, reads, producers, groups, placement, sizes, threads)
        if chosen is None:
            chosen = len(groups)
            groups.append(Group([], _space(node)))
        group = groups[chosen]
        group.roots.append(node)
        group.kept = group.kept or _kept(node)
        group.reads |= reads
        home[node.id] = chosen
        _run_after(groups, chosen, producers - {chosen})
    return _ordered(groups)


def _run_after(groups: list[Group], chosen: int, producers: set[int]) -> None:
    mask = groups[chosen].before
    for p in producers:
        mask |= groups[p].before | 1 << p
    if mask != groups[chosen].before:
        groups[chosen].before = mask
        for g in groups:
            if g.before >> chosen & 1:
                g.before |= mask


def _choose(node, reads, producers, groups, placement, sizes, threads) -> int | None:
    """The group to join: the one that shares most arrays with the node, of equals a producer."""
    space, kept = _space(node), _kept(node)
    if space is None:
        return None
    recent = set(range(max(0, len(groups) - LOOK_BACK), len(groups)))
    found: list[tuple[int, bool, int]] = []
    for k in producers | recent:
        group = groups[k]
        if group.space != space or len(group.roots) >= MOST_ROOTS:
            continue
        if kept is not None and group.kept is not None and kept != group.kept:
            continue
        if any(groups[p].before >> k & 1 for p in producers if p != k):
            continue  # another input can only be computed after this group
        shared = _shared_arrays(group, reads, prod(space), sizes)
        if k not in producers and not shared:
            continue
        if not _keeps_cores_busy(group, group.kept or kept, space, reads, threads):
            continue
        inside = {r.id: identity_index(r.shape) for r in group.roots}
        if reads_in_place(node, inside, placement, space):
            found.append((shared, k in producers, k))
    return max(found)[2] if found else None


def _shared_arrays(group: Group, reads: set[int], size: int, sizes: dict[int, int]) -> int:
    """How many arrays of this size both read, or one makes for the other."""
    seen = group.reads | {r.id for r in group.roots}
    return sum(sizes[i] == size for i in seen & reads)


def _keeps_cores_busy(group: Group, kept, space: Shape, reads: set[int], threads: int) -> bool:
    """Whether the nest has work for most cores, or can be cut into parts that have.

    Passes over a slice that stays in the cache move about half the bytes that separate nests do,
    so they are worth it while more than half of the cores are busy. A nest of one pass can be cut.
    """
    if kept is None or prod(space) <= SMALL:
        return True
    outer = independent_points(space, kept)
    if 2 * outer > threads * -(-outer // threads):
        return True
    return not reads & {r.id for r in group.roots if r.op.kind == "reduce"}


def reads_in_place(
    root: Node, inside: dict[int, Index], placement: Placement, space: Shape
) -> bool:
    """Whether evaluating `root` touches the nest's own values only where they are made."""
    rank = len(space)
    here = identity_index(space)
    if root.op.kind == "view":
        moved = source_index(root, here, rank)
        if moved is None:
            return False
        here = moved
    stack = [(n, here) for n in root.inputs]
    seen = set()
    while stack:
        node, index = stack.pop()
        if (node.id, index) in seen:
            continue
        seen.add((node.id, index))
        if node.id in inside:
            if index != inside[node.id]:
                return False
            continue
        if placement.locate(node) is not None:
            if placement.base(node).id not in inside:
                continue
            if node.op.kind not in ("view", "identity"):
                return False
        if node.op.kind == "view":
            moved = source_index(node, index, rank)
            if moved is None:
                return False
            stack.append((node.inputs[0], moved))
        elif node.op.kind == "identity":
            stack.append((node.inputs[0], index))
        else:
            stack.extend((n, index) for n in node.inputs)
    return True


def _ordered(groups: list[Group]) -> list[Group]:
    """Groups after all that must run before them; otherwise in the order they were made."""
    result: list[Group] = []
    done = 0
    waiting = list(range(len(groups)))
    while waiting:
        ready = [k for k in waiting if not groups[k].before & ~done]
        assert ready, "cyclic kernel groups"
        k = ready[0]
        result.append(groups[k])
        done |= 1 << k
        waiting.remove(k)
    return result
