"""What is asked of CuPy: that it exists as it is called, and what `Runtime` does with it.

The first part compares with CuPy where it is installed, which needs no GPU. The second runs
`Runtime` on a stand-in for CuPy with the same signatures.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import os
import re
import runpy
import subprocess
import sys
import threading
import weakref
from array import array
from pathlib import Path
from typing import Any

import fake_cupy
import host_cuda
import pytest

from minigrad.backend.cuda.backend import Backend
from minigrad.backend.cuda.contract import cublas, gemm
from minigrad.backend.cuda.packing import _copier, packed
from minigrad.backend.cuda.runtime import runtime as cuda_runtime
from minigrad.backend.cuda.runtime.jit import Kernel
from minigrad.backend.launch import Operand, Program
from minigrad.config import config
from minigrad.dtype import float32, float64
from minigrad.errors import DeviceError

needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="the package cupy is not installed"
)


def parameters(signature: str) -> list[str]:
    """The names in "name(int a, b=0) -> int", as Cython writes signatures."""
    inner = re.search(r"\((.*?)\)", signature.splitlines()[0])
    assert inner, signature
    names = [part.partition("=")[0].split()[-1] for part in inner[1].split(",") if part.strip()]
    return [name for name in names if name != "self"]


def described(function: Any) -> list[str]:
    """The parameters of CuPy's own function or method."""
    try:
        return [p for p in inspect.signature(function).parameters if p != "self"]
    except (TypeError, ValueError):
        return parameters(function.__doc__)


def expected(function: Any) -> list[str]:
    return [p for p in inspect.signature(function).parameters if p != "self"]


@needs_cupy
@pytest.mark.parametrize("name", ["runtime", "nvrtc"])
def test_functions_of_cupy(name):
    module = getattr(importlib.import_module("cupy.cuda"), name)
    for function in fake_cupy.RUNTIME if name == "runtime" else fake_cupy.NVRTC:
        assert described(getattr(module, function.__name__)) == expected(function), function


@needs_cupy
def test_names_of_cupy():
    import cupy

    for name, value in fake_cupy.CONSTANTS.items():
        assert getattr(cupy.cuda.runtime, name) == value
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.nvrtc.NVRTCError, RuntimeError)
    assert described(cupy.cuda.alloc_pinned_memory) == ["size"]


@needs_cupy
@pytest.mark.parametrize("ours", fake_cupy.CLASSES, ids=lambda c: c.__name__)
def test_classes_of_cupy(ours):
    import cupy

    theirs = getattr(cupy.cuda, ours.__name__)
    for name in fake_cupy.CLASSES[ours]:
        there = getattr(theirs, name)
        if isinstance(getattr(ours, name), property):
            assert not callable(there), name
        elif name == "__init__" and re.match(rf"{ours.__name__}\(", theirs.__doc__):
            assert parameters(theirs.__doc__) == expected(ours.__init__)
        else:  # later versions of CuPy may have more at the end
            names = expected(getattr(ours, name))
            assert described(there)[: len(names)] == names, name


@needs_cupy
def test_importing_cupy_warns_of_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import cupy; from cupy.cuda import nvrtc"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@needs_cupy
def test_the_library_that_cupy_loads_has_what_is_called():
    try:
        from cupy_backends.cuda.libs import cublas as _  # noqa: F401
    except ImportError as error:
        pytest.skip(f"cuBLAS is not installed: {str(error).splitlines()[0]}")
    library = cublas.library()
    assert library.cublasGetStatusString(1) == b"the library was not initialized"
    assert len(library.cublasGemmStridedBatchedEx_64.argtypes) == 23


# With the stand-in for CuPy.


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """The real backend of the second of two GPUs."""
    if host_cuda.why_unusable():
        pytest.skip("no g++ to compile kernels with")
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(cuda_runtime, "runtimes", cuda_runtime.Runtime)
    monkeypatch.setattr(
        "minigrad.backend.cuda.runtime.native.private_directory", lambda name: tmp_path
    )
    fake_cupy.compiled.clear()
    cublas.library.cache_clear()
    yield Backend(1)
    cublas.library.cache_clear()
    _copier.cache_clear()


def floats(backend: Any, buffer: Any, code: str = "f") -> list[float]:
    return backend.to_bytes(buffer, buffer.nbytes).cast(code).tolist()


def placed(backend: Any, values: Any, code: str = "f") -> Any:
    return backend.from_bytes(memoryview(array(code, values)).cast("B"))


def test_memory(backend, monkeypatch):
    runtime = backend.runtime
    monkeypatch.setattr(cuda_runtime, "_MOST_UPLOADED", 16)
    x = placed(backend, range(10))  # in three pieces
    assert floats(backend, x) == list(range(10))
    assert floats(backend, x.copied()) == list(range(10))
    runtime.clear(x.address + 4, 8)
    assert floats(backend, x) == [0, 0, 0, *range(3, 10)]
    with runtime._device:
        assert runtime._pool.used_bytes() > 0
    assert runtime.processors == fake_cupy.PROCESSORS
    assert fake_cupy.getDevice() == 0  # as it was
    block = runtime.pinned(8)
    block.view[:8] = bytes(range(8))
    memory = runtime.allocate_for_copies(8)
    runtime.ready(runtime.upload_pinned(memory.address, block, 8))
    runtime.consumed()
    assert bytes(runtime.download(memory.address, 8)) == bytes(range(8))
    assert runtime.download(0, 0).nbytes == 0
    for stream in (1, 2, 7):
        if stream == 7:
            stream = runtime.copy_stream.ptr
        backend.wait_for("test", stream)
        backend.hold("test", stream)


