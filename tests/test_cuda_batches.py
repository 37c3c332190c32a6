"""Batches on a GPU: the same bits as on the CPU, in the right order, without waiting."""

from __future__ import annotations

import gc
import math
import threading
from array import array
from typing import Any

import pytest
from host_cuda import HostRuntime

import layers
import minigrad as mg
from minigrad import nn
from minigrad.backend.cuda import batches
from minigrad.backend.cuda.runtime import pinned, runtime
from minigrad.backend.cuda.runtime.pinned import PinnedPool
from minigrad.data import Compose, DataLoader, Normalize, RandomCrop, RandomHorizontalFlip
from minigrad.data.dataset import TensorDataset, shaped

if mg.devices()["cuda"] != "usable":
    pytest.skip(mg.devices()["cuda"], allow_module_level=True)

AUGMENTED = Compose([RandomCrop(8, 2), RandomHorizontalFlip(), Normalize((0.5, 0.1), (0.2, 0.3))])


def dataset(code: str, count: int = 23, labels: str = "q") -> TensorDataset:
    size = count * 2 * 8 * 8
    if code == "B":
        values: Any = bytearray(i * 37 % 251 for i in range(size))
    else:
        values = array("f", [(i * 37 % 251) / 97 - 1 for i in range(size)])
    images = shaped(values, code, (count, 2, 8, 8))
    return TensorDataset(images, array(labels, [i % 4 for i in range(count)]))


def contents(loader: DataLoader) -> list[tuple[bytes, bytes, Any]]:
    """The bits of every batch, all looked at in the end."""
    pairs = list(loader)
    found = []
    for x, y in pairs:
        assert str(x.device) == str(y.device) == str(mg.device.as_device(loader.device))
        parts = [bytes(memoryview(t.to("cpu").__array_interface__["data"])) for t in (x, y)]
        found.append((*parts, (x.shape, x.dtype, y.shape, y.dtype)))
    return found


@pytest.fixture
def host() -> HostRuntime:
    """The stand-in for a GPU, which writes down what it is asked for."""
    found = runtime.runtimes(0)
    if not isinstance(found, HostRuntime):
        pytest.skip("a GPU is no stand-in")
    return found


class TestSameBits:
    @pytest.mark.parametrize("prefetch", [0, 2])
    @pytest.mark.parametrize("labels", ["q", "f"])
    @pytest.mark.parametrize("code", ["B", "f"])
    def test_as_on_the_cpu(self, code: str, labels: str, prefetch: int) -> None:
        def batches_on(device: str) -> list[Any]:
            data = dataset(code, labels=labels)
            loader = DataLoader(data, 5, True, AUGMENTED, 7, prefetch=prefetch, device=device)
            return contents(loader) + contents(loader)

        on_cpu = batches_on("cpu")
        assert len(on_cpu) == 10
        assert on_cpu[4][2][0] == (3, 2, 8, 8)  # the last, short batch
        assert batches_on("cuda") == on_cpu

    def test_a_dataset_of_single_samples(self) -> None:
        class Single:
            def __len__(self) -> int:
                return 7

            def __getitem__(self, i: int) -> tuple[memoryview, int]:
                return block[i]

        block = dataset("B", 7)
        found = [
            contents(DataLoader(Single(), 3, True, AUGMENTED, device=d)) for d in ("cpu", "cuda")
        ]
        assert found[0] == found[1]

    def test_samples_that_are_no_images(self) -> None:
        data = TensorDataset(array("f", [-0.0, 1.5, 2.5]), b"abc")
        found = [contents(DataLoader(data, 2, device=d)) for d in ("cpu", "cuda")]
        assert found[0] == found[1]

    def test_more_elements_than_an_int_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel for them, on few."""
        expected = contents(DataLoader(dataset("B"), 5, transform=AUGMENTED, device="cuda"))
        kernel = batches._kernel
        monkeypatch.setattr(batches, "_kernel", lambda code, wide: kernel(code, wide=True))
        found = contents(DataLoader(dataset("B"), 5, transform=AUGMENTED, device="cuda"))
        assert found == expected


class TestOrder:
    def test_memory_is_used_again_only_when_it_is_free(self, host: HostRuntime) -> None:
        """Copies happen as late as they may: a block that was filled too early would show."""
        held = host.held
        loader = DataLoader(dataset("B", 200), 3, True, device="cuda", prefetch=5)
        expected = contents(DataLoader(dataset("B", 200), 3, True, device="cpu"))
        assert contents(loader) == expected
        del loader
        gc.collect()
        assert host.held <= held + (1 << 12)  # not the batches; tables of plans may stay
        assert not host.late

    def test_each_batch_is_one_copy_and_one_kernel(self, host: HostRuntime) -> None:
        loader = DataLoader(dataset("B", 20), 5, device="cuda", prefetch=0)
        list(loader)
        host.log.clear()
        list(loader)
        assert host.log.count("ready") == host.log.count("consumed") == 4
        assert host.log.count("replay") == 4  # a graph of the one kernel
        uploads = sorted(int(line.split()[1]) for line in host.log if line.startswith("upload"))
        # Bytes, not floats, with 32 bytes for each sample's place and 8 for its label; and a table.
        assert uploads == [16 * 8] * 4 + [5 * (128 + 32 + 8)] * 4
        assert len(host.log) == 4 * 5

    def test_leaving_early(self, host: HostRuntime) -> None:
        loader = DataLoader(dataset("B", 60), 2, device="cuda", prefetch=3)
        for _ in loader:
            break
        gc.collect()
        assert not host.late
        assert not [t for t in threading.enumerate() if t.name == "minigrad-loader"]
        again = contents(loader)
        loader.epoch -= 1
        assert contents(loader) == again

    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_an_error_in_the_dataset(self, host: HostRuntime, prefetch: int) -> None:
        class Failing:
            def __len__(self) -> int:
                return 10

            def __getitem__(self, i: int) -> tuple[bytes, int]:
                if i == 6:
                    raise RuntimeError("bad sample 6")
                return bytes([i] * 4), i

        got = []
        loader = DataLoader(Failing(), 2, prefetch=prefetch, device="cuda")
        with pytest.raises(RuntimeError, match="bad sample 6"):
            got.extend(y.tolist() for _, y in loader)
        assert got == [[0, 1], [2, 3], [4, 5]]
        assert not host.late

    def test_a_dataset_that_computes_on_the_gpu(self) -> None:
        """Its kernels come from the loader's thread, in between those of the loop."""

        class Computed:
            def __len__(self) -> int:
                return 8

            def __getitem__(self, i: int) -> tuple[Any, int]:
                x = mg.asarray([float(i), 1.0], dtype="float32", device="cuda") * 2
                return memoryview(array("f", x.tolist())), i

        got = [x.tolist() for x, _ in DataLoader(Computed(), 4, device="cuda")]
        assert got == [[[2.0 * i, 2.0] for i in range(k, k + 4)] for k in (0, 4)]


