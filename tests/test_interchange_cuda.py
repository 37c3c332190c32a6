"""Memory shared with other libraries on a GPU. Fakes over host memory stand in for them.

What is asked of streams is in the runtime's log: "wait for N" is what our stream does, "hold N"
what another library's does.
"""

from __future__ import annotations

import ctypes
import gc
import struct
import threading
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import host_cuda
import pytest

import minigrad as mg
from minigrad import device as devices
from minigrad.backend.cuda import backend as cuda_backend
from minigrad.backend.cuda.runtime import runtime
from minigrad.backend.cuda.runtime.loans import Loans
from minigrad.device import backend_of
from minigrad.interop import arrays, dlpack

OURS = host_cuda.HostRuntime.stream_pointer
THEIRS = 0x7EE

if devices.why_unusable("cuda"):
    pytest.skip("neither a GPU nor a stand-in", allow_module_level=True)
if not isinstance(backend_of(mg.cuda).runtime, host_cuda.HostRuntime):
    pytest.skip("fakes over host memory need the stand-in for a GPU", allow_module_level=True)


@pytest.fixture
def log() -> list[str]:
    """What the device is asked from now on; nothing is left to be given back."""
    gc.collect()
    mg.synchronize("cuda")
    found = backend_of(mg.cuda).runtime.log
    found.clear()
    return found


class Array:
    """Another library's array: nothing but `__cuda_array_interface__` over memory of its own."""

    def __init__(
        self, values: list[Any], typestr: str = "<i4", shape: Any = None, strides: Any = None,
        start: int = 0, **more: Any,
    ):  # fmt: skip
        code = {"<f4": "f", "<f8": "d", "<i8": "q", "<i4": "i", "|u1": "B", "|b1": "?",
                "<f2": "e"}[typestr]  # fmt: skip
        packed = struct.pack(f"={len(values)}{code}", *values)
        self.memory = ctypes.create_string_buffer(packed, len(packed) + 32)
        self.first = ctypes.addressof(self.memory)
        self.first += -self.first % 16  # as an allocator would
        ctypes.memmove(self.first, packed, len(packed))
        self.__cuda_array_interface__ = {
            "version": 3, "shape": (len(values),) if shape is None else shape, "typestr": typestr,
            "strides": strides, "data": (self.first + start, False), **more,
        }  # fmt: skip


class Exporter:
    """Another library's array that speaks DLPack, over one of ours; notes how it is asked."""

    def __init__(self, x: Any, kind: Any = None):
        self._x, self._kind = x, kind or x.__dlpack_device__()
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> Any:
        return self._kind

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        return self._x.__dlpack__(**{**options, "stream": None})


class Unversioned(Exporter):
    def __dlpack__(self, stream: Any = None) -> Any:
        return super().__dlpack__(stream=stream)


class Streamless(Exporter):
    def __dlpack__(self) -> Any:
        return super().__dlpack__()


def address(x: Any) -> int:
    mg.evaluate(x)
    return x.node.storage.address


def values(x: Any) -> Any:
    assert x.device == mg.cuda
    return x.tolist()


