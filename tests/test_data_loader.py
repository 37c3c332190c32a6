"""Batches: transforms against per-pixel references, order, prefetching and its failures."""

import gc
import random
import threading
from array import array
from typing import cast

import pytest

import minigrad as mg
from minigrad.backend.cpu.batches import BatchStage
from minigrad.data import (
    Compose,
    DataLoader,
    Digits,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    TensorDataset,
)
from minigrad.data.dataset import shaped
from minigrad.data.transforms import plan_batches
from minigrad.device import as_device, backend_of

HOW = ["cpu", "plain", "cuda"]  # compiled, for machines without Numba, on the GPU
MEAN, STD = (0.5, 0.25, 0.125), (0.2, 0.3, 0.4)


def noise(count, shape, code="B", seed=0):
    """A writable block of random bytes, or of floats in -1..1."""
    rng = random.Random(seed)
    size = count
    for n in shape:
        size *= n
    if code == "B":
        values = bytearray(rng.randbytes(size))
    else:
        values = array("f", [rng.uniform(-1, 1) for _ in range(size)])
    return shaped(values, code, (count, *shape))


def labelled(count, shape=(1, 2, 2)):
    """Samples whose first value tells which they are."""
    images = noise(count, shape)
    for i in range(count):
        images[(i, *(0 for _ in shape))] = i
    return TensorDataset(images, array("q", range(count)))


def order(loader):
    return [label for _, y in loader for label in y.tolist()]


def flat(values):
    return [x for v in values for x in flat(v)] if isinstance(values, list) else [values]


def loader_threads():
    return [t for t in threading.enumerate() if t.name == "minigrad-loader"]


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    gc.collect()
    assert loader_threads() == []


def naive(image, plan, top, left, mirrored):
    """One finished sample, pixel by pixel."""
    channels, height, width = plan.geometry
    rows, columns = plan.crop
    out = []
    for c in range(channels):
        for i in range(rows):
            line = []
            for j in range(columns):
                y, x = top + i, left + j
                inside = 0 <= y < height and 0 <= x < width
                value = image[c][y][x] if inside else 0
                line.append(value * plan.scale[c] + plan.shift[c])
            out += line[::-1] if mirrored else line
    return out


def assembled(how, assembly, samples, words):
    """The bytes of a finished batch."""
    labels = array("q", range(len(words) // 4))
    if how == "plain":
        stage = BatchStage(assembly, compiled=False)
    else:
        stage = backend_of(as_device(how)).batch_stage(assembly)
    x, y = stage.finish(stage.gather(samples.cast("B"), words, memoryview(labels).cast("B")))
    backend = backend_of(as_device("cpu" if how == "plain" else how))
    assert backend.to_bytes(y, y.nbytes).cast("q").tolist() == labels.tolist()
    return bytes(backend.to_bytes(x, assembly.finished_bytes * len(labels)))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("code", ["B", "f"])
@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((3, 6, 5), None),
        ((3, 6, 5), RandomCrop((6, 5), 2)),
        ((3, 6, 5), RandomCrop(3)),
        ((3, 6, 5), RandomCrop((9, 11), 3)),
        ((3, 2, 2), RandomCrop(2, 5)),  # windows that miss the image altogether
        ((1, 1, 1), RandomCrop((1, 3), 1)),
        ((3, 4, 40), RandomCrop((4, 36), 2)),  # longer than a vector register
    ],
)
def test_assemblies(shape, crop, code, how):
    channels = shape[0]
    chain = [RandomHorizontalFlip(), Normalize(MEAN[:channels], STD[:channels])]
    plan = plan_batches(
        Compose([crop, *chain] if crop else chain), shape, 255 if code == "B" else 1
    )
    samples = noise(7, shape, code)
    rows = random.Random(1).choices(range(7), k=60)
    words = plan.draw(rows, random.Random(2))
    size = channels * plan.crop[0] * plan.crop[1]
    got = memoryview(assembled(how, plan.assembly(code), samples, words)).cast("f").tolist()
    images = samples.tolist()
    for i in range(60):
        row, top, left, mirrored = words[4 * i : 4 * i + 4]
        assert row == rows[i]
        expected = naive(images[row], plan, top, left, mirrored)
        assert got[i * size : (i + 1) * size] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("code", ["B", "f"])
