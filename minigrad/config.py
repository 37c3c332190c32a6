"""Every environment flag, typed, with its default. An unknown MINIGRAD_* name is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass

STRICT = 2  # the level of `rewrite` that keeps every NaN
_NAMES = (
    "DEBUG", "CHECK", "DEVICE", "CACHE_DIR", "NUM_THREADS", "VECTOR_BYTES", "REWRITE",
    "MATMUL_PRECISION", "DATA",
)  # fmt: skip


@dataclass
class Config:
    """The flags of this process.

    MINIGRAD_DEBUG: 0 silent, 1 compile events, 4 generated source, too.
    MINIGRAD_CHECK: 1 stops at the first NaN or Inf, naming the op and the line that made it.
    MINIGRAD_DEVICE: the default device.
    MINIGRAD_CACHE_DIR: where compiled kernels are kept (default: the user's cache directory).
    MINIGRAD_NUM_THREADS: threads of the CPU backend (default: the cores this process may use).
    MINIGRAD_VECTOR_BYTES: of the vectors in the CPU's kernels, 16, 32 or 64 (default: the widest of
        the processor). It is for tests: kernels for another processor run on this one, slower.
    MINIGRAD_REWRITE: algebraic rewriting: 0 none, 1 all rules, 2 strict (none that hide a NaN).
    MINIGRAD_MATMUL_PRECISION: of float32 matrix products and convolutions on a GPU, see
        `minigrad.set_float32_matmul_precision`; the CPU always computes them in full float32.
    MINIGRAD_DATA: a folder with the full data sets, for the tests that want them.
    """

    debug: int = 0
    check: bool = False
    device: str | None = None
    cache_dir: str | None = None
    num_threads: int | None = None
    vector_bytes: int | None = None
    rewrite: int = 1
    matmul_precision: str = "highest"
    data: str | None = None

    def allows_tf32(self) -> bool:
        """Whether a GPU may multiply float32 as TF32."""
        return self.matmul_precision != "highest"


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.lstrip("-").isdigit():
        raise ValueError(f"{name}: expected an integer, got {text!r}.")
    return int(text)


def _vector_bytes(name: str) -> int | None:
    nbytes = _integer(name, 0) or None
    if nbytes not in (None, 16, 32, 64):
        raise ValueError(f"{name}: expected 16, 32 or 64 bytes, got {nbytes}.")
    return nbytes


def matmul_precision(caller: str, value: str) -> str:
    """A precision of float32 matrix products, checked."""
    if value not in ("highest", "high", "medium"):
        raise ValueError(f"{caller}: expected 'highest', 'high' or 'medium', got {value!r}.")
    return value


def read_environment() -> Config:
    """The configuration the environment asks for."""
    for name in os.environ:
        if name.startswith("MINIGRAD_") and name.removeprefix("MINIGRAD_") not in _NAMES:
            known = ", ".join("MINIGRAD_" + n for n in _NAMES)
            raise ValueError(f"environment variable {name}: expected one of {known}.")
    return Config(
        debug=_integer("MINIGRAD_DEBUG", 0),
        check=bool(_integer("MINIGRAD_CHECK", 0)),
        device=os.environ.get("MINIGRAD_DEVICE") or None,
        cache_dir=os.environ.get("MINIGRAD_CACHE_DIR") or None,
        num_threads=_integer("MINIGRAD_NUM_THREADS", 0) or None,
        vector_bytes=_vector_bytes("MINIGRAD_VECTOR_BYTES"),
        rewrite=_integer("MINIGRAD_REWRITE", 1),
        matmul_precision=matmul_precision(
            "MINIGRAD_MATMUL_PRECISION", os.environ.get("MINIGRAD_MATMUL_PRECISION") or "highest"
        ),
        data=os.environ.get("MINIGRAD_DATA") or None,
    )


config = read_environment()