class TestCudaArrayInterfaceIn:
    def test_dense_memory_is_shared(self, log: list[str]) -> None:
        source = Array([1, 2, 3, 4], shape=(2, 2))
        x = mg.asarray(source)
        assert x.device == mg.cuda
        assert address(x) == source.first
        assert log == []
        assert values(x) == [[1, 2], [3, 4]]
        assert values(x + 1) == [[2, 3], [4, 5]]

    @pytest.mark.parametrize(
        ("typestr", "dtype"),
        [("<f4", "float32"), ("<f8", "float64"), ("<i8", "int64"), ("|u1", "uint8"),
         ("|b1", "bool"), ("<f2", "float16")],
    )  # fmt: skip
    def test_types(self, typestr: str, dtype: str) -> None:
        x = mg.asarray(Array([1, 0, 1], typestr))
        assert x.dtype.name == dtype
        assert values(x) == [1, 0, 1]

    def test_read_only_memory_and_older_versions_are_taken(self) -> None:
        source = Array([1, 2])
        interface = source.__cuda_array_interface__
        interface["data"] = (source.first, True)
        interface["version"] = 2
        del interface["strides"]
        assert address(mg.asarray(source)) == source.first

    @pytest.mark.parametrize(
        ("shape", "strides", "start", "expected"),
        [
            ((3, 2), (4, 12), 0, [[0, 3], [1, 4], [2, 5]]),  # Fortran order
            ((2, 2), (12, 8), 0, [[0, 2], [3, 5]]),
            ((3,), (-8,), 20, [5, 3, 1]),
            ((2, 3), (-12, -4), 20, [[5, 4, 3], [2, 1, 0]]),
            ((2, 3), (0, 4), 4, [[1, 2, 3], [1, 2, 3]]),
            ((3, 2), (4, 0), 4, [[1, 1], [2, 2], [3, 3]]),
            ((4, 3), (4, 4), 0, [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]),  # windows
            ((2, 1, 3), (12, 999, 4), 0, [[[0, 1, 2]], [[3, 4, 5]]]),
        ],
    )
    def test_strides(
        self, shape: Any, strides: Any, start: int, expected: Any, log: list[str]
    ) -> None:
        source = Array(list(range(6)), "<i4", shape, strides, start)
        x = mg.asarray(source)
        dense = strides == (12, 999, 4)
        done = [line.split()[0] for line in log]
        assert done == ([] if dense else ["upload", "launch"])  # the upload is the kernel's table
        assert (address(x) == source.first) is dense
        assert values(x) == expected

    def test_a_copy_of_strides_seen_before_reads_its_own_memory(self) -> None:
        for first in (0, 10, 20, 30):  # later runs are replays of a graph
            source = Array(list(range(first, first + 6)), "<i4", (3, 2), (4, 12))
            assert values(mg.asarray(source))[0] == [first, first + 3]

    @pytest.mark.parametrize("typestr", ["<f4", "<f8", "<i8", "|u1", "<f2"])
    def test_strides_of_each_width(self, typestr: str) -> None:
        size = int(typestr[-1])
        source = Array(list(range(6)), typestr, (3, 2), (size, 3 * size))
        assert values(mg.asarray(source)) == [[0, 3], [1, 4], [2, 5]]

    def test_odd_strides_and_addresses(self) -> None:
        raw = [0] * 40
        for i, v in enumerate((7, -8, 9)):
            raw[1 + 5 * i : 5 + 5 * i] = v.to_bytes(4, "little", signed=True)
        source = Array(raw, "|u1")
        interface = source.__cuda_array_interface__
        data = (source.first + 1, False)
        interface.update(typestr="<i4", shape=(3,), strides=(5,), data=data)
        assert values(mg.asarray(source)) == [7, -8, 9]
        interface.update(shape=(1,), strides=None)
        assert values(mg.asarray(source)) == [7]
        with pytest.raises(ValueError, match=r"asarray: expected contiguous .* got unaligned"):
            mg.asarray(source, copy=False)

    def test_memory_aligned_to_its_elements_only_is_shared(self) -> None:
        source = Array(list(range(8)), "<f4", (7,), None, 4)
        x = mg.asarray(source)
        assert address(x) == source.first + 4
        assert values(x * 2) == [2 * v for v in range(1, 8)]

    def test_scalars_and_empty_arrays(self) -> None:
        assert values(mg.asarray(Array([3], shape=()))) == 3
        empty = Array([1])
        empty.__cuda_array_interface__.update(shape=(0, 2), data=(0, False))
        assert mg.asarray(empty).shape == (0, 2)

    def test_our_stream_waits_for_theirs(self, log: list[str]) -> None:
        for stream in (THEIRS, 1, 2):
            x = mg.asarray(Array([1], stream=stream))
            assert log == [f"wait for {stream}"]
            log.clear()
            assert values(x) == [1]
            log.clear()
        mg.asarray(Array([1], stream=None))
        assert log == []
        with pytest.raises(ValueError, match=r"asarray: expected a stream's handle, 1 .* got 0"):
            mg.asarray(Array([1], stream=0))

    def test_the_wait_comes_before_a_copy(self, log: list[str]) -> None:
        mg.asarray(Array([1, 2], stream=THEIRS), copy=True)
        assert log == [f"wait for {THEIRS}", "copy"]

    def test_copy(self) -> None:
        source = Array([1, 2, 3, 4])
        x = mg.asarray(source, copy=True)
        y = mg.tensor(source, device="cuda")
        for copied in (x, y):
            assert address(copied) != source.first
            assert values(copied) == [1, 2, 3, 4]
        assert address(mg.asarray(source, copy=False)) == source.first
        strided = Array([1, 2, 3, 4], strides=(8,), shape=(2,))
        with pytest.raises(ValueError, match=r"asarray: expected contiguous .* got strides \(8,\)"):
            mg.asarray(strided, copy=False)
        with pytest.raises(ValueError, match=r"expected no copy to be needed, got cuda:0 to cpu"):
            mg.asarray(source, copy=False, device="cpu")
        z = mg.asarray(mg.asarray(source), copy=True)
        assert address(z) != source.first
        assert values(z) == [1, 2, 3, 4]

    def test_other_devices(self) -> None:
        source = Array([1, 2])
        assert mg.asarray(source, device="cpu").tolist() == [1, 2]
        assert mg.tensor(source, device="cpu", dtype="float32").tolist() == [1.0, 2.0]
        assert mg.tensor(source, dtype="float32").device == mg.cuda

    def test_the_owner_lives_until_the_device_is_done(self) -> None:
        source = Array([1, 2, 3, 4])
        alive = weakref.ref(source)
        x = mg.asarray(source)
        del source
        gc.collect()
        assert alive() is not None
        y = x + 1
        mg.evaluate(y)
        del x
        gc.collect()
        assert alive() is not None  # nothing was launched or waited for since
        mg.synchronize("cuda")
        assert alive() is None
        assert values(y) == [2, 3, 4, 5]

    def test_the_owner_lives_until_a_copy_is_made(self) -> None:
        for options in ({"strides": (8,), "shape": (2,)}, {}):
            source = Array([1, 2, 3, 4], **options)
            alive = weakref.ref(source)
            x = mg.asarray(source, copy=True)
            del source
            gc.collect()
            mg.synchronize("cuda")
            assert alive() is None
            assert values(x)[0] == 1

    def test_refusals(self) -> None:
        source = Array([1])
        source.__cuda_array_interface__["typestr"] = "<c8"
        with pytest.raises(TypeError, match=r"asarray: expected one of .* got the type '<c8'"):
            mg.asarray(source)
        with pytest.raises(TypeError, match=r"asarray: expected an array without a mask"):
            mg.asarray(Array([1], mask=Array([1])))

    def test_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "why_unusable", lambda: "there is none; buy one")
        devices._check.cache_clear()
        with pytest.raises(
            mg.DeviceError, match=r"asarray: expected an array where it can be used, got one on "
            r"cuda:0: device 'cuda' cannot be used: there is none; buy one"
        ):  # fmt: skip
            mg.asarray(Array([1]))
        with pytest.raises(mg.DeviceError, match=r"from_dlpack: .* there is none; buy one"):
            mg.from_dlpack(Exporter(mg.ones(2, device="cpu"), (2, 0)))


