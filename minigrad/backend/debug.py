"""What MINIGRAD_DEBUG prints of kernels."""

from __future__ import annotations

import sys
import time

from minigrad.config import config


def announce(how: str, name: str, source: str, started: float) -> None:
    """Say that a kernel is ready, and how; `started` is a time of `time.perf_counter`."""
    if config.debug >= 1:
        milliseconds = 1e3 * (time.perf_counter() - started)
        print(f"minigrad: {how} {name} in {milliseconds:.0f} ms", file=sys.stderr)
    if config.debug >= 4:
        print(source, file=sys.stderr)
