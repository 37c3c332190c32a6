"""Data set files: what is read, what is refused and how the message says so."""

import ctypes
import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
from array import array
from pathlib import Path
from typing import cast

import pytest

import minigrad as mg
from minigrad.data import (
    CIFAR10,
    IDX,
    MNIST,
    Digits,
    FashionMNIST,
    IDXDataset,
    ImageDataset,
    TensorDataset,
    cifar10,
    digits,
    download,
)
from minigrad.errors import DataError

RECORDS = 4
FOLDER = "cifar-10-batches-bin"


@pytest.fixture
def small_cifar(monkeypatch):
    """CIFAR-10 files of four records, as name -> content."""
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    files = {}
    for number, name in enumerate((*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)):
        records = b""
        for i in range(RECORDS):
            pixels = bytes((number * 31 + i * 7 + k) % 256 for k in range(3072))
            records += bytes([(number + i) % 10]) + pixels
        files[name] = records
    return files


def write_all(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def check_cifar(train, test):
    assert (len(train), len(test)) == (5 * RECORDS, RECORDS)
    assert train.shape == (3, 32, 32)
    assert train.images.shape == (5 * RECORDS, 3, 32, 32)
    assert train.images.format == "B"
    image, label = train[RECORDS + 2]  # record 2 of data_batch_2
    assert label == 3
    assert image.shape == (3, 32, 32)
    assert image[1, 0, 0] == (31 + 14 + 1024) % 256
    assert image[2, 31, 31] == (31 + 14 + 3071) % 256
    assert train.classes[label] == "cat"
    assert [test[i][1] for i in range(RECORDS)] == [5, 6, 7, 8]


@pytest.mark.parametrize("place", [FOLDER, "."])
def test_cifar_from_folder(tmp_path, small_cifar, place):
    write_all(tmp_path / place, small_cifar)
    check_cifar(CIFAR10(tmp_path), CIFAR10(str(tmp_path), train=False))


def test_cifar_from_archive_writes_nothing(tmp_path, small_cifar):
    members = {f"{FOLDER}/{name}": content for name, content in small_cifar.items()}
    write_archive(tmp_path / cifar10.ARCHIVE, {f"{FOLDER}/readme.html": b"hi", **members})
    check_cifar(CIFAR10(tmp_path), CIFAR10(tmp_path, train=False))
    assert [p.name for p in tmp_path.iterdir()] == [cifar10.ARCHIVE]


def test_cifar_hostile_archive_has_no_effect(tmp_path, small_cifar):
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / cifar10.ARCHIVE, "w:gz") as tar:
        link = tarfile.TarInfo(f"{FOLDER}/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        escape = tarfile.TarInfo("../escaped.bin")
        escape.size = 3
        tar.addfile(escape, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match=r"test_batch\.bin in the archive, found none"):
        CIFAR10(root, train=False)
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_cifar_missing(tmp_path, small_cifar):
    with pytest.raises(FileNotFoundError) as caught:
        CIFAR10(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / FOLDER) in message
    assert cifar10.ARCHIVE in message
    assert "download=True" in message
    del small_cifar["data_batch_4.bin"]
    write_all(tmp_path, small_cifar)
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin is missing"):
        CIFAR10(tmp_path)


def test_cifar_damaged(tmp_path, small_cifar):
    write_all(tmp_path, small_cifar)
    whole = small_cifar["test_batch.bin"]
    path = tmp_path / "test_batch.bin"
    for content in (whole[:-1], whole + b"x", whole[:3073], b""):  # also whole records missing
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"test_batch.bin: expected {len(whole)}") as caught:
            CIFAR10(tmp_path, train=False)
        assert f"got {len(content)}" in str(caught.value)
    bad = bytearray(whole)
    bad[2 * 3073] = 10
    path.write_bytes(bad)
    with pytest.raises(DataError, match=r"test_batch\.bin: .*got 10 in record 2"):
        CIFAR10(tmp_path, train=False)


