"""IDX files, and the data sets that come as such: MNIST, FashionMNIST, USPS."""

from __future__ import annotations

import os
import sys
import zlib
from array import array
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from minigrad.data.dataset import ImageDataset, converted, shaped
from minigrad.data.download import fetch
from minigrad.errors import DataError

__all__ = ["IDX", "MNIST", "FashionMNIST", "IDXDataset"]

_FORMATS = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_RATIO = 1032  # no deflate stream grows more than that


class IDX:
    """One array from an IDX file, plain or gzip-compressed (told apart by content, not by name).

    The format: two zero bytes, a type byte, the number of axes, each length as a big-endian uint32,
    then the values, big-endian and row by row.

    Attributes:
        data: memoryview of the values, native byte order, with the file's shape.
        shape: the file's axes.
        format: the values' buffer-protocol code: B, b, h, i, f or d.
        compressed: whether the file is gzip-compressed.

    Raises:
        DataError: a wrong magic number, an empty axis, or a size that the header contradicts.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with self.path.open("rb") as start:
            self.compressed = start.read(2) == _GZIP_MAGIC
        with self._open() as file:
            try:
                self.format, self.shape = self._read_header(file)
                values = self._read_values(file)
            except (EOFError, zlib.error, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's fault, not the file's
                raise DataError(
                    f"{self.path}: expected a whole gzip file, got a damaged one of "
                    f"{self.path.stat().st_size} bytes ({error}). Download it again."
                ) from error
        self.data = shaped(values, self.format, self.shape)

    def __repr__(self) -> str:
        return f"IDX({str(self.path)!r}: shape {self.shape}, format {self.format!r})"

    def _open(self) -> BinaryIO:
        if not self.compressed:
            return self.path.open("rb")
        import gzip

        return cast("BinaryIO", gzip.open(self.path))

    def _read_header(self, file: BinaryIO) -> tuple[str, tuple[int, ...]]:
        magic = file.read(4)
        if (
            len(magic) < 4
            or magic[:2] != b"\0\0"
            or magic[2] not in _FORMATS
            or not 0 < magic[3] <= 64
        ):
            raise DataError(
                f"{self.path}: expected an IDX magic number (00 00, a type, the number of axes), "
                f"got {magic.hex(' ') or 'an empty file'}. This is not an IDX file."
            )
        lengths = file.read(4 * magic[3])
        if len(lengths) < 4 * magic[3]:
            raise DataError(
                f"{self.path}: expected {4 + 4 * magic[3]} bytes of header, "
                f"got {4 + len(lengths)}. The file is truncated."
            )
        shape = tuple(int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4))
        if 0 in shape:
            raise DataError(f"{self.path}: expected no empty axis, got shape {shape}.")
        return _FORMATS[magic[2]], shape

    def _read_values(self, file: BinaryIO) -> bytearray | array[Any]:
        values = bytearray() if self.format == "B" else array(self.format)
        itemsize = getattr(values, "itemsize", 1)
        expected = prod(self.shape) * itemsize
        header = 4 + 4 * len(self.shape)
        # One byte more than expected tells a file that goes on. The limit keeps a lying header from
        # making read() reserve memory that the file cannot fill.
        stored = self.path.stat().st_size
        limit = stored * (_DEFLATE_RATIO if self.compressed else 1)
        raw = file.read(min(expected, limit) + 1)
        if len(raw) != expected:
            got = str(header + len(raw)) if self.compressed else str(stored)
            if self.compressed and len(raw) > expected:
                got = f"at least {got}"
            raise DataError(
                f"{self.path}: expected {header + expected} bytes (uncompressed) for shape "
                f"{self.shape}, got {got}. The file is truncated or corrupted; get it again."
            )
        if isinstance(values, bytearray):
            values += raw
            return values
        values.frombytes(raw)
        if sys.byteorder == "little":
            values.byteswap()
        return values


class IDXDataset(ImageDataset):
    """Images and labels from a pair of IDX files, for example USPS.

    Images (N, H, W) get a channel axis: (N, 1, H, W). Bytes are kept (DataLoader maps 255 to 1.0);
    other types become float32 and keep their values.

    Raises:
        DataError: the files do not fit together.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        *,
        classes: tuple[str, ...] = tuple("0123456789"),
    ):
        pixels, targets = IDX(images), IDX(labels)
        if len(pixels.shape) not in (3, 4):
            raise DataError(
                f"{pixels.path}: expected images (N, H, W) or (N, C, H, W), got {pixels.shape}."
            )
        if targets.format != "B" or targets.shape != pixels.shape[:1]:
            raise DataError(
                f"{targets.path}: expected {pixels.shape[0]} one-byte labels for the images in "
                f"{pixels.path}, got shape {targets.shape} of format {targets.format!r}."
            )
        highest = max(targets.data)
        if highest >= len(classes):
            raise DataError(
                f"{targets.path}: expected labels 0..{len(classes) - 1}, got {highest}. "
                "The file is corrupted, or has other classes."
            )
        data = pixels.data if pixels.format == "B" else converted(pixels.data, "f")
        n, *channels, height, width = pixels.shape
        super().__init__(
            shaped(data, data.format, (n, *(channels or [1]), height, width)),
            targets.data,
            classes=classes,
            full_scale=255.0 if data.format == "B" else 1.0,
        )


