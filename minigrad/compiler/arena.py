"""Places temporaries in one arena so that those which are never alive together share memory."""

from __future__ import annotations

from minigrad.backend.launch import Pointer, Program

ALIGNMENT = 64
SLACK = 1024  # readable bytes past every array's end, which vector kernels rely on


def lifetimes(program: Program) -> dict[int, tuple[int, int]]:
    """For each slot, the first and the last launch that uses it; a status lives throughout."""
    spans: dict[int, tuple[int, int]] = {}
    for i, launch in enumerate(program.launches):
        for word in launch.args:
            if isinstance(word, Pointer):
                spans[word.slot] = (spans.get(word.slot, (i, i))[0], i)
    for slot, _ in program.checks:  # cleared before the first launch, read after the last
        spans[slot] = (0, len(program.launches))
    return spans


def place(sizes: dict[int, int], spans: dict[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    """Byte offsets of the slots in `sizes` (slot -> bytes), and the arena's size.

    Greedy by size: the largest first, each at the lowest offset free during its whole life.
    """
    offsets: dict[int, int] = {}
    arena = 0
    for slot in sorted(sizes, key=lambda s: -sizes[s]):
        if slot not in spans:
            continue
        first, last = spans[slot]
        taken = sorted(
            (offsets[s], offsets[s] + _padded(sizes[s]))
            for s in offsets
            if spans[s][0] <= last and first <= spans[s][1]
        )
        offset = 0
        for begin, end in taken:
            if offset + _padded(sizes[slot]) <= begin:
                break
            offset = max(offset, end)
        offsets[slot] = offset
        arena = max(arena, offset + _padded(sizes[slot]))
    return offsets, arena


def _padded(nbytes: int) -> int:
    return -(-(nbytes + SLACK) // ALIGNMENT) * ALIGNMENT