def test_assemblies_agree_to_the_last_bit(code):
    chain = Compose([RandomCrop(32, 4), RandomHorizontalFlip(), Normalize(MEAN, STD)])
    plan = plan_batches(chain, (3, 32, 32), 255 if code == "B" else 1)
    samples = noise(4, (3, 32, 32), code)
    words = plan.draw([3, 1, 2, 0], random.Random(0))
    cpu, *others = (assembled(how, plan.assembly(code), samples, words) for how in HOW)
    assert others == [cpu, cpu]


def test_draws_cover_their_ranges_evenly():
    plan = plan_batches(
        Compose([RandomCrop((4, 6), 2), RandomHorizontalFlip(0.25)]), (1, 4, 8), 1.0
    )
    words = plan.draw(range(20_000), random.Random(0))
    for column, values in ((1, range(-2, 3)), (2, range(-2, 5))):
        found = list(words[column::4])
        assert set(found) == set(values)
        for value in values:
            assert found.count(value) * len(values) / 20_000 == pytest.approx(1, abs=0.1)
    assert sum(words[3::4]) / 20_000 == pytest.approx(0.25, abs=0.02)
    for p in (0, 1):
        flips = plan_batches(RandomHorizontalFlip(p), (1, 4, 8), 1.0)
        assert sum(flips.draw(range(5000), random.Random(0))[3::4]) == 5000 * p


