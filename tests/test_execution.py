"""When values are computed, what is kept of a graph, and the modes that compute op by op."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import textwrap
import weakref
from contextlib import nullcontext

import pytest
from observing import Watch

import layers
import minigrad as mg
from minigrad.config import config, read_environment
from minigrad.context import context
from minigrad.errors import AnomalyError
from minigrad.graph import topological

pytestmark = pytest.mark.usefixtures("poisoned")


def parameter(*values: float) -> mg.Tensor:
    return mg.tensor(values, requires_grad=True)


def line() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


class TestLaziness:
    def test_building_computes_nothing(self, watch: Watch):
        x = mg.tensor([1.0, 2.0])
        y = (x * 2).sum()
        assert (y.shape, y.dtype, y.ndim, y.size) == ((), mg.float32, 0, 1)
        assert watch.kernels == []
        assert y.node.storage is None

    def test_a_value_is_computed_once(self, watch: Watch):
        y = mg.tensor([1.0, 2.0]) * 2
        assert y.tolist() == [2, 4]
        watch.reset()
        assert y.tolist() == [2, 4]
        assert y[0].item() == 2
        assert "mul" not in watch.kernels

    def test_evaluate_takes_tensors(self):
        a, b = mg.tensor([1.0]) + 1, mg.tensor([2.0]) + 1
        mg.evaluate(a, b)
        assert a.node.storage is not None
        assert b.node.storage is not None
        with pytest.raises(TypeError, match=r"evaluate: expected Tensors, got int\."):
            mg.evaluate(1)

    def test_one_plan_for_everything_asked_for(self, watch: Watch):
        x = mg.tensor([1.0, 2.0])
        mg.evaluate(x * 2, x * 3, x + 1)
        assert len(watch.kernels) == 1


def is_product(kernel: str) -> bool:
    """Whether a kernel of this name is a matrix product, on any device."""
    return "matmul_tiles" in kernel or "gemm" in kernel


class TestKept:
    def test_what_a_live_tensor_shows_is_kept(self, watch: Watch):
        x = mg.tensor([1.0, 2.0])
        middle = x * 2
        end = middle + 1
        assert end.tolist() == [3, 5]
        watch.reset()
        assert middle.tolist() == [2, 4]
        assert watch.kernels == []

    def test_what_nobody_shows_is_not(self):
        end = mg.tensor([1.0, 2.0]) * 2 + 1
        middle = weakref.ref(end.node.inputs[0])
        assert end.tolist() == [3, 5]
        gc.collect()
        assert middle() is None

    def test_a_value_without_gradient_forgets_its_inputs(self):
        x = parameter(1.0, 2.0)
        kept, detached = x * 2, (x * 3).detach()
        mg.evaluate(kept, detached, x)
        assert kept.node.inputs  # a gradient may ask for them
        assert not detached.node.inputs
        with mg.no_grad():
            y = x * 4
        mg.evaluate(y)
        assert not y.node.inputs

    def test_gradients_forget_the_graph(self):
        x = parameter(1.0, 2.0)
        loss = mg.exp(x).sum()
        loss.backward()
        mg.evaluate(x.grad)
        assert not x.grad.node.inputs
        assert x.grad.tolist() == pytest.approx([math.e, math.e**2])

    def test_state_assigned_outside_of_no_grad_is_no_chain(self):
        x, average = parameter(1.0), mg.tensor([0.0])
        for _ in range(5):
            average.assign(average * 0.5 + x)
            mg.evaluate(average)
        assert len(topological([average.node])) == 1

    def test_looking_at_the_loss_does_not_run_the_forward_twice(self, watch: Watch):
        model = layers.Sequential(
            layers.Linear(4, 6), layers.BatchNorm(6), layers.ReLU(), layers.Linear(6, 3)
        )
        x, y = mg.random.normal((8, 4)), mg.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        mg.evaluate(x, *model.parameters())
        loss = mg.nn.cross_entropy(model(x), y)
        loss.item()
        forward = [name for name in watch.kernels if is_product(name)]
        watch.reset()
        loss.backward()
        mg.evaluate(*(p.grad for p in model.parameters()))
        backward = [name for name in watch.kernels if is_product(name)]
        assert len(forward) == 2
        # dx and dw of the second layer, dw of the first. A third layer's worth would be a rerun.
        assert len(backward) == 3

    def test_the_same_gradient_before_and_after_looking(self):
        results = []
        for look in (False, True):
            x = parameter(0.5, -1.5, 2.0)
            y = mg.nn.layer_norm(mg.tanh(x) * x, (3,))
            loss = (y * mg.tensor([1.0, -2.0, 0.5])).sum()
            if look:
                loss.item()
            loss.backward()
            results.append(x.grad.tolist())
        assert results[0] == pytest.approx(results[1], rel=1e-5)


class TestPendingUpdates:
    def norm(self) -> tuple[layers.Module, mg.Tensor]:
        norm = layers.BatchNorm(2, momentum=0.5)
        mg.evaluate(*norm.parameters(), *norm.buffers())
        return norm, mg.tensor([[1.0, 2.0], [3.0, 6.0]])

    def test_the_next_computation_takes_them_along(self, watch: Watch):
        norm, x = self.norm()
        y = norm(x)
        watch.reset()
        mg.evaluate(y)
        assert norm.running_mean.node.storage is not None
        watch.reset()
        assert norm.running_mean.tolist() == pytest.approx([1, 2])
        assert norm.running_var.tolist() == pytest.approx([0.5 + 1, 0.5 + 4])
        assert watch.kernels == []

    def test_an_unrelated_value_does_too(self):
        norm, x = self.norm()
        norm(x)
        (mg.tensor([1.0]) + 1).item()
        assert norm.running_mean.node.storage is not None

    def test_evaluate_without_arguments(self):
        norm, x = self.norm()
        norm(x)
        mg.evaluate()
        assert norm.running_mean.node.storage is not None
        assert not context.updates

    def test_dead_buffers_are_no_burden(self):
        norm, x = self.norm()
        norm(x)
        del norm
        gc.collect()
        assert not context.updates
        mg.evaluate(x + 1)

    def test_updates_do_not_pile_up(self):
        norm, x = self.norm()
        for _ in range(4):
            norm(x)
            mg.evaluate()
            assert len(topological([norm.running_mean.node])) == 1
        assert norm.num_batches_tracked.item() == 4


class TestEager:
    def test_each_op_is_computed_at_once(self, watch: Watch):
        x = mg.tensor([1.0, 2.0])
        with mg.eager():
            y = mg.exp(x * 2 + 1)
            assert y.node.storage is not None
            assert len(watch.kernels) == 3
        assert y.tolist() == pytest.approx([math.exp(3), math.exp(5)])

    def test_as_a_decorator_and_nested(self):
        @mg.eager()
        def f(x):
            with mg.eager():
                y = x + 1
            z = y * 2
            assert z.node.storage is not None
            return z

        assert f(mg.tensor([1.0])).tolist() == [4]
        assert (mg.tensor([1.0]) + 1).node.storage is None

    def test_an_error_leaves_the_mode(self):
        with pytest.raises(ZeroDivisionError), mg.eager():
            raise ZeroDivisionError
        assert (mg.tensor([1.0]) + 1).node.storage is None

    def test_training_gives_the_same_numbers(self):
        def step(context):
            mg.random.seed(1)
            model = layers.Sequential(layers.Linear(3, 4), layers.BatchNorm(4), layers.Linear(4, 2))
            optimizer = mg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            x, y = mg.random.normal((6, 3)), mg.tensor([0, 1, 0, 1, 1, 0])
            with context:
                for _ in range(2):
                    optimizer.zero_grad()
                    loss = mg.nn.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
            state = {k: v.tolist() for k, v in model.state_dict().items()}
            return loss.item(), state

        loss, state = step(mg.eager())
        again, expected = step(nullcontext())
        assert loss == pytest.approx(again, rel=1e-5)
        for name, values in expected.items():
            assert mg.tensor(state[name]).flatten().tolist() == pytest.approx(
                mg.tensor(values).flatten().tolist(), abs=1e-5
            ), name


class TestDetectAnomaly:
    def test_forward_names_the_op_and_the_line(self):
        x = mg.tensor([1.0, -1.0])
        with mg.detect_anomaly():
            y = x * 2
            here = line() + 2
            with pytest.raises(AnomalyError, match=r"1 NaN or Inf of 2 from log\(float32\[") as e:
                mg.log(y)
        assert f"{__file__}:{here}" in str(e.value)

    def test_backward_names_the_line_of_the_forward(self):
        x = parameter(0.0, 1.0)
        with mg.detect_anomaly():
            here, y = line(), mg.sqrt(x)
            loss = y.sum()
            with pytest.raises(AnomalyError, match=r"from div\(") as e:
                loss.backward()
        assert f"{__file__}:{here}" in str(e.value)

    def test_a_forward_from_before_the_mode(self):
        """Its values were not kept, so they are computed again to be checked."""
        x = parameter(0.0, 1.0)
        here, loss = line(), (mg.sqrt(x * 1.0) * 3.0).sum()
        with mg.detect_anomaly(), pytest.raises(AnomalyError, match=r"from div\(") as e:
            loss.backward()
        assert f"{__file__}:{here}" in str(e.value)

    def test_what_comes_in_broken_is_not_reported(self):
        x = mg.tensor([math.nan, 1.0])
        with mg.detect_anomaly():
            assert math.isnan((x * 2).sum().item())

    def test_finite_training_passes(self):
        w = parameter(1.0, 2.0)
        optimizer = mg.optim.SGD([w], lr=0.1)
        with mg.detect_anomaly():
            (w * w).sum().backward()
            optimizer.step()
        assert w.tolist() == pytest.approx([0.8, 1.6])

    def test_the_mode_ends(self):
        with mg.detect_anomaly():
            pass
        assert math.isnan(mg.log(mg.tensor([-1.0])).item())

    def test_for_a_whole_process(self, tmp_path, on_cpu):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
            import minigrad as mg
            x = mg.tensor([-1.0])
            print(mg.log(x).tolist())
            """)
        )
        environment = dict(os.environ, MINIGRAD_CHECK="1", MINIGRAD_DEVICE="cpu")
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"from log(float32[1]), built for {script}:4" in done.stderr