def test_cifar_damaged_archive(tmp_path, small_cifar):
    path = tmp_path / cifar10.ARCHIVE
    noise = {name: os.urandom(len(content)) for name, content in small_cifar.items()}
    noise["test_batch.bin"] = small_cifar["test_batch.bin"]
    write_archive(path, noise)
    assert len(CIFAR10(tmp_path, train=False)) == RECORDS
    whole = path.read_bytes()
    wrong_sum = bytearray(whole)
    wrong_sum[-8] ^= 1
    for content in (whole[: len(whole) // 2], whole[:-4], bytes(wrong_sum), b"", b"not gzip"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=cifar10.ARCHIVE):
            CIFAR10(tmp_path, train=False)
    write_archive(path, {"test_batch.bin": small_cifar["test_batch.bin"][:-5]})
    with pytest.raises(DataError, match=r"test_batch\.bin\): expected 12292 bytes .* got 12287"):
        CIFAR10(tmp_path, train=False)


def test_cifar_download(tmp_path, small_cifar, monkeypatch):
    source = tmp_path / "server.tar.gz"
    write_archive(source, {f"{FOLDER}/{name}": content for name, content in small_cifar.items()})
    monkeypatch.setattr(cifar10, "URL", source.as_uri())
    root = tmp_path / "new" / "root"
    with pytest.raises(DataError, match="expected MD5 c32a1d4a"):
        CIFAR10(root, download=True)
    assert list(root.iterdir()) == []
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(source.read_bytes()).hexdigest())
    check_cifar(CIFAR10(root, download=True), CIFAR10(root, train=False))
    source.unlink()
    check_cifar(CIFAR10(root, download=True), CIFAR10(root, train=False))  # already there


def test_fetch(tmp_path, capfd):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    md5 = hashlib.md5(b"content").hexdigest()
    nowhere = (tmp_path / "nowhere").as_uri()
    with pytest.raises(OSError, match=r"download of target: .*nowhere.*put the file at"):
        download.fetch([nowhere], target, md5=md5)
    assert not target.exists()
    download.fetch([nowhere, source.as_uri()], target, md5=md5)
    assert target.read_bytes() == b"content"
    assert "target" in capfd.readouterr().err  # the progress bar
    target.write_bytes(b"other")
    with pytest.raises(DataError, match=r"target: expected MD5 .* Delete the file"):
        download.fetch([source.as_uri()], target, md5=md5)
    assert target.read_bytes() == b"other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


def idx_bytes(code, shape, payload):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + payload


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("code", "letter", "values"),
    [
        (0x08, "B", [0, 1, 254, 255]),
        (0x09, "b", [-128, -1, 0, 127]),
        (0x0B, "h", [-32768, -2, 3, 258]),
        (0x0C, "i", [-(2**31), 1, 65536, 3]),
        (0x0D, "f", [0.0, -1.5, 0.25, 1e10]),
        (0x0E, "d", [0.0, -1.5, 0.1, 1e300]),
    ],
)
def test_idx_types(tmp_path, code, letter, values, compressed):
    content = idx_bytes(code, (2, 2), struct.pack(f">4{letter}", *values))
    path = tmp_path / "any.name"
    path.write_bytes(gzip.compress(content) if compressed else content)
    idx = IDX(path)
    assert idx.shape == idx.data.shape == (2, 2)
    assert idx.format == idx.data.format == letter
    assert idx.data.tolist() == [values[:2], values[2:]]


def test_idx_refuses(tmp_path):
    path = tmp_path / "file"
    whole = idx_bytes(0x08, (2, 3), b"abcdef")

    def refused(content, match):
        path.write_bytes(content)
        with pytest.raises(DataError, match=match) as caught:
            IDX(path)
        assert str(path) in str(caught.value)

    refused(b"", "magic number .* an empty file")
    refused(b"\x89PNG" + whole, "got 89 50 4e 47")
    refused(bytes([0, 0, 7, 1]) + whole, "magic number")
    refused(bytes([0, 0, 8, 0]), "magic number")
    refused(bytes([0, 0, 8, 255]) + bytes([0, 0, 0, 1]) * 255 + b"a", "magic number")
    refused(whole[:9], "expected 12 bytes of header, got 9")
    refused(idx_bytes(0x08, (2, 0), b""), r"no empty axis, got shape \(2, 0\)")
    refused(whole[:-1], r"expected 18 bytes .*\(2, 3\), got 17")
    refused(whole + b"gh", "expected 18 bytes .* got 20")
    refused(idx_bytes(0x0D, (2, 3), b"abcdef"), "expected 36 bytes .* got 18")
    refused(idx_bytes(0x08, (2**32 - 1,) * 4, b"abcdef"), "got 26")  # allocates nothing
    packed = gzip.compress(whole)
    refused(gzip.compress(whole[:-1]), "expected 18 bytes .* got 17")
    refused(gzip.compress(whole + b"gh"), "expected 18 bytes .* got at least 19")
    refused(gzip.compress(idx_bytes(0x08, (2**32 - 1,) * 4, b"a")), "got 21")
    for damaged in (packed[:-1], packed[:15], packed[:2], packed[:-6] + b"\0\0\0\0\0\0"):
        refused(damaged, "damaged")


