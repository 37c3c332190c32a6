"""Arrays of other libraries in and out: buffer protocol, array interfaces, DLPack.

A backend owns memory at addresses, and says how its work is ordered with other libraries'. Dense
memory is shared, and its owner kept alive; other layouts are copied into row-major order, where
they are.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import TYPE_CHECKING, Any, cast

from minigrad.backend.interface import Backend
from minigrad.backend.launch import contiguous_strides
from minigrad.device import Device, backend_of, cpu, cuda, device_at, kinds
from minigrad.dtype import ALL, BY_TYPESTR, DType
from minigrad.errors import DeviceError
from minigrad.graph import Node, Shape, leaf
from minigrad.interop import dlpack

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_KINDS = {"?": "b", "b": "i", "B": "u", "h": "i", "H": "u", "i": "i", "I": "u", "l": "i", "L": "u",
          "q": "i", "Q": "u", "n": "i", "N": "u", "e": "f", "f": "f", "d": "f"}  # fmt: skip

_NO_CODE = (
    "expected a dtype that the protocol has a code for, got {}. Use from_dlpack() of the other "
    "library, or astype('float32') where it is computed with."
)

# Tensor (by id) -> what holds the buffers whose addresses it has given away, by the buffers' ids.
_pointed_at: dict[int, dict[int, object]] = {}


# In


def from_object(caller: str, obj: Any, copy: bool | None) -> Node:
    """A node of another library's array, on the device that it is on."""
    interface = getattr(obj, "__array_interface__", None)
    if interface is not None:
        return _from_array_interface(caller, obj, interface, copy)
    # DLPack first: it has bfloat16, and PyTorch's __cuda_array_interface__ names no stream.
    if hasattr(obj, "__dlpack__"):
        return from_dlpack(caller, obj, copy)
    interface = getattr(obj, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_cuda_array_interface(caller, obj, interface, copy)
    try:
        view = memoryview(obj)
    except TypeError:
        raise TypeError(
            f"{caller}: expected numbers, nested lists or an array, got {type(obj).__name__}. It "
            "offers neither the buffer protocol nor an array interface nor DLPack."
        ) from None
    return _from_buffer(caller, view, copy)


def _backend(caller: str, device: Device) -> Backend[Any]:
    """The backend of the device that another library's array is on."""
    try:
        return backend_of(device)
    except DeviceError as error:
        raise DeviceError(
            f"{caller}: expected an array where it can be used, got one on {device}: {error}"
        ) from None


def _unknown_dtype(caller: str, got: str) -> TypeError:
    known = ", ".join(d.name for d in ALL)
    return TypeError(
        f"{caller}: expected one of {known} in native byte order, got {got}. Convert it first."
    )


def _from_buffer(caller: str, view: memoryview, copy: bool | None) -> Node:
    code = view.format.lstrip("@=<|")
    kind = _KINDS.get(code)
    dtype = BY_TYPESTR.get(("|" if view.itemsize == 1 else "<") + f"{kind}{view.itemsize}")
    if dtype is None:
        raise _unknown_dtype(caller, f"the buffer format {view.format!r}")
    shape = tuple(view.shape or ())
    if view.c_contiguous and not view.readonly and not copy and view.nbytes:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        return leaf(backend_of(cpu).borrow(address, view.nbytes, view), shape, dtype, cpu)
    _refuse(caller, copy, "read-only or strided memory")
    data = memoryview(view.tobytes())  # in row-major order, whatever the strides
    return leaf(backend_of(cpu).from_bytes(data), shape, dtype, cpu)


def _refuse(caller: str, copy: bool | None, got: str) -> None:
    if copy is False:
        raise ValueError(
            f"{caller}: expected contiguous memory to share, got {got}. Pass copy=None."
        )


def _from_array_interface(
    caller: str, obj: Any, interface: dict[str, Any], copy: bool | None
) -> Node:
    data = interface.get("data")
    if type(data) is tuple:
        return _from_pointer(caller, obj, interface, cpu, copy)
    # a buffer, or None: the object itself is one
    shape, dtype = _described(caller, interface)
    view = memoryview(obj if data is None else data)
    if interface.get("strides") is not None or interface.get("offset"):
        raise TypeError(f"{caller}: expected a contiguous buffer in __array_interface__.")
    node = _from_buffer(caller, view.cast("B") if view.nbytes else view, copy)
    return leaf(node.storage, shape, dtype, cpu)


def _from_cuda_array_interface(
    caller: str, obj: Any, interface: dict[str, Any], copy: bool | None
) -> Node:
    """Versions 0 to 3: what the array's own stream holds now comes before what we launch."""
    _backend(caller, cuda)
    device = device_at("cuda", interface["data"][0])
    stream = interface.get("stream")
    if stream is not None:
        _backend(caller, device).wait_for(caller, stream)
    return _from_pointer(caller, obj, interface, device, copy)


def _described(caller: str, interface: dict[str, Any]) -> tuple[Shape, DType]:
    """What both array interfaces spell alike."""
    if interface.get("mask") is not None:
        raise TypeError(f"{caller}: expected an array without a mask, got a masked one. Fill it.")
    dtype = BY_TYPESTR.get(interface["typestr"])
    if dtype is None:
        raise _unknown_dtype(caller, f"the type {interface['typestr']!r}")
    return tuple(int(n) for n in interface["shape"]), dtype


def _from_pointer(
    caller: str, obj: Any, interface: dict[str, Any], device: Device, copy: bool | None
) -> Node:
    shape, dtype = _described(caller, interface)
    address = cast("tuple[int, bool]", interface["data"])[0]
    return from_memory(caller, address, shape, interface.get("strides"), dtype, obj, copy, device)


def from_memory(
    caller: str, address: int, shape: Shape, strides: tuple[int, ...] | None, dtype: DType,
    owner: object, copy: bool | None, device: Device = cpu,
) -> Node:  # fmt: skip
    """A node of memory on a device with `strides` in bytes (None: row-major)."""
    nbytes = math.prod(shape) * dtype.itemsize
    backend = _backend(caller, device)
    if nbytes == 0:
        return leaf(backend.allocate(0), shape, dtype, device)
    dense = tuple(s * dtype.itemsize for s in contiguous_strides(shape))
    if strides is None:
        strides = dense
    # The stride of an axis of extent 1 is never used, so exporters may write anything there.
    strides = tuple(s if n > 1 else d for n, s, d in zip(shape, strides, dense, strict=True))
    if strides != dense:
        _refuse(caller, copy, f"strides {strides} for shape {shape}")
        storage = backend.packed(address, shape, strides, dtype, owner)
    elif not copy and address % dtype.itemsize == 0:
        storage = backend.borrow(address, nbytes, owner)
    else:  # kernels load whole elements, so memory that is not aligned to them is copied
        _refuse(caller, copy, "unaligned memory")
        storage = backend.copy_from_address(address, nbytes, owner)
    return leaf(storage, shape, dtype, device)


def from_dlpack(caller: str, obj: Any, copy: bool | None) -> Node:
    """A node of another library's DLPack export."""
    kind, index = obj.__dlpack_device__()
    device = dlpack.device_of(int(kind), int(index))
    if device is None:
        raise DeviceError(
            f"{caller}: expected an array on one of {', '.join(kinds())}, got one on DLPack's "
            f"device type {int(kind)}. Copy it to the host first."
        )
    found = dlpack.consume(_capsule(caller, obj, _backend(caller, device)))
    dtype = dlpack.dtype_of(found.tensor.dtype)
    if dtype is None:
        t = found.tensor.dtype
        raise _unknown_dtype(caller, f"the DLPack type {t.code}, {t.bits} bits, {t.lanes} lanes")
    return from_memory(
        caller, found.address, found.shape, found.strides_in_bytes(), dtype, found, copy, device
    )


def _capsule(caller: str, obj: Any, backend: Backend[Any]) -> Any:
    """What the object exports, for use on our stream."""
    ordered = {} if backend.stream is None else {"stream": backend.stream}
    for options in ({"max_version": (1, 0), **ordered}, ordered):
        try:
            return obj.__dlpack__(**options)
        except TypeError:  # the object is from before DLPack 1.0, or before streams
            continue
    capsule = obj.__dlpack__()
    backend.wait_for(caller, None)
    return capsule


def unshared(x: Node) -> Node:
    """`x`, in memory of our own if it borrows another object's."""
    from minigrad.execution.compute import capturing

    storage = x.storage
    if storage is None or getattr(storage, "owner", None) is None or capturing():
        return x
    nbytes = x.size * x.dtype.itemsize
    own = backend_of(x.device).copy_from_address(storage.address, nbytes, storage)
    return leaf(own, x.shape, x.dtype, x.device)


# Out


def array_interface(x: Tensor) -> dict[str, Any]:
    """NumPy's protocol, version 3. `data` is a read-only buffer, which keeps the memory alive even
    when the tensor comes to name another value."""  # noqa: D205, D209
    from minigrad.execution.compute import export_bytes

    found = _description("__array_interface__", x, cpu)
    return {**found, "data": export_bytes(x).toreadonly()}


def cuda_array_interface(x: Tensor) -> dict[str, Any]:
    """The CUDA array interface, version 3.

    Consumers keep the tensor, which may come to name another value; so the memory is kept as long
    as the tensor. It is not marked as read-only, since PyTorch refuses that.
    """
    caller = "__cuda_array_interface__"
    found = _description(caller, x, cuda)
    _refuse_gradient(caller, x)
    storage, backend = _computed(x), backend_of(x.device)
    # A consumer that ignores `stream`, as PyTorch does, uses the default one: that waits for ours.
    backend.hold(caller, None)
    _hold_with(x, storage)
    address = storage.address if x.size else 0
    return {**found, "strides": None, "data": (address, False), "stream": backend.stream}


def _description(caller: str, x: Tensor, place: Device) -> dict[str, Any]:
    """What an array interface says without computing; the protocol is for one kind of device."""
    if x.device.type != place.type:
        raise AttributeError(
            f"{caller}: expected a tensor on {place.type}, got {x.device}. Use to('{place.type}')."
        )
    if x.dtype.typestr is None:
        raise AttributeError(f"{caller}: {_NO_CODE.format(x.dtype.name)}")
    return {"version": 3, "shape": x.shape, "typestr": x.dtype.typestr}


def _refuse_gradient(caller: str, x: Tensor) -> None:
    if x.requires_grad:
        raise BufferError(
            f"{caller}: expected a tensor without gradient, got one that needs it. Use detach()."
        )


def _computed(x: Tensor) -> Any:
    """The buffer that holds the values, on the device."""
    from minigrad.execution.compute import compute

    compute([x.node])
    return x.node.storage


def _hold_with(x: Tensor, storage: Any) -> None:
    """Keep a buffer as long as a tensor."""
    held = _pointed_at.get(id(x))
    if held is None:
        held = _pointed_at[id(x)] = {}
        weakref.finalize(x, _pointed_at.pop, id(x), None).atexit = False
    if id(storage) not in held:
        held[id(storage)] = backend_of(x.device).lend(storage)


def buffer(x: Tensor) -> memoryview:
    """The buffer protocol's view: read-only, with the dtype's format and the shape."""
    from minigrad.execution.compute import export_bytes

    if x.dtype.format is None:
        raise BufferError(f"__buffer__: {_NO_CODE.format(x.dtype.name)}")
    view: Any = export_bytes(x).toreadonly()
    return view if 0 in x.shape else view.cast(x.dtype.format, x.shape)


def dlpack_device(device: Device) -> tuple[int, int]:
    """DLPack's number for a device."""
    return dlpack.number_of(device)


def to_dlpack(
    x: Tensor, stream: int | None = None, max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None, copy: bool | None = None,
) -> Any:  # fmt: skip
    """A capsule that shares the values; read-only, where the consumer's version can say so."""
    caller = "__dlpack__"
    _refuse_gradient(caller, x)
    here = dlpack_device(x.device)
    there = here if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
    if there not in (here, dlpack_device(cpu)) or (there != here and copy is False):
        raise BufferError(f"{caller}: expected device {here}, got {there}. Use to() first.")
    moved = there != here
    if moved:
        x = x.to(cpu)
    storage, backend = _computed(x), backend_of(x.device)
    if copy and not moved:
        storage = backend.copy_from_address(storage.address, x.size * x.dtype.itemsize, storage)
    backend.hold(caller, stream)
    versioned = max_version is not None and max_version[0] >= 1
    owner = backend.lend(storage)
    return dlpack.export(
        storage.address, owner, x.shape, x.dtype, x.device, versioned, copied=bool(copy) or moved
    )
