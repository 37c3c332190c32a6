"""The tables of a program's kernels: one array of words, filled once and patched at each run."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence

from minigrad.backend.launch import Constant, Pointer, Program
from minigrad.dtype import DType


class Tables:
    """The words of all launches, one after the other; launch i's start at `starts[i]`.

    Args:
        offsets: slot -> its place in the arena, in bytes.
        bound: the slots that are given at each run, in this order.
        constants: the dtype of each run-time constant.
        fixed: slot -> address, for those that never move.
    """

    def __init__(
        self,
        program: Program,
        offsets: Mapping[int, int],
        bound: Sequence[int],
        constants: Sequence[DType],
        fixed: Mapping[int, int] | None = None,
    ):
        fixed = fixed or {}
        self._base = 0  # the arena's address that the tables hold
        self._known: Sequence[float] | None = None  # the constants that they hold
        self._placed: list[tuple[int, int]] = []  # word, byte offset in the arena
        self._pointers: list[tuple[int, int, int]] = []  # word, position in bound, byte offset
        self._constants: list[tuple[int, int]] = []  # word, constant
        self._is_float = [d.is_floating for d in constants]
        position = {slot: i for i, slot in enumerate(bound)}
        words: list[int] = []
        self.starts: list[int] = []
        for launch in program.launches:
            self.starts.append(len(words))
            for word in launch.args:
                value = 0
                if isinstance(word, Pointer):
                    if word.slot in fixed:
                        value = fixed[word.slot] + word.offset
                    elif word.slot in offsets:
                        self._placed.append((len(words), offsets[word.slot] + word.offset))
                    else:
                        self._pointers.append((len(words), position[word.slot], word.offset))
                elif isinstance(word, Constant):
                    self._constants.append((len(words), word.slot))
                else:
                    value = float_bits(word) if isinstance(word, float) else int(word)
                words.append(value)
        self.words = array("q", words)

    def bind(self, base: int, addresses: Sequence[int], constants: Sequence[float]) -> None:
        """Fill in the arena's address, those of the bound slots, and the constants.

        The same list of constants is known to hold the same values.
        """
        words = self.words
        if base != self._base:
            for word, offset in self._placed:
                words[word] = base + offset
            self._base = base
        for word, which, offset in self._pointers:
            words[word] = addresses[which] + offset
        if constants is not self._known:
            for word, which in self._constants:
                value = constants[which]
                words[word] = float_bits(value) if self._is_float[which] else int(value)
            self._known = constants


def float_bits(value: float) -> int:
    """The bits of a float64 as a signed 64-bit integer."""
    return struct.unpack("<q", struct.pack("<d", value))[0]