class TestErrorsWhileRunning:
    def test_an_index_out_of_range_is_named(self):
        x = mg.tensor([1.0, 2.0, 3.0])
        y = mg.take(x, mg.tensor([0, 7]) + 0, axis=0)
        with pytest.raises(IndexError, match=r"take: expected indices in \[-3, 3\), got 7\."):
            y.tolist()

    def test_the_engine_goes_on(self, on_cpu):  # where an error is raised at once
        x, index = mg.tensor([1.0, 2.0, 3.0]), mg.tensor([0, 7])
        y = mg.take(x, index + 0, axis=0)
        for _ in range(2):  # the same plan fails again
            with pytest.raises(IndexError):
                y.tolist()
            assert y.node.storage is None
        # The same structure with good indices, and something else.
        assert mg.take(x, mg.tensor([2, -1]) + 0, axis=0).tolist() == [3, 3]
        assert (x * 2).tolist() == [2, 4, 6]

    def test_running_statistics_survive(self):
        norm = layers.BatchNorm(1, momentum=1.0)
        norm(mg.tensor([[1.0], [3.0]]))
        bad = mg.take(mg.tensor([1.0]), mg.tensor([5]) + 0, axis=0)
        with pytest.raises(IndexError):
            bad.item()
        assert norm.running_mean.tolist() == pytest.approx([2])


