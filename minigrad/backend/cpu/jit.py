"""From kernel source text to a native address, kept on disk between processes.

Numba caches a function only when it comes from a file, so each kernel's source is written to the
cache directory as a module (which tracebacks and debuggers can show, too). The directory's name
carries a digest of this package's own sources and of the versions and CPU involved, since Numba
looks only at the one file. Cached kernels are code: a directory that somebody else could write to
is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
import pickle
import platform
import stat
import sys
import tempfile
import time
import types as python_types
import warnings
from functools import cache
from pathlib import Path
from typing import Any, cast

import llvmlite.binding
import numba
from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile

from minigrad.config import config
from minigrad.errors import CacheWarning

SIGNATURE = types.void(types.intp, types.intp, types.intp)
# No `nnan` and no `ninf`: NaN and Inf keep their meaning. `reassoc` is on the additions of
# reductions only (`accumulate`): elsewhere LLVM would turn (x - k) - mean into x - (k + mean).
FASTMATH = {"contract", "nsz", "arcp"}

HEADER = """\
import math
from numba import njit, types
from minigrad.backend.cpu.elementary import *
from minigrad.backend.cpu.elementary_tails import *
from minigrad.backend.cpu.intrinsics import *
from minigrad.backend.cpu.jit import compile_now, kernel_options

OPTIONS = kernel_options()
"""

compile_count = 0  # kernels compiled (not loaded from disk) in this process; tests read it


def kernel_options() -> dict[str, Any]:
    """The options every kernel is compiled with."""
    return {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": FASTMATH,
        "boundscheck": False,
    }


class _CheckedFiles(IndexDataCacheFile):
    """Numba's files on disk, with a digest: a damaged one counts as missing.

    Numba's own raises whatever unpickling torn bytes happens to raise, or runs torn code.
    """

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except Exception:  # there is no telling what damaged bytes unpickle to
            return {}

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        content = memoryview(Path(self._data_path(name)).read_bytes())
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise OSError("damaged")  # Numba then compiles
        return pickle.loads(content[32:])


class _KernelCache(FunctionCache):
    """Numba's cache of a function, which neither a damaged file nor a full disk stops."""

    def __init__(self, function: Any):
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(f"cannot write to {self._cache_path} ({error.strerror})")
            _disable()


def compile_now(signature: Any, **options: Any) -> Any:
    """The decorator that compiles a function for one signature, or loads it from the cache."""

    def decorated(function: Any) -> Any:
        dispatcher = cast("Any", njit(**kernel_options() | options)(function))
        if cache_directory() is not None and os.path.exists(function.__code__.co_filename):
            dispatcher._cache = _KernelCache(function)
        dispatcher.compile(signature)
        return dispatcher

    return decorated


class Kernel:
    """A compiled kernel: `void(table, begin, end)` at `address`."""

    def __init__(self, name: str, source: str, dispatcher: Any):
        self.name = name
        self.source = source
        compiled = dispatcher.overloads[SIGNATURE.args]
        self.address: int = compiled.library.get_pointer_to_function(
            compiled.fndesc.llvm_cfunc_wrapper_name
        )
        self._keep = dispatcher

    def __repr__(self) -> str:
        return f"Kernel({self.name})"


_kernels: dict[tuple[str, str], Kernel] = {}


def compile_kernel(name: str, source: str) -> Kernel:
    """Compile `source`, which defines `kernel(table, begin, end)`, or take it from the cache.

    The source starts after HEADER: `njit`, `types` and every intrinsic are in scope, and so is
    `OPTIONS`, for the `@njit(..., **OPTIONS)` of its inner functions. `kernel` itself is left
    undecorated.
    """
    found = _kernels.get((name, source))
    if found is None:
        found = _kernels[name, source] = _compile(name, source)
    return found


def _compile(name: str, source: str) -> Kernel:
    global compile_count
    started = time.perf_counter()
    text = HEADER + source
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", numba.NumbaWarning)
        module = _load_module(f"{name}_{digest}", text, cache_directory())
        dispatcher = compile_now(SIGNATURE)(module.kernel)
    from_disk = bool(dispatcher.stats.cache_hits)
    compile_count += not from_disk
    if config.debug >= 1:
        how = "loaded" if from_disk else "compiled"
        milliseconds = 1e3 * (time.perf_counter() - started)
        print(f"minigrad: {how} {name} in {milliseconds:.0f} ms", file=sys.stderr)
    if config.debug >= 4:
        print(source, file=sys.stderr)
    return Kernel(name, source, dispatcher)


def _load_module(name: str, text: str, folder: Path | None) -> python_types.ModuleType:
    if folder is not None:
        path = folder / f"{name}.py"
        try:
            if not path.exists() or path.read_text() != text:
                _write_atomically(path, text)
        except OSError as error:
            _warn_once(f"cannot write {path} ({error.strerror})")
            _disable()
        else:
            spec = importlib.util.spec_from_file_location(f"minigrad_kernel_{name}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module.__name__] = module  # Numba's cache finds globals through it
            spec.loader.exec_module(module)
            return module
    module = python_types.ModuleType(f"minigrad_kernel_{name}")
    filename = f"<minigrad kernel {name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    module.__file__ = filename
    exec(compile(text, filename, "exec"), module.__dict__)
    return module


def _write_atomically(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_disabled: list[bool] = []


def _warn_once(reason: str) -> None:
    if not _disabled:
        warnings.warn(
            f"kernel cache: {reason}; kernels are compiled anew in every process. "
            "Set MINIGRAD_CACHE_DIR to a private, writable directory.",
            CacheWarning,
            stacklevel=2,
        )


def _disable() -> None:
    _disabled.append(True)
    cache_directory.cache_clear()


@cache
def cache_directory() -> Path | None:
    """Where kernels are kept, or None (after one warning) when no safe place is writable."""
    if _disabled:
        return None
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
    if problem is not None:
        _warn_once(problem)
        _disabled.append(True)
        return None
    return folder


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
        platform.python_version(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    ):
        digest.update(part.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
