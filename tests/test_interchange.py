"""Memory shared with other libraries: buffer protocol, array interface, DLPack."""

from __future__ import annotations

import array
import ctypes
import gc
from typing import Any

import pytest

import minigrad as mg
from minigrad.interop import dlpack
from minigrad.interop.arrays import from_memory
from minigrad.tensor_base import wrap

pytestmark = pytest.mark.usefixtures("on_cpu")


class Exporter:
    """An object with nothing but `__array_interface__`."""

    def __init__(
        self, values: list[Any], typestr: str, shape: Any, strides: Any = None, start: int = 0
    ):
        code = {"<f4": "f", "<f8": "d", "<i8": "q", "<i4": "i", "|u1": "B", "|b1": "B", "<i2": "h"}
        self.memory = array.array(code[typestr], values)
        address = self.memory.buffer_info()[0] + start * self.memory.itemsize
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": typestr, "strides": strides,
            "data": (address, False),
        }  # fmt: skip


def shares(x: Any, memory: Any) -> bool:
    """Whether writing to the memory shows in the (not yet recomputed) tensor."""
    before = x.tolist()
    memory[0] += 1
    changed = x.tolist() != before
    memory[0] -= 1
    return changed


class TestBuffers:
    @pytest.mark.parametrize(
        ("code", "dtype"),
        [
            ("f", "float32"),
            ("d", "float64"),
            ("i", "int32"),
            ("q", "int64"),
            ("l", "int64"),
            ("B", "uint8"),
        ],
    )
    def test_arrays_are_shared(self, code: str, dtype: str) -> None:
        data = array.array(code, [1, 2, 3])
        x = mg.asarray(data)
        assert x.dtype.name == dtype
        assert x.tolist() == [1, 2, 3]
        assert shares(x, data)
        assert not shares(mg.tensor(data), data)
        assert not shares(mg.asarray(data, copy=True), data)
        assert not shares(mg.tensor(x), data)

    def test_owner_stays_alive(self) -> None:
        x = mg.asarray(array.array("d", range(1000)))
        gc.collect()
        assert x.tolist() == list(range(1000))

    def test_bytes_are_copied(self) -> None:
        assert mg.asarray(b"\x01\x02").tolist() == [1, 2]
        assert mg.asarray(memoryview(b"\x01\x00").cast("?")).tolist() == [True, False]
        with pytest.raises(
            ValueError, match=r"asarray: expected contiguous memory to share, got read-only"
        ):
            mg.asarray(b"\x01", copy=False)

    def test_shapes_and_strides(self) -> None:
        view = memoryview(array.array("i", range(12))).cast("B").cast("i", (3, 4))
        assert mg.asarray(view).shape == (3, 4)
        assert mg.asarray(memoryview(array.array("i", range(6)))[::2]).tolist() == [0, 2, 4]
        assert mg.asarray(memoryview(array.array("i", range(6)))[::-1]).tolist() == [
            5,
            4,
            3,
            2,
            1,
            0,
        ]
        assert mg.asarray((ctypes.c_float * 3)(1, 2, 3)).tolist() == [1.0, 2.0, 3.0]
        assert mg.asarray(array.array("f")).shape == (0,)

    def test_unknown_formats(self) -> None:
        with pytest.raises(
            TypeError, match=r"asarray: expected one of bool, .* got the buffer format 'h'"
        ):
            mg.asarray(array.array("h", [1]))
        big = (ctypes.c_int32.__ctype_be__ * 2)(1, 2)
        with pytest.raises(TypeError, match=r"native byte order, got the buffer format '>"):
            mg.asarray(big)

    def test_conversion(self) -> None:
        x = mg.asarray(array.array("i", [1, 2]), dtype="float32")
        assert x.tolist() == [1.0, 2.0]
        assert x.dtype is mg.float32


class TestArrayInterface:
    def test_contiguous_memory_is_shared(self) -> None:
        source = Exporter([1, 2, 3, 4], "<f4", (2, 2))
        x = mg.asarray(source)
        assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert shares(x, source.memory)

    @pytest.mark.parametrize(
        ("shape", "strides", "start", "expected"),
        [
            ((3, 2), (4, 12), 0, [[0, 3], [1, 4], [2, 5]]),  # Fortran order
            ((2, 2), (12, 8), 0, [[0, 2], [3, 5]]),
            ((3,), (-8,), 5, [5, 3, 1]),
            ((2, 3), (0, 4), 1, [[1, 2, 3], [1, 2, 3]]),
            ((3, 2), (4, 0), 1, [[1, 1], [2, 2], [3, 3]]),
            ((2, 1, 3), (12, 999, 4), 0, [[[0, 1, 2]], [[3, 4, 5]]]),
            ((), (), 4, 4),
            ((0, 2), (4, 4), 0, []),
        ],
    )
    def test_strides(self, shape: Any, strides: Any, start: int, expected: Any) -> None:
        source = Exporter(list(range(6)), "<i4", shape, strides, start)
        assert mg.asarray(source).tolist() == expected

    def test_odd_strides_and_addresses(self) -> None:
        raw = bytearray(40)
        ints = [7, -8, 9]
        for i, v in enumerate(ints):
            raw[1 + 5 * i : 5 + 5 * i] = v.to_bytes(4, "little", signed=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(raw))
        node = from_memory("test", address + 1, (3,), (5,), mg.int32, raw, None)
        assert wrap(node).tolist() == ints
        node = from_memory("test", address + 1, (1,), None, mg.int32, raw, None)
        assert wrap(node).tolist() == [7]

    def test_unknown_type(self) -> None:
        with pytest.raises(TypeError, match=r"asarray: expected one of .* got the type '<i2'"):
            mg.asarray(Exporter([1], "<i2", (1,)))

    def test_export(self) -> None:
        x = mg.tensor([[1.0, 2.0]]) + 1.0
        interface = x.__array_interface__
        assert interface["shape"] == (1, 2)
        assert interface["typestr"] == "<f4"
        data = interface["data"]
        assert data.readonly
        assert data.cast("f").tolist() == [2.0, 3.0]
        x += 5.0
        del x
        gc.collect()
        assert data.cast("f").tolist() == [2.0, 3.0]

    def test_gpu_arrays_need_a_gpu(self) -> None:
        class OnGpu:
            __cuda_array_interface__: Any = {"version": 3}  # noqa: RUF012

        if mg.devices()["cuda"] == "usable":
            pytest.skip("this machine has a GPU")
        with pytest.raises(
            mg.DeviceError, match=r"asarray: expected an array where it can be used, got one on"
        ):
            mg.asarray(OnGpu())


