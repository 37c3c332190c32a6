"""Arrays of other libraries in and out: buffer protocol, array interfaces, DLPack.

Contiguous host memory is shared, and its owner kept alive; other layouts are copied into row-major
order.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, cast

from minigrad import dlpack
from minigrad.backend.launch import contiguous_strides
from minigrad.device import Device, backend_of, cpu
from minigrad.dtype import ALL, BY_TYPESTR, DType
from minigrad.errors import DeviceError
from minigrad.graph import Node, Shape, leaf

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_KINDS = {"?": "b", "b": "i", "B": "u", "h": "i", "H": "u", "i": "i", "I": "u", "l": "i", "L": "u",
          "q": "i", "Q": "u", "n": "i", "N": "u", "e": "f", "f": "f", "d": "f"}  # fmt: skip

_NO_CODE = (
    "expected a dtype that the protocol has a code for, got {}. Use from_dlpack() of the other "
    "library, or astype('float32') where it is computed with."
)


def from_object(where: str, obj: Any, copy: bool | None) -> Node:
    """A node of another library's array, in host memory unless DLPack says otherwise."""
    interface = getattr(obj, "__array_interface__", None)
    if interface is not None:
        return _from_array_interface(where, obj, interface, copy)
    if getattr(obj, "__cuda_array_interface__", None) is not None and not hasattr(
        obj, "__dlpack__"
    ):
        _require_cuda(where)
    if hasattr(obj, "__dlpack__"):
        return from_dlpack(where, obj, copy)
    try:
        view = memoryview(obj)
    except TypeError:
        raise TypeError(
            f"{where}: expected numbers, nested lists or an array, got {type(obj).__name__}. It "
            "offers neither the buffer protocol nor __array_interface__ nor DLPack."
        ) from None
    return _from_buffer(where, view, copy)


def _require_cuda(where: str) -> None:
    from minigrad.device import why_unusable

    reason = why_unusable("cuda") or "this backend does not read __cuda_array_interface__ yet"
    raise DeviceError(f"{where}: expected data in host memory, got a GPU array: {reason}.")


def _unknown_dtype(where: str, got: str) -> TypeError:
    known = ", ".join(d.name for d in ALL)
    return TypeError(
        f"{where}: expected one of {known} in native byte order, got {got}. Convert it first."
    )


def _from_buffer(where: str, view: memoryview, copy: bool | None) -> Node:
    code = view.format.lstrip("@=<|")
    kind = _KINDS.get(code)
    dtype = BY_TYPESTR.get(("|" if view.itemsize == 1 else "<") + f"{kind}{view.itemsize}")
    if dtype is None:
        raise _unknown_dtype(where, f"the buffer format {view.format!r}")
    shape = tuple(view.shape or ())
    if view.c_contiguous and not view.readonly and not copy and view.nbytes:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        return leaf(backend_of(cpu).borrow(address, view.nbytes, view), shape, dtype, cpu)
    _refuse(where, copy, "read-only or strided memory")
    data = memoryview(view.tobytes())  # in row-major order, whatever the strides
    return leaf(backend_of(cpu).from_bytes(data), shape, dtype, cpu)


def _refuse(where: str, copy: bool | None, got: str) -> None:
    if copy is False:
        raise ValueError(
            f"{where}: expected contiguous memory to share, got {got}. Pass copy=None."
        )


def _from_array_interface(
    where: str, obj: Any, interface: dict[str, Any], copy: bool | None
) -> Node:
    shape = tuple(int(n) for n in interface["shape"])
    dtype = BY_TYPESTR.get(interface["typestr"])
    if dtype is None:
        raise _unknown_dtype(where, f"the type {interface['typestr']!r}")
    data = interface.get("data")
    if type(data) is not tuple:  # a buffer, or None: the object itself is one
        view = memoryview(obj if data is None else data)
        if interface.get("strides") is not None or interface.get("offset"):
            raise TypeError(f"{where}: expected a contiguous buffer in __array_interface__.")
        node = _from_buffer(where, view.cast("B") if view.nbytes else view, copy)
        return leaf(node.storage, shape, dtype, cpu)
    strides = interface.get("strides")
    address = cast("tuple[int, bool]", data)[0]
    return from_memory(where, address, shape, strides, dtype, obj, copy)


def from_memory(
    where: str, address: int, shape: Shape, strides: tuple[int, ...] | None, dtype: DType,
    owner: object, copy: bool | None,
) -> Node:  # fmt: skip
    """A node of host memory with `strides` in bytes (None: row-major)."""
    nbytes = math.prod(shape) * dtype.itemsize
    backend = backend_of(cpu)
    if nbytes == 0:
        return leaf(backend.allocate(0), shape, dtype, cpu)
    dense = tuple(s * dtype.itemsize for s in contiguous_strides(shape))
    is_dense = strides is None or all(
        n == 1 or s == d for n, s, d in zip(shape, strides, dense, strict=True)
    )
    if is_dense:
        # Kernels load whole elements; memory that is not aligned to them is copied.
        if not copy and address % dtype.itemsize == 0:
            return leaf(backend.borrow(address, nbytes, owner), shape, dtype, cpu)
        _refuse(where, copy, "unaligned memory")
        return leaf(backend.copy_from_address(address, nbytes), shape, dtype, cpu)
    assert strides is not None
    _refuse(where, copy, f"strides {tuple(strides)} for shape {shape}")
    packed = memoryview(bytearray(nbytes))
    _gather(packed, address, shape, tuple(strides), dtype)
    return leaf(backend.from_bytes(packed), shape, dtype, cpu)