def test_batches():
    dataset = labelled(10, (3, 4, 5))
    loader = DataLoader(dataset, batch_size=4)
    assert len(loader) == 3
    batches = list(loader)
    assert [x.shape for x, _ in batches] == [(4, 3, 4, 5), (4, 3, 4, 5), (2, 3, 4, 5)]
    assert [y.tolist() for _, y in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    x, y = batches[1]
    assert (x.dtype, y.dtype) == (mg.float32, mg.int64)
    expected = [value / 255 for value in dataset[5][0].cast("B").tolist()]
    assert flat(x.tolist()[1]) == pytest.approx(expected)
    short = DataLoader(dataset, batch_size=4, drop_last=True)
    assert len(short) == 2
    assert order(short) == list(range(8))


@pytest.mark.parametrize("prefetch", [0, 1, 2, 50])
def test_same_seed_same_batches(prefetch):
    dataset = labelled(40, (3, 8, 8))
    transform = Compose([RandomCrop(8, 2), RandomHorizontalFlip(), Normalize(MEAN, STD)])

    def run(**options):
        loader = DataLoader(dataset, 7, shuffle=True, transform=transform, **options)
        return [[(x.tolist(), y.tolist()) for x, y in loader] for _ in range(2)]

    reference = run(seed=3, prefetch=0)
    assert run(seed=3, prefetch=prefetch) == reference
    assert run(seed=4, prefetch=prefetch) != reference
    assert reference[0] != reference[1]
    resumed = DataLoader(dataset, 7, True, transform, 3, prefetch=prefetch)
    resumed.epoch = 1
    assert [(x.tolist(), y.tolist()) for x, y in resumed] == reference[1]


def test_shuffling():
    loader = DataLoader(labelled(100), 8, shuffle=True)
    first, second = order(loader), order(loader)
    assert sorted(first) == sorted(second) == list(range(100))
    assert len({tuple(first), tuple(second), tuple(range(100))}) == 3
    assert loader.epoch == 2


def test_batches_stay_as_they_were():
    """Memory is recycled only when nobody holds the batch."""
    dataset = labelled(200, (1, 40, 40))
    kept = list(DataLoader(dataset, 10))
    for _ in DataLoader(dataset, 10, shuffle=True):
        pass
    for i, (x, _) in enumerate(kept):
        firsts = [image[0][0][0] * 255 for image in x.tolist()]
        assert firsts == pytest.approx(range(10 * i, 10 * i + 10))


def test_normalize_defaults_and_units():
    dataset = TensorDataset(b"\x00\xff\x33", b"\0\0\0")
    ((x, _),) = DataLoader(dataset, 3, transform=Normalize(0.5, 0.25))
    assert x.tolist() == pytest.approx([-2, 2, (0.2 - 0.5) / 0.25])
    digits = Digits(train=False)
    ((x, _),) = DataLoader(digits, 360)
    assert x.tolist()[0][0][0] == pytest.approx([v / 16 for v in list(digits[0][0].cast("B"))[:8]])


def test_normalize_on_a_tensor_agrees():
    dataset = TensorDataset(noise(4, (3, 2, 2)), b"\0" * 4)
    normalize = Normalize(MEAN, STD)
    ((x, _),) = DataLoader(dataset, 4)
    ((expected, _),) = DataLoader(dataset, 4, transform=normalize)
    got = flat(normalize(x).tolist())
    assert got == pytest.approx(flat(expected.tolist()), rel=1e-5, abs=1e-6)


def test_padding_is_black_after_normalize_too():
    dataset = TensorDataset(memoryview(bytearray(b"\x33" * 4)).cast("B", (1, 1, 2, 2)), b"\0")
    for chain in ([RandomCrop(6, 2), Normalize(0.5, 0.5)], [Normalize(0.5, 0.5), RandomCrop(6, 2)]):
        ((x, _),) = DataLoader(dataset, 1, transform=Compose(chain))
        assert x.tolist()[0][0][0] == [-1.0] * 6


def test_user_callables_run_after_in_the_consumer_s_thread():
    threads = []

    def double(batch):
        threads.append(threading.current_thread())
        return batch * 2

    dataset = TensorDataset(b"\x00\xff", b"\0\1")
    chain = Compose([Normalize(1.0, 1.0), double, double, Normalize(1.0, 2.0)])
    ((x, _),) = DataLoader(dataset, 2, transform=chain)
    assert x.tolist() == pytest.approx([-2.5, -0.5])
    ((x, _),) = DataLoader(dataset, 2, transform=double)
    assert x.tolist() == pytest.approx([0, 2])
    assert set(threads) == {threading.current_thread()}


def test_leaving_early_stops_the_thread():
    loader = DataLoader(labelled(100), 1)
    for _ in loader:
        assert len(loader_threads()) == 1
        break
    gc.collect()
    assert loader_threads() == []
    batches = iter(loader)
    assert loader_threads() == []  # nothing runs before it is asked for
    next(batches)
    del batches
    gc.collect()
    assert loader_threads() == []

    def training_fails():
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training_fails()


class Failing:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 6:
            raise RuntimeError("bad sample 6")
        return bytes([index] * 4), index


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_reach_the_consumer(prefetch):
    got = []
    loader = DataLoader(Failing(), 2, prefetch=prefetch)
    with pytest.raises(RuntimeError, match="bad sample 6") as caught:
        got.extend(y.tolist() for _, y in loader)
    assert got == [[0, 1], [2, 3], [4, 5]]
    assert "__getitem__" in [entry.name for entry in caught.traceback]


def test_two_iterations_at_once():
    loader = DataLoader(labelled(20), 4, shuffle=True)
    first, second = iter(loader), iter(loader)
    pairs = [(a[1].tolist(), b[1].tolist()) for a, b in zip(first, second, strict=True)]
    for side in (0, 1):
        assert sorted(i for pair in pairs for i in pair[side]) == list(range(20))


class Items:
    """A data set that gives samples one by one."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_any_sized_indexable_is_a_dataset():
    images = noise(5, (1, 3, 2))
    block = TensorDataset(images, b"\4\3\2\1\0")
    items = Items([block[i] for i in range(5)])
    transform = Compose([RandomCrop(2, 1), Normalize(0.5, 0.5)])
    batches = [
        [(x.tolist(), y.tolist()) for x, y in DataLoader(data, 2, True, transform)]
        for data in (block, items)
    ]
    assert batches[0] == batches[1]
    floats = Items([(array("f", [0.5, 1.5]), 0.25), (array("f", [2.5, 3.5]), 1.0)])
    ((x, y),) = DataLoader(floats, 2)
    assert x.tolist() == [[0.5, 1.5], [2.5, 3.5]]
    assert y.dtype == mg.float32
    assert y.tolist() == [0.25, 1.0]
    with pytest.raises(TypeError, match=r"of type list\. Wrap tensors and lists"):
        DataLoader(Items([([1, 2], 0)]))
    with pytest.raises(TypeError, match="uint8 or float32, got format 'd'"):
        DataLoader(Items([(array("d", [1, 2]), 0)]))
    with pytest.raises(ValueError, match=r"expected every sample to have 2 values .* sample 1"):
        list(DataLoader(Items([(b"ab", 0), (b"abc", 0)]), 2))


def test_tensor_dataset_from_tensors_and_lists():
    x = mg.asarray([[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]])
    dataset = TensorDataset(x * 2, [2, 1, 0])
    ((batch, y),) = DataLoader(dataset, 3)
    assert batch.tolist() == [[1, 3], [5, 7], [9, 11]]
    assert y.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="at least one element"):
        TensorDataset(mg.zeros((0, 2)), mg.zeros((0,)))


def test_loader_refuses():
    dataset = labelled(4)

    def refused(error, match, **options):
        with pytest.raises(error, match=match):
            DataLoader(dataset, **options)

    refused(ValueError, r"DataLoader\.batch_size: expected at least 1, got 0", batch_size=0)
    refused(ValueError, r"DataLoader\.batch_size: expected at least 1, got -3", batch_size=-3)
    refused(TypeError, r"DataLoader\.batch_size: expected an int, got 2\.0", batch_size=2.0)
    refused(TypeError, r"DataLoader\.batch_size: expected an int, got True", batch_size=True)
    refused(ValueError, r"DataLoader\.prefetch: expected at least 0, got -1", prefetch=-1)
    refused(TypeError, r"DataLoader\.seed: expected an int, got None", seed=None)
    refused(ValueError, "at least one whole batch, got 4", batch_size=5, drop_last=True)
    refused(TypeError, "expected a callable on a batch, got 3", transform=3)
    refused(
        ValueError,
        r"window within the padded image \(2, 2\), got \(3, 3\)",
        transform=RandomCrop(3),
    )
    refused(ValueError, "expected 1 or 1 numbers, got 2", transform=Normalize((0, 0), (1, 1)))
    two = Compose([RandomCrop(2, 1), RandomCrop(2)])
    refused(ValueError, "expected one RandomCrop", transform=two)
    late = Compose([lambda batch: batch, RandomHorizontalFlip()])
    refused(ValueError, "Put crops and flips first", transform=late)
    with pytest.raises(ValueError, match=r"expected samples \(C, H, W\), got shape \(\)"):
        DataLoader(TensorDataset(b"ab", b"ab"), transform=RandomHorizontalFlip())
    with pytest.raises(ValueError, match="an empty one"):
        DataLoader(Items([]))


def test_transforms_refuse():
    with pytest.raises(ValueError, match="of one length, got 3 and 2"):
        Normalize((0, 0, 0), (1, 1))
    with pytest.raises(ValueError, match=r"Normalize\.std: expected positive"):
        Normalize(0.5, 0.0)
    with pytest.raises(TypeError, match=r"Normalize\.mean: expected a number"):
        Normalize(cast("float", "ab"), 1.0)
    for size in (0, (3, -1), (1, 2, 3), (1.5, 2)):
        with pytest.raises(ValueError, match=r"RandomCrop\.size"):
            RandomCrop(cast("int", size))
    with pytest.raises(ValueError, match=r"RandomCrop\.padding"):
        RandomCrop(3, -1)
    with pytest.raises(ValueError, match=r"RandomHorizontalFlip\.p"):
        RandomHorizontalFlip(1.5)
