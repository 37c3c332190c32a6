"""What costs, tile sizes and block sizes are derived from: this machine's vectors and caches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding

from minigrad.config import config

LINE = 64  # bytes of a cache line


@cache
def vector_bytes() -> int:
    """Bytes of the vectors that kernels compute on: the widest of the machine, or what is set."""
    features = llvmlite.binding.get_host_cpu_features()
    widest = 64 if features.get("avx512f") else 32 if features.get("avx2") else 16
    return config.vector_bytes or widest


@cache
def features() -> str:
    """The machine's features for LLVM, without those of vectors wider than kernels compute on."""
    host = llvmlite.binding.get_host_cpu_features()
    wider = [name for name, nbytes in (("avx", 16), ("avx512f", 32)) if vector_bytes() <= nbytes]
    lacking = [f"-{name}" for name in wider if host.get(name)]  # and all that builds on it
    return ",".join([host.flatten(), *lacking])


def vector_registers() -> int:
    """Vector registers of the machine: the bound on a tile's accumulators plus its operands."""
    return 32 if vector_bytes() == 64 else 16


@dataclass(frozen=True)
class Cache:
    """A set-associative cache of one core."""

    nbytes: int
    ways: int

    @property
    def sets(self) -> int:
        """How many sets there are: a line's address modulo this names its set."""
        return max(1, self.nbytes // (self.ways * LINE))


def first_cache() -> Cache:
    """The first-level data cache of a core; a small usual one where the system does not tell."""
    return _cache("1", Cache(32 << 10, 8))


def second_cache() -> Cache:
    """The second-level cache of a core; a small usual one where the system does not tell."""
    return _cache("2", Cache(512 << 10, 8))


@cache
def _cache(wanted: str, usual: Cache) -> Cache:
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind, size, ways = (
                (folder / name).read_text().strip()
                for name in ("level", "type", "size", "ways_of_associativity")
            )
        except OSError:
            continue
        is_wanted = level == wanted and kind in ("Data", "Unified")
        if is_wanted and size.endswith("K") and size[:-1].isdigit() and ways.isdigit():
            return Cache(int(size[:-1]) << 10, max(1, int(ways)))
    return usual