class TestCudaArrayInterfaceOut:
    def test_the_device_memory_is_shown(self, log: list[str]) -> None:
        x = mg.tensor([[1.0, 2.0]], device="cuda") + 1
        interface = x.__cuda_array_interface__
        assert interface == {
            "version": 3, "shape": (1, 2), "typestr": "<f4", "strides": None,
            "data": (x.node.storage.address, False), "stream": OURS,
        }  # fmt: skip
        # Consumers that do not look at `stream` use the default one.
        assert log[-1] == "hold 1"
        assert "synchronize" not in log

    def test_round_trip(self) -> None:
        x = mg.tensor([1.5, 2.5], "float16", device="cuda")

        class Other:
            __cuda_array_interface__ = x.__cuda_array_interface__

        y = mg.asarray(Other())
        assert y.dtype is mg.float16
        assert address(y) == address(x)

    def test_where_there_is_none(self) -> None:
        x = mg.ones(2, device="cpu")
        assert not hasattr(x, "__cuda_array_interface__")
        with pytest.raises(AttributeError, match=r"expected a tensor on cuda, got cpu\. Use to\("):
            _ = x.__cuda_array_interface__
        y = mg.ones(2, device="cuda")
        assert not hasattr(y, "__array_interface__")
        with pytest.raises(AttributeError, match=r"expected a tensor on cpu, got cuda:0\. Use to"):
            _ = y.__array_interface__
        z = mg.ones(2, "bfloat16", device="cuda")
        assert not hasattr(z, "__cuda_array_interface__")
        with pytest.raises(AttributeError, match=r"got bfloat16\. Use from_dlpack\(\)"):
            _ = z.__cuda_array_interface__

    def test_gradients_are_cut_first(self) -> None:
        x = mg.ones(2, device="cuda", requires_grad=True)
        with pytest.raises(
            BufferError, match=r"__cuda_array_interface__: .* without gradient.*detach"
        ):
            _ = x.__cuda_array_interface__
        assert x.detach().__cuda_array_interface__["shape"] == (2,)

    def test_empty_tensors_have_no_address(self) -> None:
        assert mg.zeros((0, 3), device="cuda").__cuda_array_interface__["data"] == (0, False)

    def test_memory_stays_as_long_as_the_tensor(self) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda") + 0
        place, _ = x.__cuda_array_interface__["data"]
        assert x.__cuda_array_interface__["data"] == (place, False)
        storage = weakref.ref(x.node.storage)
        before = len(arrays._pointed_at)
        x += 5.0
        mg.evaluate(x)
        gc.collect()
        assert ctypes.string_at(place, 8) == struct.pack("2f", 1.0, 2.0)
        assert x.__cuda_array_interface__["data"] != (place, False)
        del x
        gc.collect()
        assert len(arrays._pointed_at) == before - 1
        mg.synchronize("cuda")
        assert storage() is None


