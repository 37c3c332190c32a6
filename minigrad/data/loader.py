"""Shuffled, augmented batches, prepared one step ahead of the training loop."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from math import prod
from queue import SimpleQueue
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from minigrad.data.dataset import ImageDataset
from minigrad.data.transforms import plan_batches
from minigrad.device import Device, as_device
from minigrad.dtype import float32, int64
from minigrad.execution.batches import BatchAssembler

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["DataLoader"]


class Batch(NamedTuple):
    """A batch on its way to the device."""

    gathered: Any  # what the first step of the assembler has made of it
    size: int  # samples
    code: str  # format of the labels


class DataLoader:
    """Iterates over a data set in batches: x float32 (N, *shape), y int64 (N,).

    Stored values are divided by the data set's `full_scale` (255 for bytes), so images are in 0..1
    before any transform. Everything random depends on (seed, epoch) only: the same seed gives the
    same batches, bit for bit, whatever the timing, the prefetching or the machine.

    Args:
        dataset: an ImageDataset; or anything with `len` and `dataset[i] -> (buffer, label)`, whose
            samples are bytes or float32 of one shape, read one by one in the background thread.
        batch_size: samples per batch.
        shuffle: a new order every epoch.
        transform: Normalize, RandomCrop, RandomHorizontalFlip (merged into one pass) and callables
            `batch -> batch` on Tensors (run after it, in the training loop's thread), or a Compose.
        seed: of the order and the augmentation.
        drop_last: leave out a last batch with fewer samples.
        prefetch: batches prepared ahead by one background thread, which also starts their copies
            to a GPU; 0 prepares each when asked for.
        device: where the batches go; the default device when not given.

    Attributes:
        epoch: the epoch that the next iteration over the loader runs, counted from 0. Set it to go
            on from a checkpoint.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        transform: Any = None,
        seed: int = 0,
        drop_last: bool = False,
        prefetch: int = 2,
        *,
        device: Any = None,
    ):
        _check_int("batch_size", batch_size, 1)
        _check_int("prefetch", prefetch, 0)
        _check_int("seed", seed, None)
        size = len(dataset)
        if size < 1:
            raise ValueError("DataLoader: expected a data set with samples, got an empty one.")
        if drop_last and size < batch_size:
            raise ValueError(
                f"DataLoader: expected at least one whole batch, got {size} samples for "
                f"batch_size={batch_size}. Use a smaller batch_size or drop_last=False."
            )
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.seed, self.drop_last, self.prefetch, self.device = seed, drop_last, prefetch, device
        self.transform = transform
        self.epoch = 0
        sample, full_scale, code = _description(dataset)
        self._plan = plan_batches(transform, sample, full_scale)
        self._code = code
        self._assemblers: dict[Device, BatchAssembler] = {}

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __repr__(self) -> str:
        return (
            f"DataLoader({self.dataset}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"transform={self.transform}, seed={self.seed})"
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The next epoch. Leaving the loop early stops the background thread."""
        epoch = self.epoch
        self.epoch += 1
        device = as_device(self.device)
        if device not in self._assemblers:
            assembly = self._plan.assembly(self._code)
            self._assemblers[device] = BatchAssembler(assembly, self._plan.shape, device)
        assembler = self._assemblers[device]
        work = _Epoch(self, assembler, epoch)
        at_once = map(work.batch, range(work.count))
        return self._finished(_ahead(work, self.prefetch) if self.prefetch else at_once, assembler)

    def _finished(
        self, batches: Iterator[Batch], assembler: BatchAssembler
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for gathered, n, code in batches:
            images, labels = assembler.finish(gathered, n, int64 if code == "q" else float32)
            del gathered  # memory belongs to whoever holds the tensors
            for step in self._plan.after:
                images = step(images)
            yield images, labels


class _Epoch:
    """The batches of one epoch as memory. Touches no Tensor, so any thread may run it."""

    def __init__(self, loader: DataLoader, assembler: BatchAssembler, epoch: int):
        self.count = len(loader)
        self._dataset, self._plan, self._assembler = loader.dataset, loader._plan, assembler
        self._batch_size, self._shuffle = loader.batch_size, loader.shuffle
        self._code = loader._code
        self._seed = f"{loader.seed}/{epoch}"
        self._order: Sequence[int] | None = None

    def batch(self, index: int) -> Batch:
        """Batch `index`."""
        if self._order is None:
            self._order = self._make_order()
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        if isinstance(self._dataset, ImageDataset):
            samples = self._dataset.images
            labels = _labels([self._dataset.labels[i] for i in rows])
        else:
            samples, labels = self._collect(rows)
            rows = range(len(rows))
        words = self._plan.draw(rows, Random(f"{self._seed}/{index}"))
        gathered = self._assembler.gather(samples.cast("B"), words, memoryview(labels).cast("B"))
        return Batch(gathered, len(rows), labels.typecode)

    def _make_order(self) -> Sequence[int]:
        order: Sequence[int] = range(len(self._dataset))
        if self._shuffle:
            order = list(order)
            Random(f"{self._seed}/order").shuffle(order)
        return order

    def _collect(self, rows: Sequence[int]) -> tuple[memoryview, array[Any]]:
        """One block of samples from a data set that only gives them one by one."""
        block, labels = bytearray(), []
        size = prod(self._plan.geometry)
        for i in rows:
            sample, label = self._dataset[i]
            view = memoryview(sample)
            if view.format != self._code or view.nbytes != size * view.itemsize:
                raise ValueError(
                    f"DataLoader: expected every sample to have {size} values of format "
                    f"{self._code!r} like the first, got shape {view.shape} of format "
                    f"{view.format!r} for sample {i}."
                )
            block += view.tobytes()
            labels.append(label)
        return memoryview(block), _labels(labels)


def _ahead(work: _Epoch, depth: int) -> Iterator[Batch]:
    """The batches of an epoch, `depth` of them prepared ahead by a thread.

    Orders go to the thread and batches come back: what is under way bounds both queues, and no side
    ever polls.
    """
    orders: SimpleQueue[bool] = SimpleQueue()
    done: SimpleQueue[Batch | BaseException] = SimpleQueue()

    def produce() -> None:
        try:
            for index in range(work.count):
                if not orders.get():
                    return
                done.put(work.batch(index))
        except BaseException as error:  # the consumer raises it
            done.put(error)

    thread = Thread(target=produce, name="minigrad-loader", daemon=True)
    thread.start()
    try:
        for _ in range(min(depth, work.count)):
            orders.put(True)
        for index in range(work.count):
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            if index + depth < work.count:
                orders.put(True)
            yield result
            del result
    finally:
        orders.put(False)
        thread.join()


def _labels(values: list[Any]) -> array[Any]:
    return array("f" if any(isinstance(value, float) for value in values) else "q", values)


def _description(dataset: Any) -> tuple[tuple[int, ...], float, str]:
    """Shape of a sample, the stored value that becomes 1.0, and the format of the values."""
    if isinstance(dataset, ImageDataset):
        return dataset.shape, dataset.full_scale, dataset.images.format
    sample, _ = dataset[0]
    try:
        view = memoryview(sample)
    except TypeError as error:
        raise TypeError(
            "DataLoader: expected dataset[i] to be a (buffer, label) pair, got a sample of type "
            f"{type(sample).__name__}. Wrap tensors and lists in mg.data.TensorDataset."
        ) from error
    if view.format not in ("B", "f"):
        raise TypeError(
            f"DataLoader: expected samples of uint8 or float32, got format {view.format!r}. "
            "Wrap them in mg.data.TensorDataset."
        )
    default = 255.0 if view.format == "B" else 1.0
    return tuple(view.shape or ()), getattr(dataset, "full_scale", default), view.format


def _check_int(name: str, value: Any, minimum: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"DataLoader.{name}: expected an int, got {value!r}.")
    if minimum is not None and value < minimum:
        raise ValueError(f"DataLoader.{name}: expected at least {minimum}, got {value}.")
