"""A program bound to device memory: its tables lie on the device, and a run patches what changes.

[Note: graphs] A program that is run a second time is captured into a CUDA graph, and from then on
takes one launch. Kernels find addresses in the tables, so a graph holds for any buffers. A library
call has them baked in: a program with some has a graph for each set of addresses that these calls
use. A training step alternates between few, since its tensors have two buffers each. Sets that are
seen only once are launched one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from minigrad.backend.cuda.runtime.jit import Kernel
from minigrad.backend.cuda.runtime.memory import DeviceBuffer
from minigrad.backend.launch import Pointer, Program
from minigrad.backend.tables import Tables
from minigrad.dtype import DType

MOST_GRAPHS = 8


class LibraryCall(Protocol):
    """What stands in a launch for a kernel where a library of CUDA's is called."""

    setting: Callable[[], Any]  # gives what the library reads apart from the words

    def __call__(self, runtime: Any, words: Sequence[int], /) -> None:
        """Call the library with the words of the launch's arguments."""


class Executable:
    """Runs a program's launches on one GPU; arguments as `Backend.executable`'s."""

    def __init__(
        self,
        device: Any,
        program: Program,
        offsets: Mapping[int, int],
        arena_bytes: int,
        bound: Sequence[int],
        constants: Sequence[DType],
    ):
        self.program, self._device, self._arena_bytes = program, device, arena_bytes
        self._runtime = device.runtime
        # A status outlives the arena, which the next program uses: it is read when the host next
        # waits for the device.
        self._statuses = DeviceBuffer(device.runtime, 8 * len(program.checks))
        self._runtime.clear(self._statuses.address, self._statuses.nbytes)
        fixed = {slot: self._statuses.address + 8 * i for i, (slot, _) in enumerate(program.checks)}
        self._tables = Tables(program, offsets, bound, constants, fixed)
        self._memory = DeviceBuffer(device.runtime, 8 * len(self._tables.words))
        self._uploaded: bytes | None = None
        starts = zip(program.launches, self._tables.starts, strict=True)
        calls = [(x, start) for x, start in starts if not isinstance(x.kernel, Kernel)]
        self._runtime.load(x.kernel for x in program.launches if isinstance(x.kernel, Kernel))
        self._graphs: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        # Words whose values library calls bake in: see [Note: graphs].
        self._baked = [
            word
            for call, start in calls
            for word, arg in enumerate(call.args, start)
            if isinstance(arg, Pointer)
        ]
        # What library calls read apart from their arguments.
        self._settings = list(
            dict.fromkeys(cast("LibraryCall", c.kernel).setting for c, _ in calls)
        )

    def run(self, buffers: Sequence[DeviceBuffer], constants: Sequence[float]) -> None:
        """Run all launches: see `minigrad.backend.interface.Executable`."""
        buffers = [b if b.is_aligned else b.copied() for b in buffers]
        base = self._device.arena(self._arena_bytes).address
        self._tables.bind(base, [b.address for b in buffers], constants)
        words = self._tables.words.tobytes()
        if words != self._uploaded:
            self._runtime.upload(self._memory.address, memoryview(words))
            self._uploaded = words
        key = tuple([self._tables.words[word] for word in self._baked])
        key += tuple([setting() for setting in self._settings])
        if key not in self._graphs:
            self._launch()
            self._graphs[key] = None  # next time it is worth a graph
            while len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        else:
            if self._graphs[key] is None:
                self._graphs[key] = self._runtime.captured(self._launch)
            self._graphs.move_to_end(key)
            self._runtime.replay(self._graphs[key])
        if self.program.checks:
            self._device.unchecked[id(self)] = self

    def _launch(self) -> None:
        words = self._tables.words
        for launch, start in zip(self.program.launches, self._tables.starts, strict=True):
            if isinstance(launch.kernel, Kernel):
                table = self._memory.address + 8 * start
                self._runtime.launch(launch.kernel, launch.extent, launch.tasks, table)
            else:
                call = cast("LibraryCall", launch.kernel)
                call(self._runtime, words[start : start + len(launch.args)])

    def check(self) -> None:
        """Raise what a kernel found to be wrong since the last check. The device is idle.

        Raises:
            IndexError: an index was out of range.
        """
        found = self._runtime.download(self._statuses.address, self._statuses.nbytes).cast("q")
        for value, (_, message) in zip(found, self.program.checks, strict=True):
            if value:
                self._runtime.clear(self._statuses.address, self._statuses.nbytes)
                raise IndexError(message.format(value=value - 1))