class TestDlpackIn:
    @pytest.mark.parametrize("dtype", list(mg.dtype.BY_NAME))
    @pytest.mark.parametrize("kind", [Exporter, Unversioned, Streamless])
    def test_memory_is_shared(self, kind: Any, dtype: str) -> None:
        x = mg.tensor([[1, 0, 1], [0, 1, 1]], dtype, device="cuda")
        for y in (mg.from_dlpack(kind(x)), mg.asarray(kind(x))):
            assert (y.dtype, y.device) == (x.dtype, mg.cuda)
            assert address(y) == address(x)
        assert values(y) == x.tolist()
        assert address(mg.from_dlpack(kind(x), copy=True)) != address(x)

    def test_the_producer_is_given_our_stream(self, log: list[str]) -> None:
        x = mg.tensor([1.0], device="cuda")
        log.clear()
        new, old, oldest = Exporter(x), Unversioned(x), Streamless(x)
        mg.from_dlpack(new)
        assert new.asked == [{"max_version": (1, 0), "stream": OURS}]
        mg.from_dlpack(old)
        assert old.asked == [{"stream": OURS}]
        assert log == ["hold 1", "hold 1"]  # our own tensor's exports
        log.clear()
        mg.from_dlpack(oldest)  # it has only ordered the default stream
        assert log == ["hold 1", "wait for 1"]

    @pytest.mark.parametrize("kind", [(1, 0), (3, 1), (11, 0)])
    def test_pinned_memory_is_the_hosts(self, kind: Any) -> None:
        x = mg.tensor([1.0, 2.0], device="cpu")
        exporter = Exporter(x, kind)
        y = mg.from_dlpack(exporter)
        assert y.device == mg.cpu
        assert address(y) == address(x)
        assert exporter.asked == [{"max_version": (1, 0)}]

    def test_managed_memory_is_the_gpus(self) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda")
        assert address(mg.from_dlpack(Exporter(x, (13, 0)))) == address(x)

    def test_other_devices(self) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda")
        assert mg.from_dlpack(Exporter(x), device="cpu").device == mg.cpu
        with pytest.raises(
            mg.DeviceError,
            match=r"from_dlpack: expected an array on one of cpu, cuda, .* DLPack's device type 10",
        ):
            mg.from_dlpack(Exporter(x, (10, 0)))

    def test_it_is_preferred_to_the_array_interface(self) -> None:
        x = mg.tensor([1.0], "bfloat16", device="cuda")

        class Both(Exporter):
            @property
            def __cuda_array_interface__(self) -> Any:
                raise RuntimeError("bfloat16 has no code")

        assert mg.asarray(Both(x)).dtype is mg.bfloat16

    def test_it_is_given_back_when_the_device_is_done(self, log: list[str]) -> None:
        before = len(dlpack._exported)
        y = mg.from_dlpack(Exporter(mg.tensor([1.0, 2.0], device="cuda")))
        gc.collect()
        assert len(dlpack._exported) == before + 1
        assert values(y) == [1.0, 2.0]
        del y
        gc.collect()
        mg.synchronize("cuda")
        assert len(dlpack._exported) == before


