"""Where compiled kernels are kept between processes.

Cached kernels are code: a directory that somebody else could write to is refused.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from functools import cache
from pathlib import Path

from minigrad.config import config
from minigrad.errors import CacheWarning

_disabled: list[str] = []  # the reasons why the cache is not used


def private_directory(name: str) -> Path | None:
    """The cache's folder `name`, made if need be; None (after one warning) if none is safe."""
    return None if _disabled else _usable_directory(name)


def write(path: Path, content: bytes) -> None:
    """Write a file of the cache whole or not at all. A full disk ends its use."""
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
        disable(f"cannot write {path} ({error.strerror})")


def disable(reason: str) -> None:
    """Keep no kernels from now on. Warns the first time."""
    if not _disabled:
        warnings.warn(
            f"kernel cache: {reason}; kernels are compiled anew in every process. "
            "Set MINIGRAD_CACHE_DIR to a private, writable directory.",
            CacheWarning,
            stacklevel=2,
        )
    _disabled.append(reason)


@cache
def _usable_directory(name: str) -> Path | None:
    folder = Path(config.cache_dir or _default_base()) / name
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
    disable(problem)
    return None


def _unsafe(folder: Path) -> str | None:
    """Why a directory must not be trusted: it, or one above it, is somebody else's to write."""
    if not hasattr(os, "getuid"):  # Windows: the profile directory is private by default
        return None
    for place in (folder, *folder.resolve().parents):
        info, is_ours = place.stat(), place in (folder, folder.parent)
        if is_ours and info.st_uid != os.getuid():
            return f"{place} belongs to another user, and cached kernels are code"
        sticky = info.st_mode & stat.S_ISVTX  # in /tmp others cannot replace what is ours
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (is_ours or not sticky):
            return f"{place} can be written by other users, and cached kernels are code"
    return None


def _default_base() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "minigrad"
