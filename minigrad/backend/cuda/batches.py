"""Batches on a GPU: the host only gathers, and one kernel does all that is done per pixel.

The loader's thread collects the stored bytes of a batch in pinned memory, with its labels and what
says how to crop and mirror, and starts one copy. Bytes, not floats, cross the bus. The thread that
computes makes the stream wait for the copy and launches the kernel, which writes x and the labels:
it does not wait for anything itself. See [Note: one stream].
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

from minigrad.backend.batches import Assembly
from minigrad.backend.cuda.prelude import THREADS, divisor_words
from minigrad.backend.cuda.runtime.jit import Kernel, compile_kernel
from minigrad.backend.cuda.runtime.memory import CopyBuffer, DeviceBuffer
from minigrad.backend.launch import Pointer, Program

_X, _LABELS, _ARRIVED, _CONSTANTS = range(4)  # slots

# A thread for each element of x. The first threads also move the labels, as 32-bit words.
_SOURCE = """\
KERNEL {{
    float* x = array_at<float>(table[0]);
    u32* labels = array_at<u32>(table[1]);
    const {stored}* samples = array_at<const {stored}>(table[2]);
    const i64* words = array_at<const i64>(table[3]);  // row, top, left, mirrored of each sample
    const u32* arrived = array_at<const u32>(table[4]);
    const {constant}* constants = array_at<const {constant}>(table[5]);
    const {index} size = ({index})table[6], label_words = ({index})table[7];
    const i64 height = table[8], width = table[9];
    const {divisor} columns(table + 10), rows(table + 12), channels(table + 14);
    const {index} flat = ({index})blockIdx.x * {threads} + threadIdx.x;
    if (flat < label_words) labels[flat] = read(arrived + flat);
    if (flat >= size) return;
    const {index} line = columns.quotient(flat), j = flat - line * ({index})columns.d;
    const {index} plane = rows.quotient(line), i = line - plane * ({index})rows.d;
    const {index} n = channels.quotient(plane), c = plane - n * ({index})channels.d;
    const i64 top = read(words + 4 * n + 1), left = read(words + 4 * n + 2);
    const i64 down = top + i;
    const i64 right = left + (read(words + 4 * n + 3) ? (i64)columns.d - 1 - j : j);
    const bool inside = (u64)down < (u64)height && (u64)right < (u64)width;
    const i64 at = (plane * height + down) * width + right;
{convert}
}}
"""
# The product is rounded by itself, as `Assembly` says: the compiler would fuse it with the sum.
_CONVERT = {
    "B": """\
    x[flat] = read(constants + 256 * c + (inside ? read(samples + at) : 0));""",
    "f": """\
    const double scale = read(constants + 2 * c), shift = read(constants + 2 * c + 1);
    x[flat] = inside ? (float)(__dmul_rn((double)read(samples + at), scale) + shift) : (float)shift;""",  # noqa: E501
}
_TYPES = {"B": ("u8", "float"), "f": ("float", "double")}


class Arriving(NamedTuple):
    """A batch whose copy has been started."""

    memory: CopyBuffer
    copied: Any  # the event after it
    count: int  # samples
    label_bytes: int


class BatchStage:
    """See `minigrad.backend.batches`."""

    def __init__(self, device: Any, assembly: Assembly):
        self._device, self._runtime, self._assembly = device, device.runtime, assembly
        self._constants = device.from_bytes(memoryview(assembly.constants()).cast("B"))
        # By the number of samples, which is another for an epoch's last batch, and bytes of labels.
        self._programs: dict[tuple[int, int], Any] = {}

    def gather(self, samples: memoryview, words: array[int], labels: memoryview) -> Arriving:
        """Start the copy of a batch."""
        size, count = self._assembly.stored_bytes, len(words) // 4
        words_at, labels_at = self._places(count)
        nbytes = labels_at + labels.nbytes
        block = self._runtime.pinned(nbytes)
        view = block.view
        for i, row in enumerate(words[::4]):
            view[i * size : (i + 1) * size] = samples[row * size : (row + 1) * size]
        view[words_at:labels_at] = memoryview(words).cast("B")
        view[labels_at:nbytes] = labels
        memory = CopyBuffer(self._runtime, nbytes)
        copied = self._runtime.upload_pinned(memory.address, block, nbytes)
        return Arriving(memory, copied, count, labels.nbytes)

    def finish(self, gathered: Arriving) -> tuple[DeviceBuffer, DeviceBuffer]:
        """The memory of x and of the labels, which the stream will have filled."""
        memory, copied, count, label_bytes = gathered
        x = DeviceBuffer(self._runtime, self._assembly.finished_bytes * count)
        labels = DeviceBuffer(self._runtime, label_bytes)
        key = count, label_bytes
        if key not in self._programs:
            self._programs[key] = self._program(count, label_bytes)
        self._runtime.ready(copied)
        try:
            self._programs[key].run([x, labels, memory, self._constants], [])
        finally:
            self._runtime.consumed()
        return x, labels

    def _places(self, count: int) -> tuple[int, int]:
        """Where words and labels lie behind the samples, in bytes."""
        words_at = -(-self._assembly.stored_bytes * count // 16) * 16
        return words_at, words_at + 32 * count

    def _program(self, count: int, label_bytes: int) -> Any:
        channels, height, width = self._assembly.geometry
        rows, columns = self._assembly.crop
        size, label_words = count * channels * rows * columns, label_bytes // 4
        words_at, labels_at = self._places(count)
        threads = max(size, label_words)
        program = Program(first_scratch=4)
        args = (
            Pointer(_X),
            Pointer(_LABELS),
            Pointer(_ARRIVED),
            Pointer(_ARRIVED, words_at),
            Pointer(_ARRIVED, labels_at),
            Pointer(_CONSTANTS),
            *(size, label_words, height, width),
            *divisor_words(columns),
            *divisor_words(rows),
            *divisor_words(channels),
        )
        kernel = _kernel(self._assembly.code, wide=threads >= 1 << 31)
        program.launch(kernel, args, -(-threads // THREADS), THREADS)
        return self._device.executable(program, {}, 0, range(4), [])


def _kernel(code: str, wide: bool) -> Kernel:
    stored, constant = _TYPES[code]
    source = _SOURCE.format(
        stored=stored,
        constant=constant,
        index="i64" if wide else "int",
        divisor="WideDivisor" if wide else "Divisor",
        threads=THREADS,
        convert=_CONVERT[code],
    )
    return compile_kernel(f"augment_{code}", source)