class TestDlpackOut:
    def test_the_memory_is_shared_without_waiting(self, log: list[str]) -> None:
        x = mg.tensor([[1.0, 2.0]], device="cuda") + 1
        assert x.__dlpack_device__() == (2, 0)
        found = dlpack.consume(x.__dlpack__(stream=THEIRS, max_version=(1, 0)))
        assert found.address == x.node.storage.address
        assert found.shape == (1, 2)
        assert (found.tensor.device.type, found.tensor.device.index) == (2, 0)
        assert found._managed.flags == dlpack._READ_ONLY
        assert log[-1] == f"hold {THEIRS}"
        assert not any(line.startswith(("synchronize", "download", "copy")) for line in log)

    @pytest.mark.parametrize(
        ("stream", "expected"),
        [(None, ["hold 1"]), (1, ["hold 1"]), (2, ["hold 2"]), (-1, []), (77, ["hold 77"])],
    )
    def test_streams(self, stream: Any, expected: list[str], log: list[str]) -> None:
        x = mg.tensor([1.0], device="cuda")
        log.clear()
        x.__dlpack__(stream=stream)
        assert log == expected

    def test_streams_that_are_none(self) -> None:
        x = mg.tensor([1.0], device="cuda")
        for stream in (0, -2):
            with pytest.raises(ValueError, match=r"__dlpack__: expected a stream's handle, 1 "):
                x.__dlpack__(stream=stream)
        with pytest.raises(TypeError):
            x.__dlpack__(stream="default")

    def test_copies(self, log: list[str]) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda")
        log.clear()
        found = dlpack.consume(x.__dlpack__(stream=THEIRS, max_version=(1, 1), copy=True))
        assert found.address != address(x)
        assert found._managed.flags == dlpack._IS_COPIED
        assert log == ["copy", f"hold {THEIRS}"]

    @pytest.mark.parametrize("copy", [None, True])
    def test_to_the_host(self, copy: Any) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda")
        found = dlpack.consume(x.__dlpack__(dl_device=(1, 0), max_version=(1, 0), copy=copy))
        assert (found.tensor.device.type, found.tensor.device.index) == (1, 0)
        assert ctypes.string_at(found.address, 8) == struct.pack("2f", 1.0, 2.0)
        assert found._managed.flags == dlpack._IS_COPIED
        assert x.__dlpack__(dl_device=(2, 0), copy=False) is not None

    def test_refusals(self) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda")
        with pytest.raises(BufferError, match=r"expected device \(2, 0\), got \(1, 0\)"):
            x.__dlpack__(dl_device=(1, 0), copy=False)
        with pytest.raises(BufferError, match=r"expected device \(2, 0\), got \(2, 1\)"):
            x.__dlpack__(dl_device=(2, 1))
        with pytest.raises(BufferError, match=r"expected stream None for host memory, got 5"):
            x.__dlpack__(dl_device=(1, 0), stream=5)
        with pytest.raises(BufferError, match=r"without gradient.*detach"):
            mg.ones(2, device="cuda", requires_grad=True).__dlpack__()

    def test_what_comes_back_is_used_after_the_consumer(self, log: list[str]) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda")
        storage = weakref.ref(x.node.storage)
        found = dlpack.consume(x.__dlpack__(stream=THEIRS))
        del x
        gc.collect()
        assert storage() is not None
        log.clear()
        del found  # calls the deleter
        gc.collect()
        assert storage() is not None
        assert log == []  # not here: this may be any thread, at any time
        y = mg.tensor([3.0], device="cuda")
        assert log[0] == "wait for 1"
        assert storage() is None
        assert values(y) == [3.0]

    def test_a_deleter_runs_on_any_thread(self, log: list[str]) -> None:
        before = len(dlpack._exported)
        found = [dlpack.consume(mg.tensor([1.0], device="cuda").__dlpack__()) for _ in range(8)]
        assert len(dlpack._exported) == before + 8
        log.clear()
        threads = [threading.Thread(target=found.pop) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(dlpack._exported) == before
        assert log == []

    def test_capsules_that_nobody_takes(self) -> None:
        before = len(dlpack._exported)
        capsule = mg.ones(2, device="cuda").__dlpack__()
        assert len(dlpack._exported) == before + 1
        del capsule
        gc.collect()
        assert len(dlpack._exported) == before


class PendingRuntime:
    """A device that finishes nothing by itself."""

    def __init__(self) -> None:
        self.events: list[SimpleNamespace] = []
        self.waits: list[int] = []

    def record(self) -> SimpleNamespace:
        self.events.append(SimpleNamespace(done=False))
        return self.events[-1]

    def wait_for_stream(self, pointer: int) -> None:
        self.waits.append(pointer)


class Thing:
    """Something with a weak reference."""


class TestLoans:
    def test_owners_go_in_the_order_of_the_stream(self) -> None:
        device = PendingRuntime()
        loans = Loans(device)
        things = [Thing(), Thing()]
        alive = [weakref.ref(t) for t in things]
        for _ in alive:
            loans.keep(things.pop(0))
            loans.settle()
        device.events[0].done = True
        assert [r() is None for r in alive] == [False, False]
        loans.settle()
        assert [r() is None for r in alive] == [True, False]
        device.events[1].done = True
        loans.settle()
        assert alive[1]() is None
        loans.settle()
        assert len(device.events) == 2
        assert device.waits == []

    def test_nothing_reaches_the_stream_while_paused(self) -> None:
        device = PendingRuntime()
        loans = Loans(device)
        thing = Thing()
        alive = weakref.ref(thing)
        loans.take_back(thing)
        loans.keep(Thing())
        del thing
        with loans.paused:
            loans.settle()
        assert (device.waits, device.events) == ([], [])
        assert alive() is not None
        loans.settle()
        assert device.waits == [1]
        assert len(device.events) == 1
        assert alive() is None


def test_events_outlive_the_calls_that_use_them() -> None:
    """The runtime's own calls, on a stand-in for CuPy."""
    calls: list[Any] = []
    live: set[int] = set()

    class Event:
        def __init__(self, block: bool = False, disable_timing: bool = False):
            self.ptr = id(self)
            live.add(self.ptr)

        def __del__(self) -> None:
            live.discard(self.ptr)

    class Stream:
        def record(self, event: Event) -> Event:
            calls.append("record ours")
            return event

        def wait_event(self, event: Event) -> None:
            assert event.ptr in live
            calls.append("wait")

    def record(event: int, stream: int) -> None:
        assert event in live
        calls.append(f"record {stream}")

    def hold(stream: int, event: int) -> None:
        assert event in live
        calls.append(f"hold {stream}")

    gpu: Any = runtime.Runtime.__new__(runtime.Runtime)
    gpu._device, gpu._order, gpu.stream = nullcontext(), nullcontext(), Stream()
    gpu._cupy = SimpleNamespace(cuda=SimpleNamespace(Event=Event))
    gpu._api = SimpleNamespace(eventRecord=record, streamWaitEvent=hold)
    gpu.wait_for_stream(7)
    gpu.hold_stream(8)
    assert calls == ["record 7", "wait", "record ours", "hold 8"]


class TestTo:
    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The runtimes of two GPUs."""
        first = backend_of(mg.cuda)
        second = host_cuda.HostRuntime(1)
        second.stream_pointer = OURS + 1
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "runtimes", lambda index: second)
            backends = [first, cuda_backend.Backend(1)]
        monkeypatch.setattr(cuda_backend, "device", lambda index: backends[index])
        return [first.runtime, second]

    def test_from_gpu_to_gpu(self, gpus: list[Any]) -> None:
        x = mg.tensor([1.0, 2.0], device="cuda:0") + 1
        mg.evaluate(x)
        for gpu in gpus:
            gpu.log.clear()
        y = x.to("cuda:1")
        assert str(y.device) == "cuda:1"
        assert gpus[0].log == [f"hold {OURS + 1}"]
        assert gpus[1].log == ["copy", f"hold {OURS}"]
        assert y.tolist() == [2.0, 3.0]
        assert y.to("cuda:1") is y

    def test_from_and_to_the_host(self, cpu_too: None, log: list[str]) -> None:
        x = mg.tensor([1.0, 2.0], device="cpu").to("cuda")
        assert log == ["upload 8"]
        assert x.to("cpu").tolist() == [1.0, 2.0]
        assert x.to("cuda:0") is x
        trained = mg.ones(2, device="cpu", requires_grad=True).to("cuda")
        assert trained.requires_grad
        assert trained.is_leaf
