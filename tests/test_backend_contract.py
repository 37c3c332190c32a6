"""`minigrad.backend.interface`, member by member, on every device and on a third one of the tests'.

`toy_backend` is written from the contract alone: what is computed on it shows that nothing above
the backends depends on more than the contract says, or knows a device by its name.
"""

from __future__ import annotations

import ast
import inspect
import math
import random
import struct
import weakref
from array import array
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import gather_definitions as gathers
import pytest
import window_definitions as windows
from conv_definitions import Case, plain
from reference import philox
from strided_operands import Layout, dense
from strided_programs import run_on

import layers
import minigrad as mg
from examples.batchnorm_by_hand import training_closed_form
from minigrad import device as devices
from minigrad import dtype as dtypes
from minigrad.backend import interface
from minigrad.backend.batches import Assembly
from minigrad.backend.geometry import Window
from minigrad.backend.launch import Operand, Program
from minigrad.backend.loopnest import Access, LoopNest, Reduction, Store
from minigrad.device import Device, backend_of

Backend = interface.Backend[Any]


@pytest.fixture
def toy() -> Iterator[Device]:
    """A kind of device that minigrad did not know."""
    devices.register("toy", "toy_backend")
    yield Device("toy")
    devices._MODULES.pop("toy")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.slow), "toy"])
def kind(request: Any) -> str:
    """Each kind of device that this machine can use."""
    if request.param == "toy":
        request.getfixturevalue("toy")
    reason = devices.why_unusable(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def backend(kind: str) -> Backend:
    """The first device of each kind."""
    return backend_of(Device(kind), computing=True)


def f32(*values: float) -> memoryview:
    return memoryview(array("f", values)).cast("B")


def floats(backend: Backend, buffer: Any, count: int) -> list[float]:
    return backend.to_bytes(buffer, 4 * count).cast("f").tolist()


# --- members --------------------------------------------------------------------------------------


def members(protocol: type) -> dict[str, Any]:
    """What a protocol asks for, by name: functions, and None for plain values."""
    found: dict[str, Any] = dict.fromkeys(protocol.__annotations__)
    return found | {name: f for name, f in vars(protocol).items() if not name.startswith("_")}


def assert_provides(found: Any, protocol: type) -> None:
    """Every member is there, and takes all arguments that the contract gives it."""
    for name, wanted in members(protocol).items():
        assert hasattr(found, name), f"{found!r} has no {name}"
        if not inspect.isfunction(wanted):
            continue
        _, *parameters = inspect.signature(wanted).parameters.values()
        by_place = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        by_name = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
        signature = inspect.signature(getattr(found, name))
        signature.bind(*by_place, **by_name)
        signature.bind(*(p for p in by_place if p.default is p.empty), **by_name)


def scaled_program(backend: Backend) -> tuple[Program, interface.Executable[Any]]:
    """y = c * x for three float32, slot 0 into slot 1, with the run-time constant c."""
    x, y = (Access(slot, dtypes.float32, (1,), 0) for slot in (0, 1))
    expressions = [("load", x), ("const", 0, "float32"), ("mul", "float32", 0, 1)]
    nest = LoopNest((3,), (True,), expressions, [dtypes.float32] * 3, [], [Store(2, y, 0)])
    program = Program(first_scratch=2)
    backend.library().loop_nest(program, nest)
    return program, backend.executable(program, {}, 0, (0, 1), (dtypes.float32,))


ASSEMBLY = Assembly("B", (2, 3, 4), (2, 3), (0.5, 2.0), (1.0, -1.0))


def test_every_member_is_there(kind: str, backend: Backend):
    assert_provides(devices.platform(kind), interface.Platform)
    assert_provides(backend, interface.Backend)
    assert_provides(backend.library(), interface.Library)
    assert_provides(scaled_program(backend)[1], interface.Executable)
    assert_provides(backend.batch_stage(ASSEMBLY), interface.BatchStage)
    assert_provides(backend.allocate(8), interface.DeviceBuffer)


def test_a_missing_member_is_noticed():
    class Short:
        def run(self, buffers: Any) -> None:
            """Takes no constants."""

        def gather(self, samples: Any, words: Any, labels: Any) -> None:
            """The first of two steps."""

    with pytest.raises(AssertionError, match="has no finish"):
        assert_provides(Short(), interface.BatchStage)
    with pytest.raises(TypeError, match="too many positional arguments"):
        assert_provides(Short(), interface.Executable)


def test_the_platform(kind: str):
    platform = devices.platform(kind)
    assert platform.device(0) is platform.device(0)
    assert platform.index_of(0) == 0
    assert {d for d in dtypes.ALL if d.everywhere} <= set(platform.dtypes)
    assert platform.why_unusable(False) is None
    others = [devices.platform(k).dlpack_types for k in devices.kinds() if k != kind]
    assert not any(set(platform.dlpack_types) & set(numbers) for numbers in others)


def test_what_costs_are_derived_from(backend: Backend):
    assert backend.addition_bytes > 0
    assert backend.processors >= 1
    assert backend.host_readable in (False, True)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 7, 4096])
