"""Other processes that compile a share of the kernels, and what one of them runs.

A helper gets names of cache entries on its standard input and sees to it that each has its code;
which of the processes compiles an entry, the entry's lock decides. Nothing depends on a helper:
what it has not compiled when it dies, somebody else does. It is a new interpreter, not a fork,
which would copy threads in the middle of their work, nor `multiprocessing`'s, which would run the
user's program again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minigrad.backend.cpu import machine
from minigrad.backend.cpu.runtime import driver, kernel_cache, native

_ENTRIES = 4  # for each helper: it takes about as long to start as three take to compile
most: int | None = None  # helpers at a time; None: one for every thread but this one


def object_code(entry: str, text: str, wait: bool = True) -> tuple[bytes | None, bool]:
    """The code of the cache's entry, compiled if need be, and whether it was compiled here.

    None, and only without `wait`, if another process compiles it now.
    """
    with kernel_cache.locked(entry, wait) as ours:
        if not ours:
            return None, False
        code = kernel_cache.load(entry)
        if code is not None:
            return code, False
        filename = str(kernel_cache.source_path(entry) or f"<minigrad kernel {entry}>")
        code = native.object_code(text, filename, entry)
        kernel_cache.store(entry, code)
        return code, True


@contextmanager
def at_work(entries: Sequence[str]) -> Iterator[None]:
    """While the body runs, have helpers compile entries whose sources are kept."""
    limit = driver.num_threads() - 1 if most is None else most
    processes = _start(min(limit, len(entries) // _ENTRIES), entries)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(count: int, entries: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    folder = kernel_cache.directory()
    # Where Python is built into another program, that program must not be started again.
    is_python = Path(sys.executable or "").name.startswith("python")
    if folder is None or not is_python or hasattr(sys, "frozen"):
        return []
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    settings = {
        "MINIGRAD_CACHE_DIR": str(folder.parent),
        "MINIGRAD_VECTOR_BYTES": str(machine.vector_bytes()),
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                env={**os.environ, **settings},
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            processes.append(process)
            assert process.stdin is not None
            with process.stdin as names:
                names.write("\n".join(entries).encode())
    except OSError:  # no memory or processes left, or it has died: the others do its share
        pass
    return processes


def main() -> None:
    """Compile what standard input names, skipping what others compile now."""
    for entry in sys.stdin.read().split():
        path = kernel_cache.source_path(entry)
        if path is not None:
            object_code(entry, path.read_text(), wait=False)
