"""The sizes of this machine's caches, which cost models and tile sizes are derived from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Cache:
    """A set-associative cache of one core."""

    nbytes: int
    ways: int

    @property
    def sets(self) -> int:
        """How many sets there are: a line's address modulo this names its set."""
        return max(1, self.nbytes // (self.ways * LINE))


@cache
def second_cache() -> Cache:
    """The second-level cache of a core; a small usual one where the system does not tell."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size, ways = (
                (folder / name).read_text().strip()
                for name in ("level", "size", "ways_of_associativity")
            )
        except OSError:
            continue
        if level == "2" and size.endswith("K") and size[:-1].isdigit() and ways.isdigit():
            return Cache(int(size[:-1]) << 10, max(1, int(ways)))
    return Cache(512 << 10, 8)