def test_bytes_there_and_back(backend: Backend, n: int):
    data = bytearray(random.Random(n).randbytes(n))
    buffer = backend.from_bytes(memoryview(data))
    expected = bytes(data)
    data[:] = bytes(n)  # the copy does not follow
    found = backend.to_bytes(buffer, n)
    assert (bytes(found), found.format) == (expected, "B")
    assert bytes(backend.to_bytes(buffer, n // 2)) == expected[: n // 2]
    assert buffer.nbytes == n
    assert buffer.owner is None


def test_there_is_not_enough_memory(backend: Backend):
    assert backend.allocate(100).nbytes == 100
    with pytest.raises(mg.DeviceError, match=rf"{1 << 55} bytes for a test"):
        backend.allocate(1 << 55, "a test")


def test_memory_of_another_object(backend: Backend):
    class Owner:
        pass

    theirs, owner = backend.from_bytes(f32(1, 2, 3, 4)), Owner()
    gone = weakref.ref(owner)
    shared = backend.borrow(theirs.address + 4, 8, owner)
    copied = backend.copy_from_address(theirs.address + 4, 8, theirs)
    assert (shared.address, shared.nbytes) == (theirs.address + 4, 8)
    assert shared.owner is owner
    assert copied.address != shared.address
    assert copied.owner is None
    assert floats(backend, shared, 2) == floats(backend, copied, 2) == [2, 3]
    del owner
    assert gone() is not None
    del shared
    backend.synchronize()
    assert gone() is None


@pytest.mark.parametrize(
    ("shape", "strides", "first"),
    [((2, 3), (4, 8), 0), ((3, 2), (8, -4), 1), ((2, 2, 2), (0, 12, 4), 0), ((2, 1), (7, 1), 0)],
)
def test_strided_memory_becomes_dense(backend: Backend, shape: Any, strides: Any, first: int):
    data = struct.pack("6f", *range(6))
    theirs = backend.from_bytes(memoryview(data))
    dtype = dtypes.float32 if strides[0] % 4 == 0 else dtypes.uint8
    start = first * dtype.itemsize
    got = backend.packed(theirs.address + start, shape, strides, dtype, theirs)
    places = (
        start + sum(i * s for i, s in zip(index, strides, strict=True))
        for index in product(*map(range, shape))
    )
    expected = b"".join(data[p : p + dtype.itemsize] for p in places)
    assert bytes(backend.to_bytes(got, len(expected))) == expected


def test_a_copy_from_every_device(backend: Backend):
    for other in devices.kinds():
        if devices.why_unusable(other) is None:
            source = backend_of(Device(other))
            there = source.from_bytes(f32(1, 2, 3))
            assert floats(backend, backend.receive(source, there, 8), 2) == [1, 2]


# --- programs -------------------------------------------------------------------------------------


def test_a_program_runs_with_any_buffers_and_constants(backend: Backend):
    program, executable = scaled_program(backend)
    for launch in program.launches:
        assert isinstance(launch.kernel.name, str)
        assert isinstance(launch.kernel.source, str)
    first, second = (backend.from_bytes(f32(*x)) for x in ((1, 2, 3), (4, 5, 6)))
    y, z = backend.allocate(12), backend.allocate(12)
    executable.run([first, y], [2.0])
    executable.run([second, z], [-1.0])
    executable.run([first, first], [10.0])
    assert floats(backend, y, 3) == [2, 4, 6]
    assert floats(backend, z, 3) == [-4, -5, -6]
    backend.synchronize()
    assert floats(backend, first, 3) == [10, 20, 30]


def test_a_nest_of_passes(backend: Backend):
    """y = x - sum(x) for each row, and its maximum: a reduction is a scalar to the passes after."""
    f, shape = dtypes.float32, (2, 5)
    x, y = Access(0, f, (5, 1), 0), Access(1, f, (5, 1), 0)
    total, most = Access(2, f, (1, 0), 0), Access(2, f, (1, 0), 2)
    expressions = [("load", x), ("reduction", 0), ("sub", "float32", 0, 1)]
    nest = LoopNest(
        shape, (True, False), expressions, [f] * 3,
        [Reduction("sum", 0, f, total, 0), Reduction("max", 2, f, most, 1)], [Store(2, y, 1)],
        {"sub": 1},
    )  # fmt: skip
    program = Program(first_scratch=3)
    backend.library().loop_nest(program, nest)
    values = [3.0, 1.0, 4.0, 1.0, 5.0, -9.0, 2.0, -6.0, -5.0, -3.0]
    buffers = [backend.from_bytes(f32(*values)), backend.allocate(40), backend.allocate(16)]
    offsets, end = {}, 0
    for slot, nbytes in enumerate(program.scratch, 3):
        offsets[slot] = end
        end += -(-nbytes // 64) * 64
    backend.executable(program, offsets, end, range(3), ()).run(buffers, ())
    sums = [sum(values[:5]), sum(values[5:])]
    expected = [v - sums[i // 5] for i, v in enumerate(values)]
    assert floats(backend, buffers[1], 10) == expected
    assert floats(backend, buffers[2], 4) == [*sums, max(expected[:5]), max(expected[5:])]


def test_temporaries_lie_in_the_shared_arena(backend: Backend):
    """Two nests, the first into slot 2 at byte 64 of the arena, the second from there."""
    f = dtypes.float32
    program = Program(first_scratch=3)
    for source, target in ((0, 2), (2, 1)):
        x, y = (Access(slot, f, (1,), 0) for slot in (source, target))
        expressions = [("load", x), ("add", "float32", 0, 0)]
        nest = LoopNest((2,), (True,), expressions, [f, f], [], [Store(1, y, 0)])
        backend.library().loop_nest(program, nest)
    buffers = [backend.from_bytes(f32(1, 2)), backend.allocate(8)]
    backend.executable(program, {2: 64}, 128, (0, 1), ()).run(buffers, ())
    assert floats(backend, buffers[1], 2) == [4, 8]


def test_an_index_out_of_range_is_an_error_once(backend: Backend):
    f, i = dtypes.float32, dtypes.int64
    program = Program(first_scratch=3)
    x, at = Operand(0, f, (1, 2, 1), (2, 1, 1)), Operand(1, i, (1,), (1,))
    backend.library().take(program, x, at, Operand(2, f, (1, 1, 1), (1, 1, 1)))
    offsets = {slot: 64 * k for k, slot in enumerate(range(3, 3 + len(program.scratch)))}
    executable = backend.executable(program, offsets, 64 * len(offsets), range(3), ())
    out = backend.allocate(4)
    for index, expected in ((2, None), (1, 8.0), (-3, None), (-2, 7.0)):
        indices = backend.from_bytes(memoryview(array("q", [index])).cast("B"))
        buffers = [backend.from_bytes(f32(7, 8)), indices, out]
        if expected is None:
            message = rf"take: expected indices in \[-2, 2\), got {index}\."
            with pytest.raises(IndexError, match=message):
                run_to_the_end(backend, executable, buffers)
        else:
            run_to_the_end(backend, executable, buffers)
            assert floats(backend, out, 1) == [expected]


def run_to_the_end(backend: Backend, executable: Any, buffers: list[Any]) -> None:
    executable.run(buffers, ())
    backend.synchronize()


# --- kernels --------------------------------------------------------------------------------------


def reversed_rows(shape: tuple[int, ...]) -> Layout:
    """The innermost axis backwards."""
    return Layout(shape, (*dense(shape).strides[:-1], -1), shape[-1] - 1, prod(shape))


def with_gaps(shape: tuple[int, ...]) -> Layout:
    """An element after each row that belongs to nothing."""
    wider = dense((*shape[:-1], shape[-1] + 1))
    return Layout(shape, wider.strides, 0, wider.size)


def turned(shape: tuple[int, ...]) -> Layout:
    """The two innermost axes exchanged in memory."""
    return Layout(shape, (*dense(shape).strides[:-2], 1, shape[-2]), 0, prod(shape))


LAYOUTS = pytest.mark.parametrize("lay", [dense, reversed_rows, with_gaps, turned])


def numbers(*shape: int, seed: int = 0) -> list[int]:
    """Small integers, so that every order of summation gives the same."""
    return [random.Random(seed + i).randint(-4, 4) for i in range(prod(shape))]


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_dot(backend: Backend, lay: Any, dtype: str):
    a, b, out = (2, 3, 4), (2, 4, 5), (2, 3, 5)
    x, y = numbers(*a), numbers(*b, seed=1)
    expected = [
        sum(x[(i * 3 + m) * 4 + k] * y[(i * 4 + k) * 5 + n] for k in range(4))
        for i, m, n in product(range(2), range(3), range(5))
    ]
    got = run_on(backend, "dot", [(dtype, lay(a), x), (dtype, lay(b), y)], dense(out), dtype)
    assert got == expected
    empty = [(dtype, dense((1, 2, 0)), []), (dtype, dense((1, 0, 2)), [])]
    assert run_on(backend, "dot", empty, dense((1, 2, 2)), dtype) == [0] * 4


@LAYOUTS
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 4, 5, 6), (6, 2, 3, 2), (2, 1), ((1, 0), (-1, 2)), groups=2),
        Case((1, 2, 4, 3), (3, 2, 2, 2), (1, 1), ((1, 1), (2, 1)), (2, 1), (1, 2)),
    ],
)
def test_conv2d(backend: Backend, lay: Any, case: Case):
    x, w = numbers(*case.x), numbers(*case.w, seed=1)
    inputs = [("float32", lay(case.x), x), ("float32", lay(case.w), w)]
    got = run_on(backend, "conv2d", inputs, dense(case.out), "float32", **case.parameters)
    assert got == plain(case, x, w)


@LAYOUTS
def test_windows(backend: Backend, lay: Any):
    shape, f = (2, 1, 5, 6), "float32"
    window = Window((2, 3), stride=(2, 1), padding=((1, 0), (0, -1)), dilation=(1, 2))
    spread = window._replace(input_dilation=(1, 2))
    x, u = numbers(*shape), numbers(*shape, seed=1)
    x[7] = math.nan
    at = (f, lay(shape), x)
    out = windows.out_shape(shape, window)
    got = run_on(backend, "window_max", [at], dense(out), f, window=window)
    assert windows.same(got, windows.reference_max(f, x, shape, out, window))
    got = run_on(backend, "window_select", [at, (f, lay(shape), u)], dense(out), f, window=window)
    assert got == windows.reference_select(x, u, shape, out, window)
    g = numbers(*out, seed=2)
    got = run_on(
        backend, "window_scatter", [at, (f, dense(out), g)], dense(shape), f, window=window
    )
    assert got == windows.reference_scatter(f, x, g, shape, out, window)
    out = windows.out_shape(shape, spread)
    got = run_on(backend, "window_sum", [(f, lay(shape), u)], dense(out), f, window=spread)
    assert got == windows.reference_sum(f, u, shape, out, spread)


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_gathers(backend: Backend, lay: Any, dtype: str):
    shape, indices = (2, 4, 3), [3, -4, 1, 1, -1]
    picked = (2, len(indices), 3)
    x = [n + 4 for n in numbers(*shape)]
    u = [n + 4 for n in numbers(*picked, seed=1)]
    at = ("int32", dense((len(indices),)), indices)
    got = run_on(backend, "take", [(dtype, lay(shape), x), at], dense(picked), dtype)
    assert got == gathers.reference_take(x, indices, shape)
    got = run_on(backend, "scatter_add", [at, (dtype, lay(picked), u)], dense(shape), dtype)
    assert got == gathers.reference_scatter_add(indices, u, shape)
    got = run_on(backend, "argmax", [(dtype, lay(shape), x)], dense((2, 3)), "int64")
    assert got == gathers.reference_argmax(x, shape)


def test_random_bits(backend: Backend):
    seed, counter = 0x1234567890ABCDE, (1 << 32) - 1
    state = ("int64", dense((2,)), [seed, counter])
    got = run_on(backend, "random_bits", [state], dense((10,)), "int32")
    words = [word for b in range(3) for word in philox(counter + b, seed)]
    assert [n % (1 << 32) for n in got] == words[:10]


def test_kernels_refuse_what_they_do_not_compute(backend: Backend):
    library, program = backend.library(), Program(first_scratch=3)
    boolean = [Operand(slot, dtypes.bool_, (1, 2, 2), (4, 2, 1)) for slot in range(3)]
    with pytest.raises(TypeError, match="dot: expected one integer or float dtype"):
        library.dot(program, *boolean)
    with pytest.raises(ValueError, match="dot: expected operands with 3 axes"):
        library.dot(program, *[Operand(s, dtypes.float32, (2, 2), (2, 1)) for s in range(3)])
    with pytest.raises(TypeError, match="take: expected int32 or int64 indices"):
        library.take(program, boolean[0], Operand(1, dtypes.float32, (1,), (1,)), boolean[2])
    assert program.launches == []


# --- batches, order -------------------------------------------------------------------------------


def test_batches(backend: Backend):
    samples = bytes(range(48))
    words = array("q", [1, 0, 0, 0, 0, 1, 1, 1, 1, -1, 2, 0])
    labels = memoryview(array("q", [5, 6, 7])).cast("B")
    stage = backend.batch_stage(ASSEMBLY)
    x, y = stage.finish(stage.gather(memoryview(bytearray(samples)), words, labels))
    expected = []
    for n in range(3):
        row, top, left, mirrored = words[4 * n : 4 * n + 4]
        for c, i, j in product(range(2), range(2), range(3)):
            down, right = top + i, left + (2 - j if mirrored else j)
            inside = 0 <= down < 3 and 0 <= right < 4
            value = samples[((row * 2 + c) * 3 + down) * 4 + right] if inside else 0
            expected.append(value * ASSEMBLY.scale[c] + ASSEMBLY.shift[c])
    assert floats(backend, x, 36) == expected
    assert backend.to_bytes(y, 24).cast("q").tolist() == [5, 6, 7]


def test_the_order_of_streams(backend: Backend):
    backend.hold("a test", None)
    backend.wait_for("a test", None)
    for order in (backend.hold, backend.wait_for):
        with pytest.raises((BufferError, ValueError), match="a test: expected"):
            order("a test", 0)
    assert (backend.stream is None) == backend.host_readable


def test_memory_that_is_lent_is_not_reused(backend: Backend):
    buffer = backend.from_bytes(f32(1, 2, 3))
    address, held = buffer.address, backend.lend(buffer)
    del buffer
    others = [backend.from_bytes(f32(9, 9, 9)) for _ in range(4)]
    assert address not in [b.address for b in others]
    assert floats(backend, backend.borrow(address, 12, held), 3) == [1, 2, 3]


def test_nothing_above_the_backends_names_a_device():
    """But where devices are listed, and where the CUDA array interface is one's own protocol."""
    root = Path(mg.__file__).parent
    allowed = {"__init__.py", "device.py", "interop/arrays.py"}
    for path in root.rglob("*.py"):
        place = path.relative_to(root).as_posix()
        if not place.startswith("backend/") and place not in allowed:
            tree = ast.parse(path.read_text())
            named = [
                n
                for n in ast.walk(tree)
                if isinstance(n, ast.Constant) and n.value in ("cpu", "cuda")
            ]
            assert not named, f"{place}:{named[0].lineno}"


# --- a third device -------------------------------------------------------------------------------


def test_batch_norm_on_a_third_device(toy: Device):
    """Forward, backward and running statistics."""
    rng = random.Random(0)
    data = [[[rng.gauss(3, 2) for _ in range(4)] for _ in range(3)] for _ in range(5)]
    cotangent = [[[rng.gauss(0, 1) for _ in range(4)] for _ in range(3)] for _ in range(5)]
    norm = layers.BatchNorm1d(3).to(toy, mg.float64)
    x = mg.tensor(data, "float64", device=toy, requires_grad=True)
    g = mg.tensor(cotangent, "float64", device=toy)
    y = norm(x)
    (y * g).sum().backward()
    assert {str(t.device) for t in (y, x.grad, norm.running_mean)} == {"toy:0"}
    with mg.no_grad():
        wanted = training_closed_form(x.detach(), norm.weight.detach(), g, norm.eps)
    for got, expected in ((x.grad, wanted.dx), (norm.weight.grad, wanted.dgamma)):
        assert flat(got) == pytest.approx(flat(expected), rel=1e-12, abs=1e-12)
    columns = [[v for sample in data for v in sample[c]] for c in range(3)]
    means = [sum(column) / 20 for column in columns]
    assert norm.running_mean.tolist() == pytest.approx([0.1 * m for m in means], rel=1e-12)


def flat(x: mg.Tensor) -> list[float]:
    return x.reshape((-1,)).tolist()


def test_a_compiled_step_on_a_third_device(toy: Device):
    w = mg.tensor([1.0, -2.0, 3.0], device=toy, requires_grad=True)
    optimizer = mg.optim.SGD([w], lr=0.25)

    @mg.compile
    def step(x: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    x = mg.tensor([1.0, 2.0, 4.0], device=toy)
    assert [step(x).item() for _ in range(3)] == [9.0, 3.75, -1.5]


def test_values_move_between_a_third_device_and_the_others(toy: Device):
    for kind in devices.kinds():
        if devices.why_unusable(kind) is None:
            x = mg.tensor([1, 2, 3], device=kind)
            assert x.to(toy).to(kind).tolist() == [1, 2, 3]
    x = mg.tensor([1.0, 2.0], device=toy)
    assert mg.from_dlpack(x).device == toy
    assert mg.from_dlpack(x).tolist() == [1, 2]
    assert mg.devices()["toy"] == "usable"
    assert repr(x) == "tensor([1., 2.], dtype=float32, device=toy:0)"


def test_batches_on_a_third_device(toy: Device):
    data = mg.data.TensorDataset(memoryview(bytes(range(24))).cast("B", (4, 1, 2, 3)), b"abcd")
    (x, y), _ = mg.data.DataLoader(data, 2, device=toy)
    assert str(x.device) == "toy:0"
    assert y.tolist() == [97, 98]
    assert [round(255 * v) for v in flat(x)] == list(range(12))


def test_errors_name_a_third_device(toy: Device):
    with pytest.raises(mg.DeviceError, match="expected 'cpu', 'cuda', 'toy' or 'toy:N', got 'tpu'"):
        mg.tensor([1.0], device="tpu")
    half = mg.tensor([1.0], "float16", device=toy)
    with pytest.raises(mg.DeviceError, match="that toy computes with, got float16"):
        half + half
    with pytest.raises(mg.DeviceError, match="toy:1: expected device 0"):
        mg.tensor([1.0], device="toy:1")
