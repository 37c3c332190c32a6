"""What people read: MINIGRAD_DEBUG's lines about kernels, and parts of error messages."""

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


def for_purpose(purpose: str) -> str:
    """What memory was asked for, as a part of a sentence."""
    return f" for {purpose}" if purpose else ""