def write_mnist(folder, *, suffix="", dot=False, count=3, top=9):
    folder.mkdir(parents=True, exist_ok=True)
    for part, shift in (("train", 0), ("t10k", 100)):
        pixels = bytes((i + shift) % 256 for i in range(count * 784))
        labels = bytes((i + shift + top) % (top + 1) for i in range(count))
        for kind, content in (
            ("images-idx3", idx_bytes(8, (count, 28, 28), pixels)),
            ("labels-idx1", idx_bytes(8, (count,), labels)),
        ):
            name = f"{part}-{kind}-ubyte".replace("-idx", ".idx" if dot else "-idx")
            (folder / (name + suffix)).write_bytes(
                gzip.compress(content) if suffix == ".gz" else content
            )


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("dataset", "place"),
    [
        (MNIST, "."),
        (MNIST, "mnist"),
        (MNIST, "MNIST/raw"),
        (FashionMNIST, "FashionMNIST/raw"),
        (FashionMNIST, "fashion-mnist"),
    ],
)
def test_mnist_places(tmp_path, dataset, place, suffix):
    write_mnist(tmp_path / place, suffix=suffix, dot=place == "mnist")
    train, test = dataset(tmp_path), dataset(tmp_path, train=False)
    assert train.images.shape == (3, 1, 28, 28)
    assert train.shape == (1, 28, 28)
    assert (train[1][0][0, 0, 0], test[0][0][0, 0, 1]) == (784 % 256, 101)
    assert list(train.labels) == [9, 0, 1]
    assert len(train.classes) == 10


def test_mnist_refuses(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        MNIST(tmp_path)
    for part in ("train-images-idx3-ubyte", str(tmp_path / "MNIST/raw"), "download=True"):
        assert part in str(caught.value)
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(8, (4,), b"\0\1\2\3"))
    with pytest.raises(DataError, match=r"expected 3 one-byte labels .* got shape \(4,\)"):
        MNIST(tmp_path)
    labels.write_bytes(idx_bytes(8, (3,), b"\0\1\x0a"))
    with pytest.raises(DataError, match=r"expected labels 0\.\.9, got 10"):
        MNIST(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(8, (3,), b"abc"))
    with pytest.raises(DataError, match=r"expected images \(N, H, W\)"):
        MNIST(tmp_path)


def test_mnist_download(tmp_path, monkeypatch):
    write_mnist(tmp_path / "server", suffix=".gz")
    sums = {
        path.name.removesuffix(".gz"): hashlib.md5(path.read_bytes()).hexdigest()
        for path in (tmp_path / "server").iterdir()
    }
    monkeypatch.setattr(MNIST, "mirrors", ((tmp_path / "server").as_uri() + "/",))
    monkeypatch.setattr(MNIST, "checksums", sums)
    root = tmp_path / "root"
    assert len(MNIST(root, download=True)) == 3
    names = sorted(p.name for p in (root / "MNIST/raw").iterdir())
    assert names == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_float_idx_dataset(tmp_path):
    floats = [i / 8 for i in range(8)]
    (tmp_path / "x").write_bytes(idx_bytes(0x0E, (2, 2, 2), struct.pack(">8d", *floats)))
    (tmp_path / "y").write_bytes(idx_bytes(8, (2,), b"\1\0"))
    dataset = IDXDataset(tmp_path / "x", tmp_path / "y", classes=("a", "b"))
    assert (dataset.images.format, dataset.full_scale) == ("f", 1.0)
    assert dataset[1][0].tolist() == [[floats[4:6], floats[6:]]]


def flat(view):
    return list(view.cast("B"))


def test_digits_are_uci_s():
    train, test = Digits(), Digits(train=False)
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == (1, 8, 8)
    assert train.full_scale == 16
    raw = bytes(train.labels) + bytes(test.labels) + train.images.tobytes() + test.images.tobytes()
    text = Path(digits.__file__).with_name("digits.txt").read_text()
    assert hashlib.sha256(raw).hexdigest() in text
    assert "CC BY 4.0" in text
    first = [0, 0, 5, 13, 9, 1, 0, 0]  # published in many places
    assert (flat(train[0][0])[:8], train[0][1]) == (first, 0)
    for part in (train, test):
        counts = [list(part.labels).count(c) for c in range(10)]
        assert max(counts) < 1.2 * min(counts)


def naive_bilinear(image, size):
    side = len(image)

    def axis(i):
        at = min(max((i + 0.5) * side / size - 0.5, 0), side - 1)
        low = min(int(at), side - 2)
        return low, at - low

    rows = []
    for i in range(size):
        a, u = axis(i)
        row = []
        for j in range(size):
            b, v = axis(j)
            top = image[a][b] * (1 - v) + image[a][b + 1] * v
            bottom = image[a + 1][b] * (1 - v) + image[a + 1][b + 1] * v
            row.append((top * (1 - u) + bottom * u) * 255 / 16)
        rows.append(row)
    return rows


