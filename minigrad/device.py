"""Devices by name, and which of them this machine can use."""

# pyright: reportUnnecessaryIsInstance=false
# users' arguments are checked at run time

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from minigrad.config import config
from minigrad.dtype import DType
from minigrad.errors import DeviceError

if TYPE_CHECKING:  # where the type checker holds both to the contract
    from minigrad.backend.cpu import backend as _cpu
    from minigrad.backend.cuda import backend as _cuda
    from minigrad.backend.interface import Backend, Platform

    _platforms: tuple[Platform, ...] = (_cpu, _cuda)

__all__ = ["Device", "cpu", "cuda", "default_device", "devices", "set_default_device"]


@dataclass(frozen=True)
class Device:
    """A place for data: `Device("cpu")` or `Device("cuda", 0)`."""

    type: str
    index: int = 0

    def __str__(self) -> str:
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"


cpu = Device("cpu")
cuda = Device("cuda")

_MODULES = {"cpu": "minigrad.backend.cpu.backend", "cuda": "minigrad.backend.cuda.backend"}
_default: Device | None = None


def as_device(value: Device | str | None, caller: str = "device") -> Device:
    """A Device from itself, a name such as "cpu" or "cuda:1", or None for the default."""
    if value is None:
        return default_device()
    if isinstance(value, Device):
        return value
    if isinstance(value, str):
        kind, _, index = value.partition(":")
        if kind in _MODULES and (index == "" or index.isdigit()):
            return Device(kind, int(index or 0))
    known = ", ".join(map(repr, _MODULES))
    raise DeviceError(f"{caller}: expected {known} or '{kinds()[-1]}:N', got {value!r}.")


def register(kind: str, module: str) -> None:
    """Make a kind of device known, by the name of the module that is its `Platform`."""
    _MODULES[kind] = module


def kinds() -> tuple[str, ...]:
    """The kinds of devices that there are, whether this machine can use them or not."""
    return tuple(_MODULES)


@cache
def platform(kind: str) -> Platform:
    """The module of a kind of device, which imports its libraries when asked for a device."""
    return cast("Platform", importlib.import_module(_MODULES[kind]))


def computes(kind: str, dtype: DType) -> bool:
    """Whether devices of a kind compute with a dtype; they hold values of any."""
    return dtype.everywhere or dtype in platform(kind).dtypes


def why_unusable(kind: str, computing: bool = True) -> str | None:
    """None when devices of this kind can be used, else the reason and the cure.

    Without `computing` it is about memory alone, which the CPU needs no library for.
    """
    return platform(kind).why_unusable(computing)


def backend_of(device: Device, computing: bool = False) -> Backend[Any]:
    """The backend of a device, for what it holds; with `computing`, also for its kernels.

    So a machine with a GPU needs no Numba: it can still hold values on the CPU.

    Raises:
        DeviceError: it cannot be used here.
    """
    _check(device.type, computing)
    return platform(device.type).device(device.index)


def device_at(kind: str, address: int) -> Device:
    """The device of a kind that memory belongs to.

    Raises:
        DeviceError: such devices cannot be used here, or it is none of theirs.
    """
    _check(kind)
    return Device(kind, platform(kind).index_of(address))


@cache
def _check(kind: str, computing: bool = True) -> None:
    reason = why_unusable(kind, computing)
    if reason is not None:
        raise DeviceError(f"device {kind!r} cannot be used: {reason}.")


def devices() -> dict[str, str]:
    """Each kind of device with "usable", or why it is not."""
    return {kind: why_unusable(kind) or "usable" for kind in _MODULES}


def default_device() -> Device:
    """Where new tensors are made: as set, else MINIGRAD_DEVICE, else cuda if usable, else cpu."""
    global _default
    if _default is None:
        if config.device is not None:
            _default = as_device(config.device, "MINIGRAD_DEVICE")
            _check(_default.type)
        else:
            _default = cpu if why_unusable("cuda") else cuda
    return _default


def set_default_device(device: Device | str) -> None:
    """Make new tensors on `device`."""
    global _default
    chosen = as_device(device, "set_default_device")
    _check(chosen.type)
    _default = chosen
