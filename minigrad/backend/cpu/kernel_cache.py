"""Compiled kernels on disk, shared by processes and kept between them.

An entry is two files: its source, `<entry>.py`, which tracebacks and debuggers show, and its object
code, `<entry>.o`, behind a digest, so that a damaged one counts as missing. Whoever compiles an
entry holds a lock on its source file meanwhile; the lock ends with the process. The directory's
name carries a digest of this package's own sources and of the versions and CPU involved. Cached
kernels are code: a directory that somebody else could write to is refused.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding
import numba

from minigrad.config import config
from minigrad.errors import CacheWarning

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
        _write(folder / f"{entry}.o", hashlib.sha256(code).digest() + code)


def store_source(entry: str, text: str) -> None:
    """Keep the source of an entry, unless it is there."""
    path = source_path(entry)
    content = text.encode()
    if path is not None and not (path.exists() and path.read_bytes() == content):
        _write(path, content)


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


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        _disable(f"cannot write {path} ({error.strerror})")


_disabled: list[str] = []  # why there is no directory


def _disable(reason: str) -> None:
    if not _disabled:
        warnings.warn(
            f"kernel cache: {reason}; kernels are compiled anew in every process. "
            "Set MINIGRAD_CACHE_DIR to a private, writable directory.",
            CacheWarning,
            stacklevel=2,
        )
    _disabled.append(reason)


def directory() -> Path | None:
    """Where kernels are kept, or None (after one warning) when no safe place is writable."""
    return None if _disabled else _usable_directory()


@cache
def _usable_directory() -> Path | None:
    base = Path(config.cache_dir or _default_base())
    folder = base / f"cpu-{_fingerprint()}"
    try:
        for place in (*reversed(folder.parents), folder):  # `parents=True` would ignore the mode
            if not place.exists():
                place.mkdir(mode=0o700, exist_ok=True)
        problem = _unsafe(folder)
        if problem is None:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        problem = f"{folder} is not writable ({error.strerror})"
    if problem is None:
        return folder
    _disable(problem)
    return None


def _unsafe(folder: Path) -> str | None:
    """Why a directory must not be trusted: it, or one above it, is somebody else's to write."""
    if not hasattr(os, "getuid"):  # Windows: the profile directory is private by default
        return None
    for place in (folder, *folder.resolve().parents):
        info = place.stat()
        if place in (folder, folder.parent) and info.st_uid != os.getuid():
            return f"{place} belongs to another user, and cached kernels are code"
        sticky = info.st_mode & stat.S_ISVTX  # in /tmp others cannot replace what is ours
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"{place} can be written by other users, and cached kernels are code"
        if place in (folder, folder.parent) and info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{place} can be written by other users, and cached kernels are code"
    return None


def _default_base() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "minigrad"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for part in (
        numba.__version__,
        llvmlite.__version__,
        platform.python_version(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    ):
        digest.update(part.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
