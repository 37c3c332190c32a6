"""The kernel cache on disk: it may be missing, full, damaged or shared, and everything still works.

Each case is a process of its own, with one tiny graph.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("numba")

PROGRAM = """
import sys
import warnings

warnings.simplefilter("always")
{before}
import minigrad as mg
from minigrad.backend.cpu.runtime import compile_workers

at_work, compiled = compile_workers.at_work, 0

def counted(entries):
    global compiled
    compiled += len(entries)
    return at_work(entries)

compile_workers.at_work = counted
assert (mg.tensor([1.0, 2.0]) * 3).tolist() == [3, 6]
assert (mg.tensor([1.0, 2.0]).sum() + 1).item() == 4
print("compiled", compiled)
{after}
"""


def start(folder: Path | str, before: str = "", after: str = "") -> subprocess.Popen[str]:
    environment = dict(os.environ, MINIGRAD_CACHE_DIR=str(folder), MINIGRAD_DEVICE="cpu")
    environment.pop("NUMBA_CACHE_DIR", None)
    text = PROGRAM.format(before=textwrap.dedent(before), after=textwrap.dedent(after))
    return subprocess.Popen(
        [sys.executable, "-c", text], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Kernels compiled, and everything on stderr."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return int(out.split()[1]), err


def run(folder: Path | str, before: str = "", after: str = "") -> tuple[int, str]:
    return finish(start(folder, before, after))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the program has filled: copy it, do not change it."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    compiled, err = run(folder)
    assert compiled >= 3
    assert "CacheWarning" not in err
    return folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A filled cache of the test's own."""
    folder = tmp_path / "cache"
    shutil.copytree(filled, folder)
    return folder


def test_the_second_process_compiles_nothing(cache: Path):
    assert run(cache) == (0, "")


def test_the_folder_is_private(cache: Path):
    (place,) = cache.iterdir()
    assert place.name.startswith("cpu-")
    assert place.stat().st_mode & 0o777 == 0o700


def test_folders_on_the_way_are_private_whatever_the_umask(tmp_path: Path):
    """A group-writable one would be refused in the next process."""
    base = tmp_path / "new" / "base"
    _, err = run(base, before="import os; os.umask(0o002)")
    assert "CacheWarning" not in err
    assert base.stat().st_mode & 0o777 == 0o700
    assert base.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["source", "code", "both"])
@pytest.mark.parametrize("damage", ["torn", "zeros"])
def test_damaged_files_are_survived(cache: Path, place: str, damage: str):
    wanted = {"source": (".py",), "code": (".o",), "both": (".py", ".o")}[place]
    for path in cache.rglob("*"):
        if path.name.endswith(wanted):
            content = path.read_bytes()
            half = len(content) // 2
            # A torn write; and what a crash of the machine leaves: the length, without the data.
            path.write_bytes(content[:half] + (b"\0" * half if damage == "zeros" else b""))
    damaged = {path: path.read_bytes() for path in cache.rglob("*.py")}
    compiled, err = run(cache)
    assert err == ""
    if place == "source":
        assert compiled == 0
    else:
        assert compiled >= 3
        assert run(cache) == (0, "")  # it is repaired
    if place == "both":
        assert all(path.read_bytes() != content for path, content in damaged.items())


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("where", ["cache", "folder in it"])
def test_a_folder_that_others_can_write_to_is_refused(cache: Path, where: str):
    place = cache if where == "cache" else next(cache.iterdir())
    place.chmod(0o777)
    compiled, err = run(cache)
    assert compiled >= 3  # what is there was not loaded
    assert err.count("CacheWarning") == 1
    assert f"{place} can be written by other users, and cached kernels are code" in err
    assert "Set MINIGRAD_CACHE_DIR to a private, writable directory." in err


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    compiled, err = run(file / "cache")
    assert compiled >= 3
    assert err.count("CacheWarning") == 1
    assert "is not writable" in err


def test_a_full_disk_at_the_first_source(tmp_path: Path):
    full = """
    import errno, os
    replace = os.replace
    def refuse(source, target):
        if str(target).endswith(".py"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)
    os.replace = refuse
    """
    compiled, err = run(tmp_path / "cache", before=full)
    assert compiled >= 3
    assert err.count("CacheWarning") == 1
    assert "No space left on device" in err
    assert not list(tmp_path.rglob(".part-*"))


def test_a_full_disk_at_the_first_kernel(tmp_path: Path):
    full = """
    import errno, os
    replace = os.replace
    def refuse(source, target):
        if str(target).endswith(".o"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)
    os.replace = refuse
    """
    compiled, err = run(tmp_path / "cache", before=full)
    assert compiled >= 3
    assert err.count("CacheWarning") == 1
    assert "No space left on device" in err


def test_processes_that_compile_at_once(tmp_path: Path):
    processes = [start(tmp_path / "cache") for _ in range(2)]
    for process in processes:
        _, err = finish(process)
        assert err == ""
    assert run(tmp_path / "cache") == (0, "")


def test_a_parallel_kernel_from_the_cache(cache: Path):
    """Compiled code starts the threads, so loaded code must start them, too."""
    after = """
    n = 200_000
    x = mg.ones((2, n)) * mg.arange(n, dtype=mg.float32)
    assert (x + 1).sum(axis=0).max().item() == 2 * n
    """
    first, _ = run(cache, after=after)
    assert run(cache, after=after)[0] == first == 0


BACKEND = Path(__file__).parents[1] / "minigrad" / "backend" / "cpu"


def test_a_change_in_any_folder_is_another_digest(tmp_path: Path):
    from minigrad.backend.cpu.runtime.kernel_cache import sources_digest

    copy = tmp_path / "cpu"
    shutil.copytree(BACKEND, copy)
    seen = {sources_digest(BACKEND)}
    assert sources_digest(copy) in seen
    places = [copy, *(folder for folder in copy.iterdir() if (folder / "__init__.py").exists())]
    assert len(places) > 4
    for place in places:
        path = place / "__init__.py"
        path.write_text(path.read_text() + "\n")
        seen.add(sources_digest(copy))
    (copy / "vector" / "builder.py").rename(copy / "builder.py")
    seen.add(sources_digest(copy))
    assert len(seen) == len(places) + 2


def test_kernels_import_nothing_that_the_digest_leaves_out():
    imported = re.compile(r"from (minigrad[\w.]*) import")
    found = {
        name
        for path in BACKEND.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in imported.findall(node.value)
    }
    assert len(found) > 4
    for name in found:
        parts = name.split(".")
        assert parts[:3] == ["minigrad", "backend", "cpu"]
        place = BACKEND.joinpath(*parts[3:])
        assert place.is_dir() or place.with_suffix(".py").exists(), name
