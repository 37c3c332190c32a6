"""A third device: plain Python on the host's memory, written from the contract of a backend alone.

It shows that `minigrad.backend.interface` is all that a device has to provide. Nothing is compiled:
a kernel is a Python function of the program's memory, which runs when the program does.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gather_definitions as gathers
import window_definitions as windows
from cases import ELEMENTWISE
from conv_definitions import Case, plain
from reference import Values, philox, positions, rounded

from minigrad.backend import checks, interface
from minigrad.backend.batches import Assembly
from minigrad.backend.debug import for_purpose
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Pointer, Program
from minigrad.backend.loopnest import Access, LoopNest
from minigrad.dtype import ALL, DType
from minigrad.errors import DeviceError

MEANING = {row.primitive: row.meaning for row in ELEMENTWISE if row.meaning}

dtypes = frozenset(d for d in ALL if d.everywhere)
dlpack_types = (12,)  # kDLExtDev


def why_unusable(computing: bool = True) -> str | None:
    return None


def device(index: int) -> interface.Backend[DeviceBuffer]:
    if index:
        raise DeviceError(f"toy:{index}: expected device 0, got {index}. There is one.")
    return _toy


def index_of(address: int) -> int:
    return 0


# --- memory ---------------------------------------------------------------------------------------


class DeviceBuffer:
    def __init__(self, nbytes: int, purpose: str = ""):
        try:
            self._array = (ctypes.c_char * nbytes)()
        except (MemoryError, OverflowError, ValueError):
            raise DeviceError(
                f"toy: out of memory: asked for {nbytes} bytes{for_purpose(purpose)}."
            ) from None
        self.address, self.nbytes = ctypes.addressof(self._array), nbytes
        self.owner: object = None

    @property
    def view(self) -> memoryview:
        return memoryview(self._array).cast("B")


class Borrowed(DeviceBuffer):
    def __init__(self, address: int, nbytes: int, owner: object):
        self._array = (ctypes.c_char * nbytes).from_address(address)
        self.address, self.nbytes, self.owner = address, nbytes, owner


class Memory:
    """What a running program's kernels see: its slots, and the values of its constants."""

    def __init__(self, slots: Mapping[int, memoryview], constants: Sequence[float]):
        self._slots, self.constants = slots, constants

    def elements(self, slot: int, dtype: DType) -> Any:
        """A slot as a writable array of elements."""
        view = self._slots[slot]
        return view[: view.nbytes // dtype.itemsize * dtype.itemsize].cast(dtype.format)

    def read(self, x: Operand) -> Values:
        """The elements in row-major order."""
        elements = self.elements(x.slot, x.dtype)
        return [elements[place] for place in _places(x)]

    def write(self, x: Operand, values: Values) -> None:
        """Store elements that come in row-major order, rounded to the dtype."""
        elements = self.elements(x.slot, x.dtype)
        for place, value in zip(_places(x), rounded(values, x.dtype), strict=True):
            elements[place] = value


def _place(strides: Sequence[int], index: Sequence[int], offset: int) -> int:
    return offset + sum(i * s for i, s in zip(index, strides, strict=True))


def _places(x: Operand) -> list[int]:
    return [_place(x.strides, index, x.offset) for index in positions(x.shape)]


# --- programs -------------------------------------------------------------------------------------


class Kernel:
    source = "Python"

    def __init__(self, name: str, run: Callable[[Memory], None]):
        self.name, self.run = name, run


class Executable:
    def __init__(
        self, program: Program, offsets: Mapping[int, int], arena_bytes: int, bound: Sequence[int]
    ):
        self._program, self._offsets, self._bound = program, offsets, bound
        self._arena = DeviceBuffer(arena_bytes)

    def run(self, buffers: Sequence[DeviceBuffer], constants: Sequence[float]) -> None:
        slots = {slot: self._arena.view[offset:] for slot, offset in self._offsets.items()}
        slots |= {slot: b.view for slot, b in zip(self._bound, buffers, strict=True)}
        memory = Memory(slots, constants)
        for launch in self._program.launches:
            kernel: Any = launch.kernel
            kernel.run(memory)


class BatchStage:
    def __init__(self, assembly: Assembly):
        self._assembly = assembly

    def gather(self, samples: memoryview, words: array[int], labels: memoryview) -> Any:
        channels, height, width = self._assembly.geometry
        rows, columns = self._assembly.crop
        stored: Any = samples.cast("B").cast(self._assembly.code)
        x = array("f")
        for n in range(0, len(words), 4):
            row, top, left, mirrored = words[n : n + 4]
            for c, i, j in positions((channels, rows, columns)):
                y, z = top + i, left + (columns - 1 - j if mirrored else j)
                inside = 0 <= y < height and 0 <= z < width
                value = stored[((row * channels + c) * height + y) * width + z] if inside else 0
                x.append(value * self._assembly.scale[c] + self._assembly.shift[c])
        return _toy.from_bytes(memoryview(x)), _toy.from_bytes(labels)

    def finish(self, gathered: Any) -> tuple[DeviceBuffer, DeviceBuffer]:
        return gathered


# --- kernels --------------------------------------------------------------------------------------


class Library:
    def loop_nest(self, program: Program, nest: LoopNest) -> None:
        name = "_".join(nest.ops) or "copy"
        slots = [access.slot for access in nest.accesses()]
        _launch(program, name, slots, lambda memory: _Interpreter(nest, memory)())

    def dot(self, program: Program, a: Operand, b: Operand, out: Operand) -> None:
        checks.require_product(a, b, out)
        (batch, m, k), n = a.shape, b.shape[2]

        def product(x: Values, y: Values) -> Values:
            return [
                sum(x[(i * m + p) * k + r] * y[(i * k + r) * n + q] for r in range(k))
                for i, p, q in positions((batch, m, n))
            ]

        _define(program, "dot", product, a, b, out)

    def conv2d(
        self, program: Program, x: Operand, w: Operand, out: Operand, window: Window, groups: int
    ) -> None:
        checks.require_convolution(x, w, out, window, groups)
        steps = window.stride, window.padding, window.input_dilation, window.dilation
        case = Case(x.shape, w.shape, *steps, groups)
        _define(program, "conv2d", lambda *values: plain(case, *values), x, w, out)

    def window_sum(self, program: Program, x: Operand, out: Operand, window: Window) -> None:
        _window(program, "window_sum", windows.reference_sum, (x,), out, x.dtype.name, window)

    def window_max(self, program: Program, x: Operand, out: Operand, window: Window) -> None:
        _window(program, "window_max", windows.reference_max, (x,), out, x.dtype.name, window)

    def window_select(
        self, program: Program, x: Operand, u: Operand, out: Operand, window: Window
    ) -> None:
        def select(_: str, *arguments: Any) -> Values:
            return windows.reference_select(*arguments)

        _window(program, "window_select", select, (x, u), out, x.dtype.name, window)

    def window_scatter(
        self, program: Program, x: Operand, g: Operand, out: Operand, window: Window
    ) -> None:
        checks.require_numeric("window_scatter", x, g, out)

        def scatter(*values: Values) -> Values:
            return windows.reference_scatter(x.dtype.name, *values, x.shape, g.shape, window)

        _define(program, "window_scatter", scatter, x, g, out)

    def take(self, program: Program, x: Operand, indices: Operand, out: Operand) -> None:
        checks.require_indexed("take", x, out, indices)

        def take(values: Values, places: Values) -> Values:
            _require_inside("take", places, x.shape[1])
            return gathers.reference_take(values, places, x.shape)

        _define(program, "take", take, x, indices, out)

    def scatter_add(
        self, program: Program, indices: Operand, updates: Operand, out: Operand
    ) -> None:
        checks.require_indexed("scatter_add", out, updates, indices)
        checks.require_additive(out)

        def scatter(places: Values, values: Values) -> Values:
            _require_inside("scatter_add", places, out.shape[1])
            return gathers.reference_scatter_add(places, values, out.shape)

        _define(program, "scatter_add", scatter, indices, updates, out)

    def argmax(self, program: Program, x: Operand, out: Operand) -> None:
        checks.require_argmax(x, out)
        _define(program, "argmax", lambda v: gathers.reference_argmax(v, x.shape), x, out)

    def random_bits(self, program: Program, state: Operand, out: Operand) -> None:
        checks.require_random_bits(state, out)

        def bits(state: Values) -> Values:
            seed, counter = (n % (1 << 64) for n in state)
            blocks = [philox((counter + b) % (1 << 64), seed) for b in range(-(-out.size // 4))]
            return [word for block in blocks for word in block][: out.size]

        _define(program, "random_bits", bits, state, out)


def _launch(
    program: Program, name: str, slots: Sequence[int], run: Callable[[Memory], None]
) -> None:
    program.launch(Kernel(name, run), tuple(map(Pointer, slots)), 1)


def _define(program: Program, name: str, f: Callable[..., Values], *operands: Operand) -> None:
    """A kernel that is a function from the values of its inputs to those of its output."""
    *inputs, out = operands
    if out.size:
        slots = [x.slot for x in operands]
        _launch(program, name, slots, lambda m: m.write(out, f(*map(m.read, inputs))))


def _window(
    program: Program, name: str, f: Any, inputs: tuple[Operand, ...], out: Operand, dtype: str,
    window: Window,
) -> None:  # fmt: skip
    checks.require_numeric(name, *inputs, out)
    shapes = inputs[0].shape, out.shape
    _define(program, name, lambda *v: f(dtype, *v, *shapes, window), *inputs, out)


def _require_inside(caller: str, indices: Values, length: int) -> None:
    for i in indices:
        if not -length <= i < length:
            raise IndexError(checks.out_of_range(caller, length).format(value=i))


class _Interpreter:
    """One run of a loop nest: kept points, in each the passes over reduced points."""

    def __init__(self, nest: LoopNest, memory: Memory):
        self.nest, self.memory = nest, memory
        self.results: dict[int, Any] = {}  # of the reductions, at the kept point

    def __call__(self) -> None:
        for kept in self._points(True):
            for level in range(self.nest.passes):
                self._pass(level, kept)

    def _points(self, kept: bool) -> Any:
        """All positions along the kept axes, or along the others; 0 along the rest."""
        axes = zip(self.nest.shape, self.nest.kept, strict=True)
        return positions(tuple(n if is_kept is kept else 1 for n, is_kept in axes))

    def _pass(self, level: int, kept: tuple[int, ...]) -> None:
        nest = self.nest
        reductions = {n: r for n, r in enumerate(nest.reductions) if r.level == level}
        terms: dict[int, Values] = {n: [] for n in reductions}
        for reduced in self._points(False):
            point = tuple(i + j for i, j in zip(kept, reduced, strict=True))
            values: dict[int, Any] = {}
            for k in nest.cone(nest.roots(level)):
                values[k] = self._value(k, point, values)
            for n, r in reductions.items():
                terms[n].append(values[r.expression])
            for s in nest.stores:
                if s.level == level:
                    self._store(s.access, point, values[s.expression])
        for n, r in reductions.items():
            (self.results[n],) = rounded([_reduced(r.kind, r.dtype, terms[n])], r.dtype)
            self._store(r.access, kept, self.results[n])

    def _value(self, k: int, point: tuple[int, ...], values: dict[int, Any]) -> Any:
        e, dtype = self.nest.expressions[k], self.nest.types[k]
        if e[0] == "load":
            place = _place(e[1].strides, point, e[1].offset)
            value = self.memory.elements(e[1].slot, dtype)[place]
        elif e[0] == "const":
            value = self.memory.constants[e[1]]
        elif e[0] == "index":
            value = _place(e[1].coefficients, point, e[1].offset)
        elif e[0] == "reduction":
            value = self.results[e[1]]
        elif e[0] == "cast":
            value = values[e[2]]
            if dtype.kind in ("int", "uint"):
                value = math.trunc(value) if math.isfinite(value) else 0
        else:
            value = MEANING[e[0]](*(values[a] for a in e[2:]))
        return rounded([value], dtype)[0]

    def _store(self, access: Access, point: tuple[int, ...], value: Any) -> None:
        elements = self.memory.elements(access.slot, access.dtype)
        elements[_place(access.strides, point, access.offset)] = value


def _reduced(kind: str, dtype: DType, terms: Values) -> Any:
    if kind == "sum":
        return sum(terms)
    low = 0 if dtype.kind in ("uint", "bool") else -(1 << (8 * dtype.itemsize - 1))
    best = -math.inf if dtype.is_floating else low
    for x in terms:
        best = MEANING["maximum"](x, best)
    return best


# --- the device -----------------------------------------------------------------------------------


class Backend:
    addition_bytes = 1.0
    host_readable = True
    processors = 1
    stream = None

    def allocate(self, nbytes: int, purpose: str = "") -> DeviceBuffer:
        return DeviceBuffer(nbytes, purpose)

    def from_bytes(self, data: memoryview) -> DeviceBuffer:
        buffer = DeviceBuffer(data.nbytes)
        buffer.view[:] = data.cast("B")
        return buffer

    def to_bytes(self, buffer: DeviceBuffer, nbytes: int) -> memoryview:
        return buffer.view[:nbytes]

    def borrow(self, address: int, nbytes: int, owner: object) -> DeviceBuffer:
        return Borrowed(address, nbytes, owner)

    def copy_from_address(self, address: int, nbytes: int, owner: object) -> DeviceBuffer:
        return self.from_bytes(Borrowed(address, nbytes, owner).view)

    def packed(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType,
        owner: object,
    ) -> DeviceBuffer:  # fmt: skip
        starts = [_place(strides, index, address) for index in positions(shape)]
        data = b"".join(ctypes.string_at(start, dtype.itemsize) for start in starts)
        return self.from_bytes(memoryview(data))

    def receive(self, source: interface.Backend[Any], buffer: Any, nbytes: int) -> DeviceBuffer:
        return self.from_bytes(source.to_bytes(buffer, nbytes))

    def library(self) -> Library:
        return Library()

    def executable(
        self, program: Program, offsets: Mapping[int, int], arena_bytes: int,
        bound: Sequence[int], constants: Sequence[DType],
    ) -> Executable:  # fmt: skip
        return Executable(program, offsets, arena_bytes, bound)

    def batch_stage(self, assembly: Assembly) -> BatchStage:
        return BatchStage(assembly)

    def synchronize(self) -> None:
        pass

    def wait_for(self, caller: str, stream: int | None) -> None:
        if stream is not None:
            raise BufferError(f"{caller}: expected stream None, got {stream}.")

    hold = wait_for

    def lend(self, buffer: DeviceBuffer) -> object:
        return buffer


_toy = Backend()
