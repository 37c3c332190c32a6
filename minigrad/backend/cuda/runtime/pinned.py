"""Page-locked host memory for copies to the GPU, used again when the copy has happened.

The GPU reads such memory by itself while the host goes on. So a block that is free for the host may
still be read: it waits here together with the event that comes after its copy. CuPy's own pool of
pinned memory does not know of that, so a block never goes back to it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

LEAST = 1 << 16  # bytes of a block
MOST_WAITING = 1 << 28  # bytes of blocks of one size whose copies have not happened yet


class PinnedPool:
    """Blocks by size, a power of two, those of the earliest copies first.

    The queues are deques, whose `popleft` and `append` are single steps: any thread may take and
    give.

    Args:
        make: gives a new block of so many bytes, with `view`, `address` and `nbytes`.
    """

    def __init__(self, make: Callable[[int], Any]):
        self._make = make
        self._waiting: defaultdict[int, deque[tuple[Any, Any]]] = defaultdict(deque)

    def take(self, nbytes: int) -> Any:
        """A block of at least `nbytes` that no copy reads any more.

        The host waits here only when MOST_WAITING bytes are on their way: a host that is so far
        ahead of the GPU loses nothing, and its memory must end somewhere.
        """
        size = max(LEAST, 1 << (nbytes - 1).bit_length())
        queue = self._waiting[size]
        try:
            event, block = queue.popleft()
        except IndexError:
            return self._make(size)
        if not event.done:
            if (len(queue) + 1) * size < MOST_WAITING:
                queue.appendleft((event, block))
                return self._make(size)
            event.synchronize()
        return block

    def give(self, block: Any, event: Any) -> None:
        """Take back a block that is free after the event."""
        self._waiting[block.nbytes].append((event, block))