class TestNothingWaits:
    @pytest.mark.parametrize("compiled", [False, True])
    def test_in_a_training_step(self, host: HostRuntime, compiled: bool) -> None:
        model = layers.Sequential(
            layers.Flatten(), layers.Linear(128, 16), layers.BatchNorm1d(16), layers.ReLU(),
            layers.Dropout(0.5), layers.Linear(16, 4),
        ).to("cuda")  # fmt: skip
        optimizer = mg.optim.Adam(model.parameters(), lr=0.01)

        def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
            optimizer.zero_grad()
            loss = nn.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        run = mg.compile(step) if compiled else step
        loader = DataLoader(dataset("B", 40), 8, True, AUGMENTED, device="cuda")
        mg.evaluate(*[run(x, y) for x, y in loader])
        host.log.clear()
        losses = []
        for x, y in loader:
            losses.append(run(x, y))
            mg.evaluate(losses[-1], *model.parameters())
        assert host.log.count("ready") == 5
        assert not [w for w in host.log if w.startswith(("synchronize", "download"))]
        assert all(math.isfinite(loss.item()) for loss in losses)


class Event:
    def __init__(self) -> None:
        self.done, self.waited = False, False

    def synchronize(self) -> None:
        self.done = self.waited = True


class Block:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


class TestPinnedPool:
    def test_a_block_waits_for_its_copy(self) -> None:
        pool, event = PinnedPool(Block), Event()
        first = pool.take(100_000)
        assert first.nbytes == 1 << 17
        pool.give(first, event)
        second = pool.take(100_000)
        assert second is not first
        event.done = True
        assert pool.take(70_000) is first
        assert not event.waited

    def test_sizes_are_kept_apart(self) -> None:
        pool, event = PinnedPool(Block), Event()
        event.done = True
        small = pool.take(1)
        assert small.nbytes == pinned.LEAST
        pool.give(small, event)
        assert pool.take(pinned.LEAST + 1) is not small
        assert pool.take(pinned.LEAST) is small

    def test_it_ends_somewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pinned, "MOST_WAITING", 4 * pinned.LEAST)
        pool, events = PinnedPool(Block), [Event() for _ in range(4)]
        blocks = [pool.take(1) for _ in range(4)]
        for block, event in zip(blocks, events, strict=True):
            pool.give(block, event)
        assert pool.take(1) is blocks[0]
        assert [e.waited for e in events] == [True, False, False, False]