def _gather(
    target: Any, address: int, shape: Shape, strides: tuple[int, ...], dtype: DType
) -> None:
    """Copy strided memory into row-major order, one slice of memoryviews per run."""
    size = dtype.itemsize
    # The longest axis is copied by slicing; Python only loops over the others.
    inner = max(range(len(shape)), key=lambda a: shape[a])
    outer = [a for a in range(len(shape)) if a != inner]
    dense = contiguous_strides(shape)
    n, step = shape[inner], strides[inner]
    by_slice = step != 0 and step % size == 0
    word = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]  # whatever it means: it is only copied
    elements = target.cast(word)
    for position in range(math.prod(shape[a] for a in outer)):
        start, place = address, 0
        for a in reversed(outer):
            position, i = divmod(position, shape[a])
            start += i * strides[a]
            place += i * dense[a]
        if by_slice:
            span = (n - 1) * abs(step) + size
            low = min(start, start + (n - 1) * step)
            source: Any = memoryview((ctypes.c_char * span).from_address(low)).cast("B")
            row = source.cast(word)[:: step // size]  # a negative step starts at the end
            elements[place : place + (n - 1) * dense[inner] + 1 : dense[inner]] = row
        else:
            for i in range(n):
                at = (place + i * dense[inner]) * size
                target[at : at + size] = ctypes.string_at(start + i * step, size)


def unshared(x: Node) -> Node:
    """`x`, in memory of our own if it borrows another object's."""
    from minigrad.execution import capturing

    storage = x.storage
    if storage is None or getattr(storage, "owner", None) is None or capturing():
        return x
    backend = backend_of(x.device)
    nbytes = x.size * x.dtype.itemsize
    return leaf(backend.from_bytes(backend.to_bytes(storage, nbytes)), x.shape, x.dtype, x.device)


def array_interface(x: Tensor) -> dict[str, Any]:
    """NumPy's protocol, version 3. `data` is a read-only buffer, which keeps the memory alive even
    when the tensor comes to name another value."""  # noqa: D205, D209
    from minigrad.execution import export_bytes

    if x.device != cpu:
        raise AttributeError(
            f"__array_interface__: expected a tensor on cpu, got {x.device}. Use to('cpu')."
        )
    if x.dtype.typestr is None:
        raise AttributeError(f"__array_interface__: {_NO_CODE.format(x.dtype.name)}")
    values = export_bytes(x).toreadonly()
    return {"version": 3, "shape": x.shape, "typestr": x.dtype.typestr, "data": values}


def buffer(x: Tensor) -> memoryview:
    """The buffer protocol's view: read-only, with the dtype's format and the shape."""
    from minigrad.execution import export_bytes

    if x.dtype.format is None:
        raise BufferError(f"__buffer__: {_NO_CODE.format(x.dtype.name)}")
    view: Any = export_bytes(x).toreadonly()
    return view if 0 in x.shape else view.cast(x.dtype.format, x.shape)


def dlpack_device(device: Device) -> tuple[int, int]:
    """DLPack's number for a device."""
    return dlpack.DEVICE_TYPES[device.type], device.index


def to_dlpack(
    x: Tensor, stream: Any = None, max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None, copy: bool | None = None,
) -> Any:  # fmt: skip
    """A capsule that shares the values; read-only, where the consumer's version can say so."""
    from minigrad.execution import export_bytes

    if x.requires_grad:
        raise BufferError(
            "__dlpack__: expected a tensor without gradient, got one that needs it. Use detach()."
        )
    here = dlpack_device(x.device)
    if dl_device is not None and tuple(dl_device) != here:
        raise BufferError(f"__dlpack__: expected device {here}, got {dl_device}. Use to() first.")
    if stream is not None and x.device == cpu:
        raise BufferError("__dlpack__: expected stream None for host memory, got one.")
    if x.device != cpu:
        raise BufferError(f"__dlpack__: expected a tensor on cpu, got {x.device}.")
    values = export_bytes(x)
    if copy:
        values = memoryview(bytearray(values))
    versioned = max_version is not None and max_version[0] >= 1
    return dlpack.export(values, x.shape, x.dtype, here, versioned, read_only=not copy)


def from_dlpack(where: str, obj: Any, copy: bool | None) -> Node:
    """A node of another library's DLPack export."""
    kind, _ = obj.__dlpack_device__()
    if kind not in dlpack.HOST_DEVICE_TYPES:
        _require_cuda(where)
    try:
        capsule = obj.__dlpack__(max_version=(1, 0))
    except TypeError:  # before DLPack 1.0
        capsule = obj.__dlpack__()
    found = dlpack.consume(capsule)
    dtype = dlpack.dtype_of(found.tensor.dtype)
    if dtype is None:
        t = found.tensor.dtype
        raise _unknown_dtype(where, f"the DLPack type {t.code}, {t.bits} bits, {t.lanes} lanes")
    return from_memory(
        where, found.address, found.shape, found.strides_in_bytes(), dtype, found, copy
    )