class MNIST(IDXDataset):
    """MNIST: 60 000 training or 10 000 test images of handwritten digits, 1 x 28 x 28 bytes.

    Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document
    recognition".

    Args:
        root: a folder with the four IDX files (plain or .gz), or with them in `MNIST/raw/`,
            `MNIST/` or `mnist/`.
        train: the training files, or the test files.
        download: fetch missing files into `root/MNIST/raw/`.

    Raises:
        FileNotFoundError: a file is in none of these folders.
        DataError: a file is truncated or corrupted, or does not fit the other.
    """

    folders: ClassVar[tuple[str, ...]] = ("MNIST/raw", "", "MNIST", "mnist")
    mirrors: ClassVar[tuple[str, ...]] = ("https://ossci-datasets.s3.amazonaws.com/mnist/",)
    names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    }

    def __init__(self, root: str | os.PathLike[str], train: bool = True, download: bool = False):
        part = "train" if train else "t10k"
        images, labels = (
            self._find(Path(root), f"{part}-{kind}-ubyte", download)
            for kind in ("images-idx3", "labels-idx1")
        )
        super().__init__(images, labels, classes=self.names)

    @classmethod
    def _find(cls, root: Path, name: str, download: bool) -> Path:
        for folder in cls.folders:
            # Some mirrors write a dot: train-images.idx3-ubyte.
            for spelling in (name, name.replace("-idx", ".idx")):
                for path in (root / folder / spelling, root / folder / f"{spelling}.gz"):
                    if path.is_file():
                        return path
        if download:
            target = root / cls.folders[0] / f"{name}.gz"
            urls = [mirror + target.name for mirror in cls.mirrors]
            return fetch(urls, target, md5=cls.checksums[name])
        places = ", ".join(str(root / folder) for folder in cls.folders)
        raise FileNotFoundError(
            f"{cls.__name__}: expected {name} or {name}.gz in one of {places}; it is in none. "
            f"Pass download=True, or get it from {cls.mirrors[0]}."
        )


class FashionMNIST(MNIST):
    """FashionMNIST: 60 000 training or 10 000 test images of clothing, 1 x 28 x 28 bytes.

    Source: Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747 (MIT licence).
    Looked for in root, `root/FashionMNIST/raw/`, `root/FashionMNIST/` and `root/fashion-mnist/`;
    arguments and errors as for MNIST.
    """

    folders: ClassVar[tuple[str, ...]] = ("FashionMNIST/raw", "", "FashionMNIST", "fashion-mnist")
    mirrors: ClassVar[tuple[str, ...]] = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    )
    names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }
