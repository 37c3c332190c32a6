"""How programs run on a GPU: tables, graphs, what the host waits for, and what an error says.

Without a GPU this is about the stand-in of `host_cuda.py`, whose log says what was asked of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import nvrtc
import pytest

import layers
import minigrad as mg
from minigrad import optim
from minigrad.backend.cuda import backend as cuda
from minigrad.backend.cuda.runtime.executable import MOST_GRAPHS
from minigrad.backend.cuda.runtime.jit import compile_kernel
from minigrad.backend.cuda.runtime.memory import BorrowedBuffer
from minigrad.errors import DeviceError
from minigrad.execution.compute import plans_for
from minigrad.graph import leaf
from minigrad.tensor_base import wrap

runtime = cuda.device(0).runtime
pytestmark = [
    pytest.mark.skipif(not hasattr(runtime, "log"), reason="a GPU keeps no log"),
    pytest.mark.usefixtures("fresh_plans"),
]


def log_of(run: Callable[[], Any]) -> list[str]:
    """What `run` asked of the device."""
    runtime.log.clear()
    run()
    return list(runtime.log)


def classifier(norm: bool = True) -> Callable[..., Any]:
    """A compiled training step, its model, and batches for it."""
    mg.random.seed(0)
    parts: list[Any] = [layers.Linear(6, 5)]
    parts += [layers.BatchNorm1d(5)] if norm else []
    parts += [layers.ReLU(), layers.Linear(5, 3)]
    model = layers.Sequential(*parts).to("cuda")
    sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @mg.compile
    def step(x, y):
        sgd.zero_grad()
        loss = mg.nn.cross_entropy(model(x), y)
        loss.backward()
        sgd.step()
        return loss

    return step


def batch(seed: int) -> tuple[Any, Any]:
    rng = random.Random(seed)
    x = [[rng.gauss(0.0, 1.0) for _ in range(6)] for _ in range(8)]
    y = [rng.randrange(3) for _ in range(8)]
    return mg.tensor(x, device="cuda"), mg.tensor(y, device="cuda")


class TestGraphs:
    def test_a_program_is_captured_when_it_is_run_again(self):
        xs = [mg.tensor([1.0, k], device="cuda") for k in range(3)]
        first, second, third = (log_of(lambda x=x: mg.evaluate(x * 2.0)) for x in xs)
        assert [e.split()[0] for e in first] == ["upload", "launch"]
        assert [e.split()[0] for e in second] == ["upload", "replay"]
        assert [e.split()[0] for e in third] == ["upload", "replay"]

    @mg.rewrites(False)  # constants are run-time arguments then
    def test_a_replayed_graph_reads_new_buffers_and_constants(self):
        for k in range(4):
            x = mg.tensor([1.0, 2.0, k], device="cuda")
            assert (x * 2.0 + k).tolist() == [2.0 + k, 4.0 + k, 3.0 * k]
        assert runtime.log[-3:] == ["replay", "synchronize", "download 12"]

    def test_a_training_step_is_one_launch(self):
        step = classifier()
        batches = [batch(k) for k in range(12)]
        for x, y in batches:
            mg.evaluate(x, y)
        for x, y in batches[:8]:
            step(x, y)
        for x, y in batches[8:10]:
            events = [e.split()[0] for e in log_of(lambda x=x, y=y: step(x, y))]
            assert events in (["upload", "replay"], ["upload", *["launch"] * (len(events) - 1)])
        # Matrix products have addresses baked in: those of the input vary until they repeat.
        x, y = batches[0]
        for _ in range(4):
            step(x, y)
        for _ in range(4):
            assert [e.split()[0] for e in log_of(lambda: step(x, y))] == ["upload", "replay"]

    def test_graphs_of_library_calls_are_few(self):
        a = mg.ones((3, 3), device="cuda")
        mg.evaluate(a)
        held = []
        for _ in range(3 * MOST_GRAPHS):
            b = mg.ones((3, 3), device="cuda") * 1.0
            held.append(b)
            assert mg.matmul(a, b).sum().item() == 27.0

    def test_the_same_values_as_launch_by_launch(self):
        """Replays against a step that is never captured."""
        losses = []
        for compiled in (True, False):
            step = classifier()
            if not compiled:
                step = step.__wrapped__
            batches = [batch(k) for k in range(3)] * 4
            losses.append([step(*b).item() for b in batches])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert losses[0][-1] < losses[0][0]


class TestMatrixProducts:
    def test_the_precision_is_that_of_the_run(self):
        """A captured product has its precision baked in, like its addresses."""
        a = mg.tensor([[1.0, 2.0], [3.0, 4.0]], device="cuda")
        ((plan, nodes),) = plans_for([mg.matmul(a, a).node])
        buffers = [nodes[p].storage for p in plan.inputs]
        fresh = [plan.allocate(k) for k in range(len(plan.fresh))]
        seen = []
        try:
            for precision in ("highest", "high", "high", "highest", "medium"):
                mg.set_float32_matmul_precision(precision)
                seen.append(log_of(lambda: plan.run(buffers, [], fresh))[-1])
        finally:
            mg.set_float32_matmul_precision("highest")
        assert seen == ["launch cublas", "launch cublas tf32", *["replay"] * 3]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32"])
    def test_operands_of_any_strides(self, dtype):
        """Transposed, broadcast and flipped operands; sums of halves are those of float32."""
        a = mg.astype(mg.reshape(mg.arange(24, device="cuda") % 5, (2, 3, 4)), dtype)
        b = mg.astype(mg.reshape(mg.arange(20, device="cuda") % 7, (4, 5)), dtype)
        expected = [
            [[float(sum(x * y for x, y in zip(row, column, strict=True))) for column in
              zip(*b.tolist(), strict=True)] for row in m]
            for m in a.tolist()
        ]  # fmt: skip
        assert mg.matmul(a, b).tolist() == expected
        turned = mg.matrix_transpose(mg.matmul(mg.matrix_transpose(b), mg.matrix_transpose(a)))
        assert turned.tolist() == expected
        again = mg.matmul(mg.flip(mg.flip(a, axis=2), axis=2), mg.flip(mg.flip(b, axis=0), axis=0))
        assert again.tolist() == expected
        flipped = mg.matmul(mg.flip(a, axis=2), mg.flip(b, axis=0))
        assert flipped.tolist() == expected
        row = mg.broadcast_to(mg.reshape(b[:, 0], (1, 4, 1)), (2, 4, 3))
        assert mg.matmul(a, row).tolist() == [[[r[0]] * 3 for r in m] for m in expected]

    def test_no_products_give_zeros(self):
        empty = mg.zeros((3, 0), device="cuda")
        assert mg.matmul(empty, mg.zeros((0, 2), device="cuda")).tolist() == [[0.0, 0.0]] * 3


class TestSources:
    @pytest.mark.skipif(nvrtc.library() is None, reason="there is no NVRTC")
    def test_nvrtc_compiles_every_kernel_that_a_test_loads(self, monkeypatch):
        checked = []
        compiled = nvrtc.compiled
        monkeypatch.setattr(nvrtc, "compiled", lambda text: checked.append(compiled(text)))
        number = random.random()  # a constant that no kernel before had would not do: it is no text
        name = f"made_up_{random.getrandbits(40)}"
        kernel = compile_kernel(name, f"// {name} {number}\nKERNEL {{ }}")
        runtime.load([kernel])
        assert len(checked) == 1
        with pytest.raises(AssertionError, match="NVRTC refuses"):
            compiled(compile_kernel(name, "KERNEL { int x = nowhere; }").text)


class TestWaiting:
    def test_no_training_step_waits_or_copies(self):
        step = classifier()
        batches = [batch(k) for k in range(3)]
        for x, y in batches:
            mg.evaluate(x, y)

        def train() -> None:
            for _ in range(5):
                for x, y in batches:
                    step(x, y)

        events = {e.split()[0] for e in log_of(train)}
        assert events <= {"upload", "launch", "replay"}

    def test_nor_does_one_that_is_not_compiled(self):
        step = classifier().__wrapped__
        x, y = batch(0)
        mg.evaluate(x, y)
        for _ in range(2):
            step(x, y)
        events = {e.split()[0] for e in log_of(lambda: step(x, y))}
        assert events <= {"upload", "launch", "replay"}

    def test_looking_at_a_value_waits_once(self):
        x = mg.arange(3, dtype="float32", device="cuda") * 2.0
        events = log_of(x.tolist)
        assert events.count("synchronize") == 1
        assert sum(e.startswith("download") for e in events) == 1
        assert log_of(lambda: mg.synchronize("cuda")) == ["synchronize"]

    def test_tables_are_uploaded_when_they_change(self):
        x = mg.arange(5, dtype="float32", device="cuda")
        plan, nodes = plans_for([(x * 2.0).node])[0]
        constants = plan.constant_values(nodes)
        inputs = [nodes[p].storage for p in plan.inputs]
        fresh = [plan.allocate(k) for k in range(len(plan.fresh))]
        plan.run(inputs, constants, fresh)
        events = log_of(lambda: plan.run(inputs, constants, fresh))
        assert not any(e.startswith("upload") for e in events)


class TestMemory:
    def test_memory_that_is_not_aligned_is_copied_first(self):
        buffer = cuda.device(0).from_bytes(memoryview(bytes(4) + b"\0\0\x80\x3f" * 9))
        shifted = BorrowedBuffer(runtime, buffer.address + 4, 36, buffer)
        x = wrap(leaf(shifted, (9,), mg.float32, mg.cuda))
        assert (x + 1.0).tolist() == [2.0] * 9

    def test_a_larger_program_moves_the_arena(self):
        def chain(n):
            x = mg.ones((n, 4), device="cuda")
            y = mg.matmul(x, mg.ones((4, 4), device="cuda"))
            return mg.nn.softmax(y * y, axis=0).sum()

        for n in (4, 4, 64, 4, 4, 64):
            assert chain(n).item() == pytest.approx(4.0)

    def test_running_out_names_the_op(self, monkeypatch):
        import host_cuda

        x = mg.ones((1000,), device="cuda")
        mg.evaluate(x)
        monkeypatch.setattr(host_cuda, "MEMORY_LIMIT", runtime.held + 100_000)
        pattern = r"cuda:0: out of memory: asked for 4000000 bytes for the result of mul while"
        with pytest.raises(DeviceError, match=pattern):
            mg.evaluate(mg.expand_dims(x, 0) * mg.expand_dims(x, 1))
        monkeypatch.undo()
        assert mg.max(mg.expand_dims(x, 0) * mg.expand_dims(x, 1)).item() == 1.0

    def test_a_missing_card(self):
        with pytest.raises(DeviceError, match="cuda:3: expected a GPU below"):
            mg.ones((2,), device="cuda:3")
