"""The Python values that a recorded step took for granted: a change of any kind is noticed."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
from test_capture import Training, batches, compiled

import layers
import minigrad as mg
from minigrad.errors import CaptureWarning
from minigrad.execution import guard

factor = 2.0
unrelated = 0


def double(x: mg.Tensor) -> mg.Tensor:
    return x * factor


class Scaled:
    """A user's object: a class attribute, a property, a method that calls another."""

    offset = 0.0

    def __init__(self) -> None:
        self.scale = 2.0
        self.steps = 0  # nothing that is compiled reads it

    @property
    def twice(self) -> float:
        return self.scale * 2

    def inner(self, x: mg.Tensor) -> mg.Tensor:
        return x * self.twice + self.offset

    def outer(self, x: mg.Tensor) -> mg.Tensor:
        return self.inner(x)


def value(function: Any) -> float:
    return function(mg.tensor([1.0])).item()


def settled(function: Any, times: int = 3) -> float:
    """The value once it is recorded; it is the same from the first call on."""
    values = [value(function) for _ in range(times)]
    assert len(set(values)) == 1
    return values[0]


class TestNoticed:
    def test_a_global(self, monkeypatch):
        f, runs = compiled(lambda x: x * factor)
        assert settled(f) == 2
        monkeypatch.setitem(globals(), "factor", 3.0)
        assert settled(f) == 3
        assert runs.calls == 3

    def test_a_global_of_a_called_function(self, monkeypatch):
        f = mg.compile(lambda x: double(x))
        assert settled(f) == 2
        monkeypatch.setitem(globals(), "factor", 3.0)
        assert settled(f) == 3

    def test_a_called_function_that_is_replaced(self, monkeypatch):
        f = mg.compile(lambda x: double(x))
        assert settled(f) == 2
        monkeypatch.setitem(globals(), "double", lambda x: x * 7)
        assert settled(f) == 7

    def test_a_closure_variable(self):
        scale = 2.0
        f = mg.compile(lambda x: x * scale)
        assert settled(f) == 2
        scale = 5.0
        assert settled(f) == 5

    def test_in_a_comprehension(self):
        scale = 2.0
        f = mg.compile(lambda x: sum(x * scale for _ in range(2)))
        assert settled(f) == 4
        scale = 5.0
        assert settled(f) == 10

    def test_a_tensor_that_is_replaced(self):
        scale = mg.tensor([2.0])
        keep = scale
        f = mg.compile(lambda x: x * scale)
        assert settled(f) == 2
        scale = mg.tensor([5.0])
        assert settled(f) == 5
        assert keep.item() == 2

    def test_a_default(self):
        def scaled(x, scale=2.0, *, offset=0.0):
            return x * scale + offset

        f = mg.compile(scaled)
        assert settled(f) == 2
        scaled.__defaults__ = (3.0,)
        assert settled(f) == 3
        scaled.__kwdefaults__["offset"] = 1.0
        assert settled(f) == 4

    def test_attributes_of_a_method_s_object(self):
        scaled = Scaled()
        f = mg.compile(scaled.outer)
        assert settled(f) == 4
        scaled.scale = 3.0
        assert settled(f) == 6
        scaled.offset = 1.0  # was the class's
        assert settled(f) == 7

    @pytest.mark.parametrize("make", [SimpleNamespace, dict], ids=["namespace", "dict"])
    def test_a_configuration(self, make):
        options = make(scale=2.0)
        if make is dict:
            f = mg.compile(lambda x: x * options["scale"])
        else:
            f = mg.compile(lambda x: x * options.scale)
        assert settled(f) == 2
        if make is dict:
            options["scale"] = 3.0
        else:
            options.scale = 3.0
        assert settled(f) == 3

    def test_elements(self):
        scales, chosen = [2.0, 3.0], {1}
        f = mg.compile(lambda x: x * scales[0] + (10 if 0 in chosen else 0))
        assert settled(f) == 2
        scales[0] = 4.0
        assert settled(f) == 4
        chosen.add(0)
        assert settled(f) == 14

    def test_a_wrapped_function_and_a_partial(self):
        scale = 2.0

        def scaled(x, offset):
            return x * scale + offset

        f = mg.compile(mg.no_grad()(functools.partial(scaled, offset=1.0)))
        assert settled(f) == 3
        scale = 3.0
        assert settled(f) == 4

    @pytest.mark.parametrize(
        ("name", "new"), [("eps", 0.5), ("momentum", 0.9), ("training", False), ("bias", None)]
    )
    def test_attributes_of_a_module(self, name, new):
        """Set directly; as a module does that is new and like it."""
        x = mg.tensor([[1.0], [3.0]])

        def run(wrap: Any) -> list[float]:
            norm = layers.BatchNorm(1)
            f = wrap(lambda x: (norm(x) ** 3).sum() + norm.running_mean.sum())
            seen = [f(x).item() for _ in range(3)]
            setattr(norm, name, new)
            return seen + [f(x).item() for _ in range(3)]

        plain = run(lambda f: f)
        assert plain[3] != plain[2]
        assert run(mg.compile) == pytest.approx(plain, rel=1e-5)

    def test_a_dropout_s_probability(self):
        model = layers.Sequential(layers.Dropout(0.25))
        f = mg.compile(lambda x: (model(x) != 0).astype("float32").mean())
        x = mg.ones((4000,))
        assert [f(x).item() for _ in range(3)] == pytest.approx([0.75] * 3, abs=0.04)
        model[0].p = 0.5
        assert [f(x).item() for _ in range(3)] == pytest.approx([0.5] * 3, abs=0.04)

    def test_a_module_and_a_hook_that_are_replaced(self):
        model = layers.Sequential(layers.ReLU())
        f = mg.compile(lambda x: model(x))
        assert settled(f) == 1
        setattr(model, "0", layers.Tanh())
        assert settled(f) == pytest.approx(0.7615942)
        hook = model.register_forward_hook(lambda module, inputs, output: output * 0)
        assert settled(f) == 0
        hook.remove()
        assert settled(f) == pytest.approx(0.7615942)

    def test_what_the_forward_of_a_user_s_module_reads(self, monkeypatch):
        class Double(layers.Module):
            def forward(self, x):
                return double(x)

        modules = {"deep": [Double()]}
        f = mg.compile(lambda x: modules["deep"][0](x))
        assert settled(f) == 2
        monkeypatch.setitem(globals(), "factor", 3.0)
        assert settled(f) == 3

    @pytest.mark.parametrize(
        ("name", "new"), [("nesterov", True), ("weight_decay", 0.5), ("momentum", 0.0)]
    )
    def test_choices_of_an_optimizer(self, name, new):
        """A number becomes zero, or is no longer: the update is another graph."""

        def run(wrap: Any) -> list[float]:
            w = mg.tensor([1.0], requires_grad=True)
            optimizer = mg.optim.SGD([w], lr=0.1, momentum=0.9)

            def step() -> mg.Tensor:
                optimizer.zero_grad()
                (w * w).sum().backward()
                optimizer.step()
                return w * 1.0

            f = wrap(step)
            for _ in range(3):
                f()
            optimizer.param_groups[0][name] = new
            return [f().item() for _ in range(3)]

        assert run(mg.compile) == pytest.approx(run(lambda f: f), rel=1e-6)

    def test_rewriting(self):
        f, runs = compiled(lambda x: x * 2)
        assert settled(f) == 2
        with mg.rewrites(False):
            assert settled(f) == 2
        assert runs.calls == 4