@pytest.mark.parametrize("size", [9, 16, 28, 32])
def test_digits_upsampled(size):
    small, large = Digits(train=False), Digits(False, size)
    assert large.images.shape == (360, 1, size, size)
    assert large.full_scale == 255
    assert bytes(large.labels) == bytes(small.labels)
    for i in (0, 7, 359):
        expected = naive_bilinear(small[i][0].tolist()[0], size)
        got = flat(large[i][0])
        wanted = [value for row in expected for value in row]
        assert all(abs(g - e) < 0.501 for g, e in zip(got, wanted, strict=True))


def test_digits_refuses():
    with pytest.raises(ValueError, match=r"Digits\.size: expected at least 8 pixels, got 7"):
        Digits(size=7)
    with pytest.raises(TypeError, match=r"Digits\.size: expected an int, got 8\.5"):
        Digits(size=cast("int", 8.5))


def test_dataset_indexing():
    images = memoryview(bytearray(range(24))).cast("B", (2, 3, 2, 2))
    dataset = TensorDataset(images, array("i", [4, 5]), classes=("x",) * 6)
    assert isinstance(dataset, ImageDataset)
    assert [label for _, label in dataset] == [4, 5]  # iteration ends
    assert dataset[-1][0].tolist() == images.tolist()[1]
    assert dataset.labels.format == "q"
    assert dataset.images.tolist() == images.tolist()
    for index in (2, -3):
        with pytest.raises(IndexError, match=r"expected an index in \[-2, 2\)"):
            dataset[index]
    images[0, 0, 0, 0] = 99  # kept without a copy
    assert dataset[0][0][0, 0, 0] == 99


def test_tensor_dataset_conversions():
    doubles = memoryview(array("d", [0.5, 1.5])).cast("B").cast("d", (2, 1))
    dataset = TensorDataset(doubles, array("f", [0.25, 0.5]))
    assert (dataset.images.format, dataset.full_scale) == ("f", 1.0)
    assert dataset.images.tolist() == [[0.5], [1.5]]
    assert dataset.labels.tolist() == [0.25, 0.5]
    for dtype in (mg.float16, mg.bfloat16):
        halves = TensorDataset(mg.tensor([[0.5], [1.5]], dtype, "cpu"), [0, 1])
        assert (halves.images.format, halves.images.tolist()) == ("f", [[0.5], [1.5]])
    frozen = TensorDataset(b"abcd", b"\0\1\2\3")  # read-only: copied
    assert (frozen.images.format, frozen.full_scale, frozen.shape) == ("B", 255.0, ())
    assert TensorDataset(memoryview(b"abcd")[::2], b"\0\1").images.tolist() == [97, 99]
    assert TensorDataset(b"ab", b"\0\1", full_scale=2).full_scale == 2
    with pytest.raises(ValueError, match=r"got shapes \(4,\) and \(3,\)"):
        TensorDataset(b"abcd", b"abc")
    with pytest.raises(ValueError, match="at least one element"):
        TensorDataset(b"", b"")
    with pytest.raises(TypeError, match="native byte order"):
        TensorDataset((ctypes.c_int.__ctype_be__ * 2)(), b"ab")


def test_import_is_light():
    code = (
        "import sys, minigrad.data, minigrad.interop.safetensors;"
        "heavy = {'numpy', 'numba', 'cupy', 'tqdm', 'safetensors', 'urllib.request', 'tarfile'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def full_data():
    folder = os.environ.get("MINIGRAD_DATA")
    if not folder:
        pytest.skip("MINIGRAD_DATA is not set to a folder with the full data sets")
    return Path(folder)


def test_full_cifar(full_data):
    train, test = CIFAR10(full_data), CIFAR10(full_data / FOLDER, train=False)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert [list(train.labels).count(c) for c in range(10)] == [5000] * 10
    flat = train.images.cast("B")
    for c, mean in enumerate((0.4914, 0.4822, 0.4465)):
        total = sum(sum(flat[i * 3072 + c * 1024 :][:1024]) for i in range(0, 50_000, 5))
        assert abs(total / (10_000 * 1024 * 255) - mean) < 2e-3


def test_full_mnist_and_usps(full_data):
    train, test = MNIST(full_data), MNIST(full_data, train=False)
    assert (train.images.shape, len(test)) == ((60_000, 1, 28, 28), 10_000)
    assert list(train.labels[:5]) == [5, 0, 4, 1, 9]
    usps = full_data / "usps"
    for part, count in (("train", 7291), ("test", 2007)):
        dataset = IDXDataset(usps / f"{part}-images-idx3-float", usps / f"{part}-labels-idx1-ubyte")
        assert dataset.images.shape == (count, 1, 16, 16)
        values = dataset.images.cast("B").cast("f")
        assert (min(values), max(values)) == (0.0, 1.0)
