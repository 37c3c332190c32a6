"""The contract between a backend and everything above it: what a kind of device must provide.

`minigrad.device` knows each kind of device by a module, its `Platform`. That gives a `Backend` for
each device, and the backend its kernels (`Library`), its programs (`Executable`) and what assembles
batches (`BatchStage`). The type checker holds a backend to these protocols where its functions
return one, and `tests/test_backend_contract.py` tests what each member does, on every device.

A backend's memory is opaque to the layers above: they keep a `DeviceBuffer` and give it back to the
same backend. All errors of a device that cannot be used, or has too little memory, are
`DeviceError`.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from minigrad.backend.batches import Assembly
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Program
from minigrad.backend.loopnest import LoopNest
from minigrad.dtype import DType


class DeviceBuffer(Protocol):
    """Memory of a device. It is given back when the last reference to this object goes."""

    address: int  # of the first byte, in the device's own address space
    nbytes: int
    owner: object  # whose memory this is, kept alive; None where it is the backend's own


B = TypeVar("B", bound=DeviceBuffer)  # the buffers of one backend
B_in = TypeVar("B_in", bound=DeviceBuffer, contravariant=True)
B_out = TypeVar("B_out", bound=DeviceBuffer, covariant=True)
G = TypeVar("G")  # what one step of a batch stage hands to the other


class Library(Protocol):
    """The kernels of a device. Each call appends launches to a program and computes nothing yet.

    `out` is written whole; it overlaps no input. Operands may have any strides, 0 and negative ones
    included; `out` has no two elements in one place. Nothing is launched for an empty `out`. What
    a launch reads and writes it names by Pointers: the compiler places temporaries by them.

    Raises: TypeError for dtypes that a kernel does not compute with, ValueError for shapes that do
    not fit; `minigrad.backend.checks` has these errors, the same for every device.
    """

    def loop_nest(self, program: Program, nest: LoopNest, /) -> None:
        """What a fused group of elementwise ops, views and reductions computes."""

    def dot(self, program: Program, a: Operand, b: Operand, out: Operand, /) -> None:
        """out = a @ b. Shapes: a (B, M, K), b (B, K, N) -> out (B, M, N)."""

    def conv2d(
        self, program: Program, x: Operand, w: Operand, out: Operand, /, *, window: Window,
        groups: int,
    ) -> None:  # fmt: skip
        """Cross-correlation. Shapes: x (N, C, H, W), w (O, C/groups, KH, KW) -> (N, O, OH, OW)."""

    def window_sum(self, program: Program, x: Operand, out: Operand, /, *, window: Window) -> None:
        """The sum of every window of x."""

    def window_max(self, program: Program, x: Operand, out: Operand, /, *, window: Window) -> None:
        """The maximum of every window of x; NaN propagates."""

    def window_select(
        self, program: Program, x: Operand, u: Operand, out: Operand, /, *, window: Window
    ) -> None:
        """The element of u at the place of each window's maximum in x, 0 for an empty window."""

    def window_scatter(
        self, program: Program, x: Operand, g: Operand, out: Operand, /, *, window: Window
    ) -> None:
        """The adjoint of `window_select`: each element of g added where its window's maximum is."""

    def take(self, program: Program, x: Operand, indices: Operand, out: Operand, /) -> None:
        """out[a, i, b] = x[a, indices[i], b]. An index out of range makes the run raise."""

    def scatter_add(
        self, program: Program, indices: Operand, updates: Operand, out: Operand, /
    ) -> None:
        """The adjoint of `take`, from zeros: out[a, indices[i], b] += updates[a, i, b]."""

    def argmax(self, program: Program, x: Operand, out: Operand, /) -> None:
        """The place of the first maximum, or NaN, along the middle axis: (A, R, B) -> (A, B)."""

    def random_bits(self, program: Program, state: Operand, out: Operand, /) -> None:
        """The int32 words of [Note: random layout] from [seed, counter]: the same everywhere."""


class Executable(Protocol[B_in]):
    """A program whose launches are compiled and whose temporaries have their places."""

    def run(self, buffers: Sequence[B_in], constants: Sequence[float], /) -> None:
        """Run all launches, in order, with these bound buffers and run-time constants.

        Returns at once where the device runs by itself. The caller does not change `constants`
        afterwards: the same list is known to hold the same values.

        Raises:
            IndexError: a kernel met an index out of range; on a device that runs by itself, when
                a value is next looked at (`to_bytes`, `synchronize`).
        """


