"""Memory that crosses between libraries, kept until no stream uses it any more.

[Note: loans] Libraries free memory when the host has no more use for it, and reuse it in the order
of their own stream. Another library's stream may still be at work on it then. So what we borrowed
is kept until our stream is past the point at which we let it go; and what we lent is used again
after our stream has waited for the others. For these the legacy default stream stands in, behind
which CUDA lines up all but the streams made as non-blocking. The consumer's own stream would be
exact, but may not exist any more.

Owners go on any thread, even while a graph is captured, when nothing but its launches may reach the
stream. So they are only noted there, and `settle` is called where memory is asked for.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Any

LEGACY_STREAM = 1  # CUDA's handle of the legacy default stream, in DLPack, too


class Loans:
    """What one GPU's runtime has lent and borrowed. Its host never waits here."""

    def __init__(self, runtime: Any):
        self._runtime = runtime
        self._borrowed: deque[object] = deque()  # owners of what we have no more use for
        self._returned: deque[object] = deque()  # memory of ours that others have given back
        self._leaving: deque[tuple[Any, list[object]]] = deque()  # (event, owners), oldest first
        self.paused = Lock()  # held while nothing may reach the stream

    def keep(self, owner: object) -> None:
        """Let go of `owner` when all that was launched up to now has finished. On any thread."""
        self._borrowed.append(owner)

    def take_back(self, memory: object) -> None:
        """Let go of what another library has used, for what is launched later. On any thread."""
        self._returned.append(memory)

    def settle(self) -> None:
        """Let go of what no stream uses any more."""
        if not (self._borrowed or self._returned or self._leaving):
            return
        if not self.paused.acquire(blocking=False):
            return
        try:
            returned = _all_of(self._returned)
            if returned:
                self._runtime.wait_for_stream(LEGACY_STREAM)
            borrowed = _all_of(self._borrowed)
            if borrowed:
                self._leaving.append((self._runtime.record(), borrowed))
            while self._leaving and self._leaving[0][0].done:
                self._leaving.popleft()
        finally:
            self.paused.release()


def _all_of(queue: deque[object]) -> list[object]:
    """What a queue holds, taken out. It may grow meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]
