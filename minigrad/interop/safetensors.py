"""Checkpoints in the safetensors format, and files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from minigrad.device import as_device, backend_of
from minigrad.dtype import ALL, DType
from minigrad.errors import DataError
from minigrad.graph import leaf
from minigrad.tensor_base import wrap

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = ["load", "save"]

_Path = str | os.PathLike[str]

# What safetensors calls our types in a file: F32, BF16, I64, U8, BOOL.
_CODES = {
    d.name.upper().replace("FLOAT", "F").replace("UINT", "U").replace("INT", "I"): d for d in ALL
}


@contextmanager
def replacing(path: _Path) -> Generator[BinaryIO]:
    """A binary file that takes `path`'s place when the block ends, and vanishes if it fails.

    Everything is on disk before the name changes hands: after a crash or on a full disk `path` is
    the old file or the new one, never a part. A symbolic link is followed, not replaced.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target}: expected the path of a file, got a folder.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: expected its folder to exist. Create it first.")
    # Not tempfile: its files are private to the user, a checkpoint follows the umask.
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(
    path: _Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a safetensors file, replacing an older one atomically.

    Args:
        path: the file; its folder must exist.
        state: names to tensors, such as a module's `state_dict()`. Any device.
        metadata: text kept in the file's header; `load_metadata` reads it back.

    Raises:
        TypeError: a name is not a string, or a value not a Tensor.
        OSError: the file cannot be written; an older file at `path` is untouched.
    """
    from minigrad.execution.compute import evaluate, export_bytes
    from minigrad.tensor import Tensor

    named: dict[Any, Any] = dict(state)  # what was said to be names and tensors
    text: dict[Any, Any] = dict(metadata or {})
    for key, value in named.items():
        if not isinstance(key, str):
            raise TypeError(f"save: expected names to be strings, got {key!r}.")
        if not isinstance(value, Tensor):
            raise TypeError(
                f"save: expected state[{key!r}] to be a Tensor, got {type(value).__name__}. "
                "Wrap numbers and lists with mg.tensor; text goes into metadata."
            )
    for key, value in text.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(
                f"save: expected metadata to map strings to strings, got {key!r}: {value!r}."
            )
    evaluate(*named.values())  # together: what they share is computed once
    content = _serialized(
        {key: (value.dtype.name, value.shape, export_bytes(value)) for key, value in named.items()},
        text or None,
    )
    with replacing(path) as file:
        file.write(content)


def _serialized(
    blocks: dict[str, tuple[str, tuple[int, ...], memoryview]], metadata: dict[str, str] | None
) -> bytes:
    """The file's content, from each tensor's dtype, shape and bytes."""
    import safetensors

    serialize: Any = safetensors.serialize
    specs: dict[str, Any] = {}
    memory: list[memoryview] = []  # kept until the end: a spec holds only the address
    for key, (dtype, shape, data) in blocks.items():
        if hasattr(safetensors, "TensorSpec"):
            block, address = _addressed(data)
            memory.append(block)
            specs[key] = safetensors.TensorSpec(
                dtype=dtype, shape=shape, data_ptr=address, data_len=len(block)
            )
        else:  # before 0.8
            specs[key] = {"dtype": dtype, "shape": shape, "data": bytes(data)}
    return serialize(specs, metadata=metadata)


def _addressed(data: memoryview) -> tuple[memoryview, int]:
    """The bytes, copied if they are read-only, and their address."""
    if not len(data):
        return data, 0
    if data.readonly:
        data = memoryview(bytearray(data))
    return data, ctypes.addressof(ctypes.c_char.from_buffer(data))


def load(path: _Path, device: Any = None) -> dict[str, Tensor]:
    """Read a safetensors file. It holds numbers and text only: loading runs no code from it.

    Args:
        path: the file.
        device: where the tensors go; the default device when not given.

    Raises:
        DataError: the file is truncated, corrupted, or has a type that minigrad lacks.
    """
    import safetensors

    place = as_device(device, "load: device")
    backend = backend_of(place)
    library: Any = safetensors
    content = Path(path).read_bytes()
    try:
        entries: list[tuple[str, dict[str, Any]]] = library.deserialize(content)
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{os.fspath(path)}: expected a whole safetensors file, got {len(content)} bytes that "
            f"are not ({error}). The file is truncated or corrupted."
        ) from error
    del content
    state: dict[str, Tensor] = {}
    for key, entry in sorted(entries, key=itemgetter(0)):  # they come in no particular order
        dtype = _dtype(path, key, entry["dtype"])
        # Copied into memory of ours, which is aligned and which kernels may read a little past.
        storage = backend.from_bytes(memoryview(entry["data"]))
        state[key] = wrap(leaf(storage, tuple(entry["shape"]), dtype, place))
    return state


def _dtype(path: _Path, key: str, code: str) -> DType:
    if code not in _CODES:
        raise DataError(
            f"{os.fspath(path)}: expected tensor {key!r} to be one of {', '.join(_CODES)}, "
            f"got {code}. Convert it before saving."
        )
    return _CODES[code]


def load_metadata(path: _Path) -> dict[str, str]:
    """The text that `save` was given as metadata, {} if none. Reads only the file's header.

    Raises:
        DataError: the file does not start with a safetensors header.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 8 + length <= size else b""
    try:
        return dict(json.loads(header).get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{os.fspath(path)}: expected a safetensors header, got {size} bytes that do not "
            "start with one. The file is truncated or corrupted."
        ) from error