class BatchStage(Protocol[B_out, G]):
    """Makes finished batches of stored samples: see `minigrad.backend.batches`."""

    def gather(self, samples: memoryview, words: array[int], labels: memoryview, /) -> G:
        """Start a batch. Any thread may call it; no reference to the arguments is kept.

        Args:
            samples: the bytes of all stored samples.
            words: for each sample of the batch its row, top, left and whether it is mirrored.
            labels: the bytes of one label for each sample of the batch.
        """
        ...

    def finish(self, gathered: G, /) -> tuple[B_out, B_out]:
        """The memory of x (N, C, height, width), float32, and of the labels.

        Called by the thread that computes with them.
        """
        ...


class Backend(Protocol[B]):
    """One device: its memory, its programs, and its order with other libraries' work."""

    @property
    def addition_bytes(self) -> float:
        """Bytes moved to or from memory in the time that an addition of one element takes."""
        ...

    @property
    def host_readable(self) -> bool:
        """Whether looking at a value waits for nothing."""
        ...

    @property
    def processors(self) -> int:
        """Cores or multiprocessors: how many shares of a kernel should be at work at a time."""
        ...

    # Memory. Sizes are in bytes.

    def allocate(self, nbytes: int, purpose: str = "", /) -> B:
        """Uninitialised memory. `purpose` is named in the DeviceError if there is not enough."""
        ...

    def from_bytes(self, data: memoryview, /) -> B:
        """A copy of contiguous bytes of the host, which may change afterwards."""
        ...

    def to_bytes(self, buffer: B, nbytes: int, /) -> memoryview:
        """The first `nbytes` bytes for the host to read, format "B", when they are computed.

        Raises:
            IndexError: see `Executable.run`.
        """
        ...

    def borrow(self, address: int, nbytes: int, owner: object, /) -> B:
        """Memory of another object on this device, shared; `owner` is kept alive."""
        ...

    def copy_from_address(self, address: int, nbytes: int, owner: object, /) -> B:
        """A copy of dense memory on this device, which `owner` keeps alive until it is made."""
        ...

    def packed(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType,
        owner: object, /,
    ) -> B:  # fmt: skip
        """A row-major copy of memory on this device with `strides` in bytes, of `owner`'s."""
        ...

    def receive(self, source: Backend[Any], buffer: Any, nbytes: int, /) -> B:
        """A copy of the first `nbytes` of a buffer that belongs to the backend `source`."""
        ...

    # Programs

    def library(self) -> Library:
        """The kernels that the compiler lowers to. Imports what compiles them."""
        ...

    def executable(
        self,
        program: Program,
        offsets: Mapping[int, int],
        arena_bytes: int,
        bound: Sequence[int],
        constants: Sequence[DType],
        /,
    ) -> Executable[B]:
        """Compile a program and give its temporaries their memory.

        Args:
            program: the launches that calls of the library have appended.
            offsets: slot -> its place among `arena_bytes` of memory that programs share, in bytes.
                It holds nothing from one run to the next.
            bound: all other slots, in the order in which `run` is given their buffers.
            constants: the dtype of each run-time constant.
        """
        ...

    def batch_stage(self, assembly: Assembly, /) -> BatchStage[B, Any]:
        """What the data loader makes batches with."""
        ...

    def synchronize(self) -> None:
        """Return when all that was launched has finished.

        Raises:
            IndexError: see `Executable.run`.
        """

    # Other libraries. They number streams as DLPack and the CUDA array interface do.

    @property
    def stream(self) -> int | None:
        """The stream that work is launched on, None for a device that has no streams."""
        ...

    def wait_for(self, caller: str, stream: int | None, /) -> None:
        """What is launched from now on comes after what another library's stream holds.

        Args:
            caller: the function, for errors.
            stream: the number; None for the default stream, or on a device without streams.

        Raises:
            BufferError or ValueError: the device has no such stream.
        """

    def hold(self, caller: str, stream: int | None, /) -> None:
        """What another library's stream gets from now on comes after what has been launched.

        Arguments and errors as for `wait_for`.
        """

    def lend(self, buffer: B, /) -> object:
        """What to hold on to while another library uses a buffer."""
        ...


class Platform(Protocol):
    """A kind of device, as the module that `minigrad.device` imports when it is first asked for.

    Importing it needs none of the device's libraries.
    """

    @property
    def dtypes(self) -> Collection[DType]:
        """Those that it computes with; it holds values of any dtype."""
        ...

    @property
    def dlpack_types(self) -> tuple[int, ...]:
        """DLPack's numbers for its memory, that of the backend's own first."""
        ...

    def why_unusable(self, computing: bool = True, /) -> str | None:
        """None when such devices can be used, else the reason and the cure.

        Without `computing` it is about their memory alone, which may need less.
        """
        ...

    def device(self, index: int, /) -> Backend[Any]:
        """Device number `index`, the same object each time.

        Raises:
            DeviceError: there is none.
        """
        ...

    def index_of(self, address: int, /) -> int:
        """The device that memory belongs to; 0 for no memory.

        Raises:
            DeviceError: it belongs to none of these.
        """
        ...