def test_memory_of_another_gpu(backend):
    first = Backend(0)
    assert floats(backend, backend.receive(first, placed(first, [1.0, 2.0]), 8)) == [1.0, 2.0]


def test_pinned_memory_goes_with_the_last_view_of_it(backend):
    view = backend.runtime.download(placed(backend, [1.0]).address, 4)
    owner = weakref.ref(view.obj._owner)
    gc.disable()
    try:
        assert owner() is not None
        del view
        assert owner() is None
    finally:
        gc.enable()


def test_out_of_memory(backend):
    text = r"cuda:1: out of memory: asked for \d+ bytes for x while .* 5 of the card's 7 free"
    with pytest.raises(DeviceError, match=text):
        backend.allocate(2 * fake_cupy.ROOM, "x")


def test_kernels_are_compiled_once_and_kept(backend, tmp_path):
    def transposed() -> list[float]:
        x = placed(backend, range(6))
        _copier.cache_clear()
        copy = packed(backend, x.address, (3, 2), (4, 12), float32, x)
        return floats(backend, copy)

    for _ in range(2):
        assert transposed() == [0, 3, 1, 4, 2, 5]
    assert fake_cupy.compiled == ["--gpu-architecture=sm_90 --std=c++17"]
    (file,) = tmp_path.glob("*.bin")
    for damage in (False, True):
        if damage:
            file.write_bytes(b"cut")
        backend.runtime._functions.clear()
        assert transposed() == [0, 3, 1, 4, 2, 5]
        assert len(fake_cupy.compiled) == 1 + damage


def test_an_error_of_the_compiler_is_shown(backend):
    with pytest.raises(RuntimeError, match=r"compile Kernel\(bad\).*\n.*#error directive"):
        backend.runtime.load([Kernel("bad", "#error\nKERNEL {}")])


def test_a_newer_card_takes_ptx(backend, monkeypatch):
    monkeypatch.setattr(fake_cupy.Device, "compute_capability", "130")
    backend.runtime.load([Kernel("new", "KERNEL {}")])
    assert fake_cupy.compiled == ["--gpu-architecture=compute_120 --std=c++17"]


@pytest.mark.parametrize(
    ("strides_a", "strides_b"),
    [((6, 3, 1), (12, 4, 1)), ((6, 1, 2), (12, 1, 3)), ((0, 3, 1), (12, 1, 3))],
    ids=["rows", "columns", "one for all"],
)
@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_products_launched_and_in_graphs(backend, dtype, strides_a, strides_b):
    code = "f" if dtype is float32 else "d"
    program = Program(first_scratch=3)
    a = Operand(0, dtype, (2, 2, 3), strides_a)
    b = Operand(1, dtype, (2, 3, 4), strides_b)
    gemm.dot(program, a, b, Operand(2, dtype, (2, 2, 4), (8, 4, 1)), 132)
    executable = backend.executable(program, {}, 0, range(3), ())
    left, right = [k % 5 - 2.0 for k in range(12)], [k % 7 - 3.0 for k in range(24)]
    want = [
        sum(
            left[z * strides_a[0] + i * strides_a[1] + k * strides_a[2]]
            * right[z * strides_b[0] + k * strides_b[1] + j * strides_b[2]]
            for k in range(3)
        )
        for z in range(2)
        for i in range(2)
        for j in range(4)
    ]
    x, y, out = (
        placed(backend, left, code),
        placed(backend, right, code),
        placed(backend, [0] * 16, code),
    )
    for factor in (1, 2, 3):  # launched, captured, replayed
        x2 = placed(backend, [factor * v for v in left], code)
        backend.runtime.copy(x.address, x2.address, x.nbytes)
        executable.run([x, y, out], ())
        assert floats(backend, out, code) == [factor * v for v in want]
    assert [x.kernel.name for x in program.launches] == [f"cublas_gemm_{dtype.name}"]
    graphs = list(executable._graphs.values())
    assert len(graphs) == 1
    assert len(graphs[0].works) == 1


def test_a_batch_that_lies_backwards_is_copied(backend):
    program = Program(first_scratch=3)
    a = Operand(0, float32, (2, 2, 3), (-6, 3, 1), offset=6)
    b = Operand(1, float32, (2, 3, 1), (3, 1, 1))
    gemm.dot(program, a, b, Operand(2, float32, (2, 2, 1), (2, 1, 1)), 132)
    assert len(program.launches) == 2
    executable = backend.executable(program, {3: 0}, 64, range(3), ())
    out = backend.allocate(16)
    executable.run([placed(backend, range(12)), placed(backend, [1] * 6), out], ())
    assert floats(backend, out) == [21, 30, 3, 12]


