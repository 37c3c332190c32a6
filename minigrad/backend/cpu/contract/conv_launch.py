"""A convolution of one group, and what all of its lowerings need: launches and tables."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from minigrad.backend.cpu.contract.axis import Axis
from minigrad.backend.cpu.runtime.jit import Kernel, compile_kernel
from minigrad.backend.launch import Operand, Program, contiguous_strides


@dataclass(frozen=True)
class Convolution:
    """A convolution of one group with checked shapes."""

    x: Operand  # (N, C, H, W)
    w: Operand  # (O, C, KH, KW)
    out: Operand  # (N, O, OH, OW)
    rows: Axis
    columns: Axis

    @property
    def dtype(self) -> str:
        """The name of the operands' common dtype."""
        return self.x.dtype.name

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return self.x.dtype.itemsize

    @property
    def work(self) -> int:
        """Multiply-adds, inserted zeros included."""
        return self.x.shape[0] * self.w.size * self.rows.out * self.columns.out


def divide_up(a: int, b: int) -> int:
    """The ceiling of a / b."""
    return -(-a // b)


def aligned(nbytes: int) -> int:
    """The next multiple of a cache line's 64 bytes."""
    return divide_up(nbytes, 64) * 64


def is_run(operand: Operand) -> bool:
    """Whether the pixels of each image and channel are contiguous, in order."""
    height, width = operand.shape[2:]
    by_row, by_column = operand.strides[2:]
    return (width == 1 or by_column == 1) and (height == 1 or by_row == width)


@lru_cache(maxsize=512)
def _words(values: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * max(len(values), 1))(*values)


def constant_table(program: Program, values: Iterable[int]) -> int:
    """The address of a constant table of int64 words that lives as long as the program."""
    array = _words(tuple(values))
    program.keep.append(array)
    return ctypes.addressof(array)


def named(fields: str, values: Iterable[Any]) -> dict[str, Any]:
    """Words of a kernel's table by the names of their fields."""
    return dict(zip(fields.split(), values, strict=True))


def compiled(make: Callable[..., str], *parameters: str | int) -> Kernel:
    """The kernel whose source is `make(*parameters)`."""
    name = "_".join(["conv", make.__name__, *map(str, parameters)])
    return compile_kernel(name, make(*parameters))


def launch(
    program: Program,
    make: Callable[..., str],
    parameters: Iterable[str | int],
    fields: str,
    values: Mapping[str, Any],
    extent: int,
    tasks: int,
) -> None:
    """Launch the kernel `make(*parameters)` with its table's fields filled from `values`."""
    words = tuple(values[field] for field in fields.split())
    program.launch(compiled(make, *parameters), words, extent, tasks)


def dense(program: Program, like: Operand) -> Operand:
    """Row-major scratch of the shape and dtype of `like`."""
    slot = program.scratch_slot(like.size * like.dtype.itemsize)
    return Operand(slot, like.dtype, like.shape, contiguous_strides(like.shape))
