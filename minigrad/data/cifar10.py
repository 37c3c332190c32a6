"""CIFAR-10 from its official binary files, unpacked or inside their archive."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from minigrad.data.dataset import ImageDataset, shaped
from minigrad.data.download import fetch
from minigrad.errors import DataError

__all__ = ["CIFAR10"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
ARCHIVE = "cifar-10-binary.tar.gz"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORDS = 10_000  # images per file
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class CIFAR10(ImageDataset):
    """CIFAR-10: 50 000 training or 10 000 test images, 3 x 32 x 32 bytes, ten classes.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    Channel means of the training set, in 0..1: 0.4914, 0.4822, 0.4465; standard deviations:
    0.2470, 0.2435, 0.2616.

    Args:
        root: a folder with the .bin files, or with `cifar-10-batches-bin/`, or with
            `cifar-10-binary.tar.gz` (read in place, nothing is unpacked to disk).
        train: the five training files, or the test file.
        download: fetch the archive (162 MiB) into root when nothing is there.

    Raises:
        FileNotFoundError: none of them is in root.
        DataError: a file is truncated, corrupted or has a label above 9.
    """

    def __init__(self, root: str | os.PathLike[str], train: bool = True, download: bool = False):
        names = TRAIN_FILES if train else TEST_FILES
        count = RECORDS * len(names)
        pixels, labels = bytearray(count * PIXELS), bytearray(count)
        for where, position, data in _read(Path(root), names, download):
            _unpack(where, data, position * RECORDS, pixels, labels)
        super().__init__(shaped(pixels, "B", (count, *SHAPE)), memoryview(labels), classes=CLASSES)


def _read(root: Path, names: tuple[str, ...], download: bool) -> Iterator[tuple[str, int, bytes]]:
    """Each file's name for messages, its position in `names`, and its content."""
    for folder in (root / FOLDER, root):
        if any((folder / name).exists() for name in names):
            yield from _read_folder(folder, names)
            return
    archive = root / ARCHIVE
    if download:
        fetch([URL], archive, md5=MD5)
    if not archive.exists():
        raise FileNotFoundError(
            f"CIFAR10: expected {names[0]} in {root / FOLDER} or {root}, or the archive {archive}, "
            f"found none of them. Pass download=True, or get it from {URL}."
        )
    yield from _read_archive(archive, names)


def _read_folder(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, int, bytes]]:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"CIFAR10: expected {', '.join(names)} in {folder}, {', '.join(missing)} is missing. "
            f"Unpack {ARCHIVE} again, or get it from {URL}."
        )
    for position, name in enumerate(names):
        path = folder / name
        _check_size(str(path), path.stat().st_size)
        yield str(path), position, path.read_bytes()


def _read_archive(archive: Path, names: tuple[str, ...]) -> Iterator[tuple[str, int, bytes]]:
    """Stream the wanted members of the archive.

    Only regular files with a wanted name and size are looked at, and nothing is written, so no
    path, link or device in a hostile archive has any effect.
    """
    import gzip
    import tarfile

    wanted = set(names)
    try:
        # Not tarfile's own "r|gz", which skips gzip's checksum. It comes last, so read to the end.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name not in wanted or not member.isfile():
                    continue
                where = f"{archive} ({member.name})"
                _check_size(where, member.size)
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                _check_size(where, len(data))
                yield where, names.index(name), data
                wanted.remove(name)
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's
        raise DataError(
            f"{archive}: expected the archive with MD5 {MD5}, got a damaged one of "
            f"{archive.stat().st_size} bytes ({error}). Delete it and download it again."
        ) from error
    if wanted:
        raise DataError(
            f"{archive}: expected a file {', '.join(sorted(wanted))} in the archive, found none. "
            f"Delete it and download it again from {URL}."
        )


def _check_size(caller: str, size: int) -> None:
    expected = RECORDS * (1 + PIXELS)
    if size != expected:
        raise DataError(
            f"{caller}: expected {expected} bytes ({RECORDS} records of {1 + PIXELS}), got {size}. "
            "The file is truncated or not CIFAR-10's binary version; download it again."
        )


def _unpack(caller: str, data: bytes, start: int, pixels: bytearray, labels: bytearray) -> None:
    """Split records (label byte, then pixels) into the two blocks, from image `start` on."""
    record = 1 + PIXELS
    found = data[::record]
    if max(found) >= len(CLASSES):
        bad = next(i for i, label in enumerate(found) if label >= len(CLASSES))
        raise DataError(
            f"{caller}: expected labels 0..{len(CLASSES) - 1}, got {found[bad]} in record {bad}. "
            "The file is corrupted; download it again."
        )
    labels[start : start + RECORDS] = found
    source, target = memoryview(data), memoryview(pixels)
    for i in range(RECORDS):
        at = (start + i) * PIXELS
        target[at : at + PIXELS] = source[i * record + 1 : (i + 1) * record]