def test_tf32_and_halves_are_named_as_cublas_does(backend):
    with pytest.raises(RuntimeError, match=r"cublasGemm.*an unsupported value.*status 7"):
        backend.runtime.matrix_product("float16", False, *[(1, 1, 1, 1, 0, 1)] * 3, 1)
    x = placed(backend, [3.0])
    word = (x.address, 1, 1, 1, 0, 1)
    for tf32 in (False, True):
        backend.runtime.matrix_product("float32", tf32, word, word, word, 1)
    assert floats(backend, x) == [81.0]
    assert config.matmul_precision


def test_an_error_inside_a_capture_is_the_one_that_shows(backend):
    runtime = backend.runtime

    def broken() -> None:
        runtime.clear(placed.address, 4)
        raise KeyError("ours")

    placed = backend.allocate(4)
    with pytest.raises(KeyError, match="ours"):
        runtime.captured(broken)
    runtime.synchronize()  # nothing is captured any more
    assert runtime.captured(lambda: None).works == []


def test_another_thread_does_not_reach_a_stream_that_is_captured(backend):
    runtime = backend.runtime
    x = placed(backend, [1.0])
    looked = threading.Event()
    values: list[float] = []

    def look() -> None:
        looked.set()
        values.extend(floats(backend, x))

    thread = threading.Thread(target=look)

    def run() -> None:
        thread.start()
        assert looked.wait(10)
        thread.join(0.05)  # it waits for us
        assert not values
        runtime.clear(x.address, 4)

    graph = runtime.captured(run)
    thread.join(10)
    assert values == [1.0]
    assert len(graph.works) == 1


def why_unusable() -> str | None:
    """The function itself: where there is no GPU, the module has the stand-in's."""
    return runpy.run_path(cuda_runtime.__file__)["why_unusable"]()


class TestWhyUnusable:
    @pytest.fixture(autouse=True)
    def fake(self, backend):
        """With the stand-in for CuPy."""

    def fails(self, monkeypatch, where, name, error):
        def fail():
            raise error

        monkeypatch.setattr(where, name, fail)
        return why_unusable()

    def test_usable(self):
        assert why_unusable() is None

    def test_reasons(self, monkeypatch):
        import cupy

        runtime, nvrtc = cupy.cuda.runtime, cupy.cuda.nvrtc
        banner = ImportError("\n=====\nFailed to import CuPy.\n")
        banner.__cause__ = ImportError("libcublas.so.12: cannot open")
        with monkeypatch.context() as m:
            found = self.fails(m, runtime, "getDeviceCount", banner)
            assert "not import (libcublas.so.12: cannot open); pip" in found
        no_driver = RuntimeError("cudaErrorInsufficientDriver: too old")
        with monkeypatch.context() as m:
            assert "nvidia-smi" in self.fails(m, runtime, "getDeviceCount", no_driver)
        with monkeypatch.context() as m:
            m.setattr(runtime, "getDeviceCount", lambda: 0)
            assert why_unusable() == "this machine has no GPU"
        with monkeypatch.context() as m:
            found = self.fails(m, nvrtc, "getVersion", RuntimeError("libnvrtc.so: cannot open"))
            assert "libnvrtc.so" in found
            assert "pip install" in found
        with monkeypatch.context() as m:
            missing = ImportError("libcublas.so.13: cannot open\nlisted")
            found = self.fails(m, cublas, "library", missing)
            assert "(libcublas.so.13: cannot open)" in found


TRAINING = """
import random
import pytest
import fake_cupy
patch = pytest.MonkeyPatch()
fake_cupy.install(patch)
import layers
import minigrad as mg
from minigrad import optim
from minigrad.data import DataLoader, RandomHorizontalFlip, TensorDataset

pixels = random.Random(1).randbytes(12 * 36)
images = memoryview(bytearray(pixels)).cast("B", (12, 1, 6, 6))
data = TensorDataset(images, bytes(i % 5 for i in range(12)))

def losses(device):
    mg.random.seed(0)
    parts = [layers.Conv2d(1, 3, 3), layers.BatchNorm2d(3), layers.ReLU(), layers.Flatten()]
    model = layers.Sequential(*parts, layers.Linear(48, 5)).to(device)
    sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @mg.compile
    def step(x, y):
        sgd.zero_grad()
        loss = mg.nn.cross_entropy(model(x), y)
        loss.backward()
        sgd.step()
        return loss

    flips = RandomHorizontalFlip(0.5)
    for _ in range(3):
        for x, y in DataLoader(data, 4, transform=flips, prefetch=2, device=device):
            yield step(x, y).item()

assert mg.devices()["cuda"] == "usable"
assert list(losses("cuda:1")) == pytest.approx(list(losses("cpu")), rel=1e-5)
patch.undo()
"""


@pytest.mark.slow
def test_a_training_loop_on_the_second_gpu():
    pytest.importorskip("numba")
    if host_cuda.why_unusable():
        pytest.skip("no g++ to compile kernels with")
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAINING],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
