"""Machines that lack a library: each device needs its own alone, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import host_cuda
import pytest

TESTS = Path(__file__).parent

# Makes packages unfindable, the way they are where they are not installed.
HIDDEN = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDE else find_spec(name)

def refused(run, *parts):
    from minigrad.errors import DeviceError
    try:
        run()
    except DeviceError as error:
        for part in parts:
            assert part in str(error), error
    else:
        raise AssertionError("expected a DeviceError")
"""
WITH_GPU = "import host_cuda; host_cuda.install()\n"


def run(hidden: tuple[str, ...], code: str) -> None:
    """Run code in a process of its own that lacks the packages."""
    text = f"HIDE = {hidden!r}\n{HIDDEN}\n{textwrap.dedent(code)}"
    environment = {k: v for k, v in os.environ.items() if k != "MINIGRAD_DEVICE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=TESTS, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


needs_host_gpu = pytest.mark.skipif(host_cuda.why_unusable() is not None, reason="no g++")
WITHOUT_NUMBA = ("numba", "llvmlite")


@needs_host_gpu
def test_a_gpu_needs_no_numba():
    run(
        WITHOUT_NUMBA,
        WITH_GPU
        + """
import minigrad as mg
assert mg.devices()["cuda"] == "usable"
assert mg.devices()["cpu"] == "the package numba is not installed; pip install numba"
x = mg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
assert str(x.device) == "cuda:0"
(x * x).sum().backward()
assert x.grad.tolist() == [[2.0, 4.0], [6.0, 8.0]]
assert "device=cuda:0" in repr(x)
y = (x @ x).to("cpu")
assert y.tolist() == [[7.0, 10.0], [15.0, 22.0]]
assert "device=cpu" in repr(y)
assert memoryview(y.__array_interface__["data"]).nbytes == 16
assert y.to("cuda").sum().item() == 54.0
assert mg.asarray(bytearray(b"ab"), device="cuda").tolist() == [97, 98]
assert mg.asarray(bytearray(b"ab"), device="cpu").tolist() == [97, 98]
assert mg.tensor([1, 2], device="cpu").tolist() == [1, 2]
assert sorted(mg.random.permutation(3).tolist()) == [0, 1, 2]
""",
    )


@needs_host_gpu
def test_without_numba_the_cpu_holds_values_but_does_not_compute():
    run(
        WITHOUT_NUMBA,
        WITH_GPU
        + """
import minigrad as mg
install = "pip install numba"
x = mg.tensor([1.0, 2.0], device="cpu")
refused(lambda: (x + x).tolist(), "'cpu' cannot be used", install)
refused(lambda: mg.zeros(3, device="cpu").tolist(), install)
refused(lambda: mg.random.normal((3,), device="cpu"), install)
refused(lambda: mg.set_default_device("cpu"), install)
""",
    )


@needs_host_gpu
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_batches_need_no_numba(device: str):
    run(
        WITHOUT_NUMBA,
        WITH_GPU
        + f"""
import minigrad as mg
from minigrad.data import DataLoader, RandomHorizontalFlip, TensorDataset
images = memoryview(bytearray(range(24))).cast("B", (4, 1, 2, 3))
data = TensorDataset(images, b"abcd")
for prefetch in (0, 2):
    loader = DataLoader(
        data, 3, transform=RandomHorizontalFlip(1), prefetch=prefetch, device="{device}")
    (x, y), (last, _) = loader
    assert str(x.device).startswith("{device}") and str(y.device).startswith("{device}")
    assert y.tolist() == [97, 98, 99] and last.shape == (1, 1, 2, 3)
    assert [round(255 * v) for v in x.tolist()[0][0][0]] == [2, 1, 0]
assert "numba" not in sys.modules
""",
    )


def test_the_cpu_needs_no_cupy(cpu_too: None):
    run(
        ("cupy", "cupy_backends", "cupyx"),
        """
import minigrad as mg
assert mg.devices()["cpu"] == "usable"
assert mg.devices()["cuda"].startswith("the package cupy is not installed; pip install")
x = mg.tensor([1.0, 2.0], requires_grad=True)
assert str(x.device) == "cpu"
(x * x).sum().backward()
assert x.grad.tolist() == [2.0, 4.0]
data = mg.data.TensorDataset(b"abcd", b"abcd")
assert [y.tolist() for _, y in mg.data.DataLoader(data, 2)] == [[97, 98], [99, 100]]
install = "the package cupy is not installed; pip install 'minigrad[cuda"
refused(lambda: mg.tensor([1.0], device="cuda"), "'cuda' cannot be used", install)
refused(lambda: mg.zeros(3, device="cuda"), install)
refused(lambda: x.detach().to("cuda"), install)
refused(lambda: mg.set_default_device("cuda"), install)
refused(lambda: list(mg.data.DataLoader(data, 2, device="cuda")), install)
""",
    )
