"""Reading weights and statistics from a caffemodel, a binary message NetParameter."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import minigrad as mg
from layers.caffe.schema import message_class
from minigrad import Tensor

__all__ = ["load_caffemodel"]

LARGEST_FILE = (1 << 31) - 1  # bytes that protobuf can read


def load_caffemodel(path: str | Path) -> dict[str, list[Tensor]]:
    """The blobs of each layer that has some, by the layer's name; `Net.load_blobs` takes them.

    Files with layers in their old form (V1) are read as well.

    Raises:
        ValueError: no NetParameter, too large, or a blob whose shape does not fit its data.
        ImportError: the package protobuf is not installed.
    """
    from google.protobuf.message import DecodeError

    path = Path(path)
    net = message_class("NetParameter")()
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(
            f"load_caffemodel: expected at most {LARGEST_FILE:,} bytes, got {path} of {size:,}."
        )
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as e:
        raise ValueError(
            f"load_caffemodel: expected {path} to be a binary NetParameter, got {e}. A definition "
            f"in text is read by load_prototxt, a file of HDF5 not at all."
        ) from e
    return {
        layer.name: [_tensor(blob, layer.name) for blob in layer.blobs]
        for layer in (*net.layer, *net.layers)
        if layer.blobs
    }


def _tensor(blob: Any, layer: str) -> Tensor:
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    double = len(blob.double_data) > 0
    data = blob.double_data if double else blob.data
    if math.prod(shape) != len(data) or any(n < 0 for n in shape):
        raise ValueError(
            f"load_caffemodel: expected a blob of layer {layer!r} with {shape} elements, got "
            f"{len(data)}."
        )
    return mg.asarray(array("d" if double else "f", data)).reshape(shape)
