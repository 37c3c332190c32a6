"""Compiled kernels on disk, shared by processes and kept between them.

An entry is two files: its source, `<entry>.py`, which tracebacks and debuggers show, and its object
code, `<entry>.o`, behind a digest, so that a damaged one counts as missing. Whoever compiles an
entry holds a lock on its source file meanwhile; the lock ends with the process.

An entry's name carries a digest of its source. What that does not say decides the directory's name:
the compiler, the processor, and all sources of this backend, from which kernels import functions.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding
import numba

from minigrad.backend.cache_directory import private_directory, write
from minigrad.backend.cpu import machine

try:
    import fcntl
except ImportError:  # Windows: two processes then compile the same kernel, and nothing worse
    fcntl = None

_DIGEST_BYTES = 32


def source_path(entry: str) -> Path | None:
    """Where an entry's source is kept; None without a directory."""
    folder = directory()
    return folder / f"{entry}.py" if folder else None


def load(entry: str) -> bytes | None:
    """The object code of an entry; None if there is none, or a damaged one."""
    folder = directory()
    if folder is None:
        return None
    try:
        content = (folder / f"{entry}.o").read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def store(entry: str, code: bytes) -> None:
    """Keep the object code of an entry. A full disk ends the use of the directory."""
    folder = directory()
    if folder is not None:
        write(folder / f"{entry}.o", hashlib.sha256(code).digest() + code)


def store_source(entry: str, text: str) -> None:
    """Keep the source of an entry, unless it is there."""
    path = source_path(entry)
    content = text.encode()
    if path is not None and not (path.exists() and path.read_bytes() == content):
        write(path, content)


@contextmanager
def locked(entry: str, wait: bool) -> Iterator[bool]:
    """Whether this process may compile an entry, which no other does meanwhile.

    False, and only without `wait`, if another process compiles it now.
    """
    path = source_path(entry)
    with ExitStack() as held:
        ours = True
        if fcntl and path:
            try:
                file = held.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                ours = False
            except OSError:  # no source, or a file system without locks
                pass
        yield ours


def directory() -> Path | None:
    """Where kernels are kept, or None (after one warning) when no safe place is writable."""
    return private_directory(f"cpu-{_fingerprint()}")


@cache
def _fingerprint() -> str:
    digest = hashlib.sha256(sources_digest(Path(__file__).parents[1]))
    for part in (
        numba.__version__,
        llvmlite.__version__,
        platform.python_version(),
        llvmlite.binding.get_host_cpu_name(),
        machine.features(),
        str(machine.vector_bytes()),
    ):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def sources_digest(folder: Path) -> bytes:
    """A digest of all Python files below a folder, and of where they lie in it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.digest()