class Legacy:
    """An exporter from before DLPack 1.0."""

    def __init__(self, x: Any):
        self._x = x

    def __dlpack_device__(self) -> Any:
        return self._x.__dlpack_device__()

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._x.__dlpack__(stream=stream)


class Versioned(Legacy):
    def __dlpack__(self, **options: Any) -> Any:
        return self._x.__dlpack__(**options)


class TestDlpack:
    @pytest.mark.parametrize("dtype", list(mg.dtype.BY_NAME))
    @pytest.mark.parametrize("wrapper", [Legacy, Versioned])
    def test_round_trip(self, wrapper: Any, dtype: str) -> None:
        x = mg.tensor([[1, 0, 1], [0, 1, 1]], dtype)
        y = mg.from_dlpack(wrapper(x))
        assert y.dtype is x.dtype
        assert y.tolist() == x.tolist()
        assert y.node.storage.address == x.node.storage.address
        assert mg.from_dlpack(wrapper(x), copy=True).node.storage.address != x.node.storage.address

    def test_scalars_and_empty_tensors(self) -> None:
        assert mg.from_dlpack(Versioned(mg.tensor(2.5))).item() == 2.5
        assert mg.from_dlpack(Versioned(mg.zeros((2, 0)))).shape == (2, 0)

    def test_memory_is_freed_when_the_last_user_is_gone(self) -> None:
        before = len(dlpack._exported)
        x = mg.tensor([1.0, 2.0])
        y = mg.from_dlpack(Versioned(x))
        del x
        gc.collect()
        assert len(dlpack._exported) == before + 1
        assert y.tolist() == [1.0, 2.0]
        del y
        gc.collect()
        assert len(dlpack._exported) == before
        capsule = mg.ones(3).__dlpack__()
        assert len(dlpack._exported) == before + 1
        del capsule
        gc.collect()
        assert len(dlpack._exported) == before

    def test_a_capsule_is_used_once(self) -> None:
        capsule = mg.ones(3).__dlpack__()
        first = dlpack.consume(capsule)
        assert first.shape == (3,)
        with pytest.raises(BufferError, match=r"expected an unused DLPack capsule"):
            dlpack.consume(capsule)

    def test_refusals(self) -> None:
        x = mg.ones(2, requires_grad=True)
        with pytest.raises(BufferError, match=r"expected a tensor without gradient.*detach"):
            x.__dlpack__()
        with pytest.raises(BufferError, match=r"expected device \(1, 0\), got \(2, 0\)"):
            mg.ones(2, device="cpu").__dlpack__(dl_device=(2, 0))
        with pytest.raises(BufferError, match=r"expected stream None for host memory"):
            mg.ones(2, device="cpu").__dlpack__(stream=1)


class TestTorch:
    def test_from_torch(self) -> None:
        torch = pytest.importorskip("torch")
        t = torch.arange(12, dtype=torch.float32).reshape(3, 4)
        x = mg.from_dlpack(t)
        assert x.node.storage.address == t.data_ptr()
        assert mg.asarray(t).tolist() == t.tolist()
        assert mg.asarray(t.T).tolist() == t.T.tolist()
        assert mg.tensor(t[:, ::2]).tolist() == t[:, ::2].tolist()
        assert mg.tensor(t[1:, 1:]).tolist() == t[1:, 1:].tolist()
        assert mg.asarray(t > 3).tolist() == (t > 3).tolist()
        for dtype in (torch.float16, torch.bfloat16):
            h = mg.asarray(t.to(dtype).T)
            assert f"torch.{h.dtype.name}" == str(dtype)
            assert h.tolist() == t.T.tolist()
            assert torch.from_dlpack(h).dtype is dtype
        with pytest.raises(
            TypeError, match=r"asarray: expected one of .* got the DLPack type 0, 16 bits"
        ):
            mg.asarray(t.short())

    def test_to_torch(self) -> None:
        torch = pytest.importorskip("torch")
        x = mg.arange(6).reshape(2, 3) * 2
        t = torch.from_dlpack(x)
        assert t.tolist() == x.tolist()
        assert t.data_ptr() == x.node.storage.address
        x += 1
        gc.collect()
        assert t.tolist() == [[0, 2, 4], [6, 8, 10]]
