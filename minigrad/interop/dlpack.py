"""The DLPack protocol's structs and capsules, by ctypes. https://dmlc.github.io/dlpack/latest/."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    addressof,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    pythonapi,
)
from typing import Any

from minigrad.backend.launch import contiguous_strides
from minigrad.device import Device, cpu, kinds, platform
from minigrad.dtype import ALL, DType, bfloat16

_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}
# (code, bits, lanes); bfloat16 has a code of its own
_TYPES = {d: (_CODES[d.kind], 8 * d.itemsize, 1) for d in ALL} | {bfloat16: (4, 16, 1)}
_READ_ONLY, _IS_COPIED = 1, 2
_NAMES = {False: b"dltensor", True: b"dltensor_versioned"}
_USED = {False: b"used_dltensor", True: b"used_dltensor_versioned"}

_Deleter = ctypes.CFUNCTYPE(None, c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)


class _Device(Structure):
    _fields_ = (("type", c_int32), ("index", c_int32))


class _DataType(Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class DLTensor(Structure):
    """A strided view of memory; strides are in elements, NULL for row-major."""

    _fields_ = (
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(Structure):
    _fields_ = (("tensor", DLTensor), ("context", c_void_p), ("deleter", c_void_p))


class _ManagedVersioned(Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", DLTensor),
    )


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    # A prototype of our own: setting argtypes on pythonapi's would change it for everyone.
    return ctypes.PYFUNCTYPE(result, *arguments)((name, pythonapi))


_capsule_new = _declare("PyCapsule_New", ctypes.py_object, c_void_p, ctypes.c_char_p, c_void_p)
# These take a capsule by its address: in its destructor no references are left, and a Python
# argument would make a new one.
_is_valid = _declare("PyCapsule_IsValid", ctypes.c_int, c_void_p, ctypes.c_char_p)
_get_pointer = _declare("PyCapsule_GetPointer", c_void_p, c_void_p, ctypes.c_char_p)
_set_name = _declare("PyCapsule_SetName", ctypes.c_int, c_void_p, ctypes.c_char_p)

_exported: dict[int, Any] = {}  # what each export keeps alive until its deleter is called


@_Deleter
def _delete(address: int) -> None:
    _exported.pop(address, None)


@_Destructor
def _destroy(capsule: int) -> None:
    """Free what nobody consumed; a consumer renames the capsule and calls the deleter itself."""
    for name in _NAMES.values():
        if _is_valid(capsule, name):
            _exported.pop(_get_pointer(capsule, name), None)


def number_of(device: Device) -> tuple[int, int]:
    """DLPack's (device type, index)."""
    return platform(device.type).dlpack_types[0], device.index


def device_of(number: int, index: int) -> Device | None:
    """The device for DLPack's device type and index, None when there is none."""
    found = next((kind for kind in kinds() if number in platform(kind).dlpack_types), None)
    if found is None or found == cpu.type:  # the host's memory is one, whoever it is pinned for
        return cpu if found else None
    return Device(found, index)


def export(
    address: int, owner: object, shape: tuple[int, ...], dtype: DType, device: Device,
    versioned: bool, copied: bool,
) -> Any:  # fmt: skip
    """A capsule on row-major memory, whose `owner` is held until the consumer is done.

    It is marked as read-only unless it was `copied` for the consumer, where the version allows.
    """
    ndim = len(shape)
    extents = (c_int64 * max(ndim, 1))(*shape)
    steps = (c_int64 * max(ndim, 1))(*contiguous_strides(shape))
    managed = _ManagedVersioned() if versioned else _Managed()
    managed.tensor = DLTensor(
        address if 0 not in shape else None,
        _Device(*number_of(device)),
        ndim,
        _DataType(*_TYPES[dtype]),
        extents,
        steps,
        0,
    )
    managed.deleter = ctypes.cast(_delete, c_void_p)
    if versioned:
        managed.major, managed.minor = 1, 0
        managed.flags = _IS_COPIED if copied else _READ_ONLY
    place = addressof(managed)
    _exported[place] = (managed, extents, steps, owner)
    return _capsule_new(place, _NAMES[versioned], ctypes.cast(_destroy, c_void_p))


class Import:
    """Memory of another library; given back when the last reference goes."""

    def __init__(self, managed: Any):
        self._managed = managed
        self.tensor = managed.tensor
        self.shape = tuple(managed.tensor.shape[i] for i in range(managed.tensor.ndim))
        self.address = (managed.tensor.data or 0) + managed.tensor.byte_offset

    def strides_in_bytes(self) -> tuple[int, ...] | None:
        """None for row-major."""
        if not self.tensor.strides:
            return None
        size = self.tensor.dtype.bits // 8
        return tuple(self.tensor.strides[i] * size for i in range(self.tensor.ndim))

    def __del__(self) -> None:
        if self._managed.deleter:
            _Deleter(self._managed.deleter)(addressof(self._managed))


def consume(capsule: Any) -> Import:
    """The tensor in a capsule, which no one else can take any more."""
    for versioned in (True, False):
        if _is_valid(id(capsule), _NAMES[versioned]):
            address = _get_pointer(id(capsule), _NAMES[versioned])
            struct = _ManagedVersioned if versioned else _Managed
            managed = struct.from_address(address)
            if versioned and managed.major > 1:
                raise BufferError(f"from_dlpack: expected DLPack version 1, got {managed.major}.")
            _set_name(id(capsule), _USED[versioned])
            return Import(managed)
    raise BufferError("from_dlpack: expected an unused DLPack capsule, got another object.")


def dtype_of(found: Any) -> DType | None:
    """Our dtype for DLPack's, None when there is none."""
    for dtype, spelled in _TYPES.items():
        if (found.code, found.bits, found.lanes) == spelled:
            return dtype
    return None