def test_float32_matmul_precision():
    assert mg.get_float32_matmul_precision() == "highest"
    try:
        for precision in ("high", "medium", "highest"):
            mg.set_float32_matmul_precision(precision)
            assert mg.get_float32_matmul_precision() == config.matmul_precision == precision
        with pytest.raises(
            ValueError,
            match=r"float32_matmul_precision: expected 'highest', 'high' or 'medium', got 'low'",
        ):
            mg.set_float32_matmul_precision("low")
        assert mg.get_float32_matmul_precision() == "highest"
    finally:
        config.matmul_precision = "highest"


def test_the_environment_sets_the_matmul_precision(monkeypatch):
    monkeypatch.delenv("MINIGRAD_MATMUL_PRECISION", raising=False)
    assert read_environment().matmul_precision == "highest"
    monkeypatch.setenv("MINIGRAD_MATMUL_PRECISION", "high")
    assert read_environment().matmul_precision == "high"
    monkeypatch.setenv("MINIGRAD_MATMUL_PRECISION", "tf32")
    with pytest.raises(
        ValueError, match=r"MINIGRAD_MATMUL_PRECISION: expected 'highest', .*, got 'tf32'"
    ):
        read_environment()


def test_the_environment_sets_the_width_of_vectors(monkeypatch):
    monkeypatch.delenv("MINIGRAD_VECTOR_BYTES", raising=False)
    assert read_environment().vector_bytes is None
    monkeypatch.setenv("MINIGRAD_VECTOR_BYTES", "16")
    assert read_environment().vector_bytes == 16
    for value in ("8", "48", "-16"):
        monkeypatch.setenv("MINIGRAD_VECTOR_BYTES", value)
        with pytest.raises(
            ValueError, match=rf"MINIGRAD_VECTOR_BYTES: expected 16, 32 or 64 bytes, got {value}"
        ):
            read_environment()