class TestNoFalseAlarm:
    def test_a_training_loop(self):
        """Counters, histories and schedules beside the step; names that methods have, too."""
        training: Any = Training()
        training.epoch, training.loss, training.history = 0, 0.0, []
        schedule = mg.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, T_max=8)
        f, runs = compiled(training.step)
        for step, batch in enumerate(batches(8)):
            training.history.append(f(*batch).item())
            training.epoch, training.loss, training.zero_grad = step, training.history[-1], step
            schedule.step()
        assert runs.calls == 2

    def test_training_and_evaluation_in_turns(self):
        training = Training()
        step, steps = compiled(training.step)
        evaluate, evaluations = compiled(lambda x: training.model(x).sum())
        (x, y), *_ = batches(1)
        for _ in range(4):
            training.model.train()
            for _ in range(2):
                step(x, y)
            training.model.eval()
            evaluate(x)
        assert (steps.calls, evaluations.calls) == (2, 2)

    def test_modes_that_the_function_sets_itself(self):
        training = Training()

        def step(x, y):
            training.model.train()
            return training.step(x, y)

        f, runs = compiled(step)
        (x, y), *_ = batches(1)
        for _ in range(6):
            f(x, y)
            training.model.eval()
        assert runs.calls == 2

    def test_what_no_code_reads(self, monkeypatch):
        scaled = Scaled()
        f, runs = compiled(scaled.outer)
        settled(f)
        scaled.steps = 7
        monkeypatch.setitem(globals(), "unrelated", 1)
        settled(f)
        assert runs.calls == 2

    def test_equal_values(self):
        scaled = Scaled()
        f, runs = compiled(scaled.outer)
        settled(f)
        scaled.scale = float("2")
        settled(f)
        assert runs.calls == 2
        scaled.scale = 2  # an integer, which promotes otherwise
        settled(f)
        assert runs.calls == 3

    def test_what_the_function_itself_changes(self):
        calls: list[int] = []
        f, runs = compiled(lambda x: (calls.append(1), x * 2)[1])
        for _ in range(3):
            for n in (1, 2):
                f(mg.ones((n,)))
        assert runs.calls == len(calls) == 4

    def test_values_that_come_back(self):
        scaled = Scaled()
        f, runs = compiled(scaled.outer)
        for _ in range(3):
            for scale in (1.0, 2.0, 3.0):
                scaled.scale = scale
                assert value(f) == 2 * scale
        assert runs.calls == 4

    def test_long_lists_are_data(self):
        data = [1.0] * (guard.MOST_ELEMENTS + 1)
        f, runs = compiled(lambda x: x * data[0])
        settled(f)
        data[1] = 2.0
        settled(f)
        assert runs.calls == 2


class TestSaid:
    @pytest.fixture
    def log(self, capsys, monkeypatch):
        """What is printed about recordings by a call."""
        from minigrad.config import config

        monkeypatch.setattr(config, "debug", 1)

        def lines(call: Any) -> list[str]:
            capsys.readouterr()
            call()
            printed = capsys.readouterr().err.splitlines()
            return [line for line in printed if line.startswith("minigrad: compile step")]

        return lines

    def test_each_recording_says_why(self, log):
        scale = 2.0

        def step(x, k=1, **more):
            return x * scale * k

        f = mg.compile(step)
        x = mg.tensor([1.0])
        prefix = "minigrad: compile step: "
        assert log(lambda: f(x)) == [prefix + "the first call runs as usual"]
        assert log(lambda: f(x)) == [prefix + "recorded"]
        assert log(lambda: f(x)) == []
        scale = 3.0
        assert log(lambda: f(x)) == [prefix + "recorded again: scale was 2.0, is 3.0"]
        new = prefix + "runs as usual, the next time recorded: "
        device = mg.default_device()
        kinds = f"argument `x` was float32[1] on {device}, is "
        assert log(lambda: f(mg.ones((2,)))) == [new + kinds + f"float32[2] on {device}"]
        f(x)
        assert log(lambda: f(mg.ones((1,), dtype="int64"))) == [
            new + kinds + f"int64[1] on {device}"
        ]
        f(x)
        trained = mg.ones((1,), requires_grad=True)
        needs = f"float32[1] on {device} that needs a gradient"
        assert log(lambda: f(trained)) == [new + kinds + needs]
        f(x, 1)
        assert log(lambda: f(x, 4)) == [new + "argument `k` was 1, is 4"]
        f(x, z={"a": [1.5]})
        assert log(lambda: f(x, z={"a": [2.5]})) == [new + "argument `z['a'][0]` was 1.5, is 2.5"]
        f(x)
        with mg.no_grad():
            assert log(lambda: f(x)) == [new + "gradient recording was True, is False"]

    def test_a_module(self, log):
        norm = layers.BatchNorm(1)

        def step(x):
            return norm(x)

        f = mg.compile(step)
        x = mg.tensor([[1.0], [2.0]])
        for _ in range(3):
            f(x)
        norm.eval()
        why = ["minigrad: compile step: recorded again: norm.training was True, is False"]
        assert log(lambda: f(x)) == why

    def test_a_value_that_always_changes(self):
        scaled = Scaled()
        f = mg.compile(scaled.outer)
        message = (
            r"compile outer: expected Python values that stay the same, got self\.scale, which"
        )
        settled(f)

        def change() -> None:
            for k in range(20):
                scaled.scale = k + 0.5
                assert value(f) == 2 * k + 1

        with pytest.warns(CaptureWarning, match=message) as caught:
            change()
        assert len(caught) == 1

    def test_an_argument_that_always_changes(self):
        f = mg.compile(lambda x, k: x * k)

        def change() -> None:
            for k in range(20):
                assert f(mg.tensor([1.0]), k).item() == k

        with pytest.warns(CaptureWarning, match=r"got argument `k`, which changed 8 times"):
            change()
