"""mg.compile: a captured step does what the plain one does, and notices what changed since."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from observing import Watch, live_bytes

import layers
import minigrad as mg
from minigrad import graph, tensor_base
from minigrad.context import context
from minigrad.errors import CaptureError
from minigrad.execution.compute import capturing, export_bytes

pytestmark = pytest.mark.usefixtures("poisoned")

Step = Callable[..., Any]


class Training:
    """A small network with everything that has state, and its training step."""

    def __init__(self, make_optimizer: Callable[..., Any] | None = None):
        mg.random.seed(3)
        self.model = layers.Sequential(
            layers.Linear(6, 8), layers.BatchNorm(8), layers.ReLU(), layers.Dropout(0.3),
            layers.Linear(8, 3),
        )  # fmt: skip
        make = make_optimizer or (lambda p: mg.optim.SGD(p, lr=0.1, momentum=0.9))
        self.optimizer = make(self.model.parameters())

    def step(self, x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        self.optimizer.zero_grad()
        loss = mg.nn.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> dict[str, Any]:
        values = {name: t.tolist() for name, t in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            values |= {f"{name} of {i}": t.tolist() for name, t in state.items()}
        values["random"] = mg.random.default_generator.state().tolist()
        return values


def same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        actual, wanted = (mg.tensor(v).reshape((-1,)).tolist() for v in (state[name], values))
        if all(isinstance(v, int) or v == int(v) for v in wanted):
            assert actual == wanted, name
        else:
            assert actual == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


def batches(count: int, size: int = 4) -> list[tuple[mg.Tensor, mg.Tensor]]:
    generator = mg.random.Generator(7)
    data = [
        (
            mg.random.normal((size, 6), generator=generator),
            mg.random.randint(0, 3, (size,), generator=generator),
        )
        for _ in range(count)
    ]
    mg.evaluate(*(t for batch in data for t in batch))
    return data


class Recordings:
    """How often functions were run in full, by counting Python calls."""

    def __init__(self, function: Step):
        self.calls = 0
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


def compiled(function: Step) -> tuple[Step, Recordings]:
    """The compiled function, and the count of its Python runs: 2 once it is recorded."""
    counting = Recordings(function)
    return mg.compile(lambda *args, **kwargs: counting(*args, **kwargs)), counting


class TestSameNumbers:
    @pytest.mark.parametrize(
        "make_optimizer",
        [None, lambda p: mg.optim.Adam(p, lr=0.01)],
        ids=["SGD with momentum", "Adam"],
    )
    def test_as_without_capturing(self, make_optimizer):
        """Losses, parameters, running statistics, optimizer state, random stream.

        Bit for bit where nothing is rounded. A captured step computes less (its gradients are
        nobody's to see), so it may be fused and hence rounded otherwise.
        """
        data = batches(6)
        plain = Training(make_optimizer)
        losses = [plain.step(*batch).item() for batch in data]
        expected = plain.state()

        captured = Training(make_optimizer)
        step, runs = compiled(captured.step)
        again = [step(*batch).item() for batch in data]
        assert runs.calls == 2
        same(captured.state(), expected)
        assert again == pytest.approx(losses, rel=1e-5)

    def test_a_replay_makes_no_graph_and_no_plan(self, watch: Watch):
        data = batches(5)
        training = Training()
        step = mg.compile(training.step)
        for batch in data[:3]:
            step(*batch)
        watch.reset()
        before = graph.leaf(None, (), mg.float32, mg.cpu).id
        step(*data[3])
        built = graph.leaf(None, (), mg.float32, mg.cpu).id - before
        assert (watch.compiled, watch.planned) == (0, 0)
        assert built < 40  # one leaf for each tensor that changed

    def test_evaluation(self):
        training = Training()
        training.model.eval()
        (x, _), *_ = batches(1)
        expected = training.model(x).tolist()
        predict, runs = compiled(mg.no_grad()(training.model))
        for _ in range(4):
            assert predict(x).tolist() == expected
        assert runs.calls == 2

    def test_random_numbers_go_on(self):
        mg.random.seed(1)
        expected = [mg.random.uniform((3,)).tolist() for _ in range(5)]
        mg.random.seed(1)
        draw = mg.compile(lambda: mg.random.uniform((3,)))
        assert [draw().tolist() for _ in range(5)] == expected
        mg.random.seed(1)  # the recorded step sees a new seed
        assert draw().tolist() == expected[0]


class TestRecordedAgain:
    def test_shape_dtype_and_values(self):
        f, runs = compiled(lambda x, k: x * k)
        for _ in range(3):
            assert f(mg.tensor([1.0]), 2).tolist() == [2]
            assert f(mg.tensor([1.0, 2.0]), 2).tolist() == [2, 4]
            assert f(mg.tensor([1]), 2).tolist() == [2]
            assert f(mg.tensor([1.0]), 3).tolist() == [3]
            assert f(mg.tensor([1]), 2.0).dtype == mg.float32  # 2 == 2.0, but not here
        assert runs.calls == 10

    def test_mode(self):
        training = Training()
        step, runs = compiled(lambda x: training.model(x).sum())
        (x, _), *_ = batches(1)
        for _ in range(3):
            step(x)
        training.model.eval()
        expected = training.model(x).sum().item()
        for _ in range(3):
            assert step(x).item() == pytest.approx(expected, rel=1e-6)
        assert runs.calls == 3

    def test_back_in_a_mode_the_recording_is_still_there(self):
        training = Training()
        step, runs = compiled(training.step)
        (x, y), *_ = batches(1)
        for _ in range(4):
            step(x, y)
            step(x, y)
            training.model.eval()
            training.model.train()
        assert runs.calls == 2

    def test_no_grad(self):
        w = mg.tensor([2.0], requires_grad=True)
        f, runs = compiled(lambda x: (x * w).requires_grad)
        x = mg.tensor([1.0])
        assert [f(x) for _ in range(3)] == [True] * 3
        with mg.no_grad():
            assert [f(x) for _ in range(3)] == [False] * 3
        assert runs.calls == 4

    def test_learning_rate_schedules_need_no_recording(self):
        data = batches(6)

        def train(wrap: Callable[[Step], Step]) -> dict[str, Any]:
            training = Training()
            schedule = mg.optim.lr_scheduler.StepLR(training.optimizer, step_size=2, gamma=0.1)
            step = wrap(training.step)
            for batch in data:
                step(*batch)
                schedule.step()
            return training.state()

        counting = Recordings(lambda: None)

        def wrap(step: Step) -> Step:
            f, counting.function = compiled(step)
            return f

        same(train(wrap), train(lambda step: step))
        assert counting.function.calls == 2

    def test_loaded_parameters_are_seen(self):
        training = Training()
        step, runs = compiled(training.step)
        data = batches(4)
        saved = training.model.state_dict()
        losses = [step(*data[0]).item() for _ in range(3)]
        training.model.load_state_dict(saved)
        mg.random.seed(3)
        training.model.eval()
        expected = mg.nn.cross_entropy(training.model(data[0][0]), data[0][1]).item()
        evaluate, _ = compiled(lambda x, y: mg.nn.cross_entropy(training.model(x), y))
        for _ in range(3):
            assert evaluate(*data[0]).item() == pytest.approx(expected)
        training.model.train()
        step(*data[0])
        training.model.load_state_dict(saved)
        training.model.eval()
        assert evaluate(*data[0]).item() == pytest.approx(expected)
        assert (runs.calls, len(losses)) == (2, 3)

    def test_a_parameter_that_another_step_trains(self):
        """Read by one compiled function, changed by another: no recording for each change."""
        w = mg.tensor([1.0], requires_grad=True)
        optimizer = mg.optim.SGD([w], lr=1.0)

        @mg.compile
        def train() -> None:
            optimizer.zero_grad()
            (w * 1.0).sum().backward()
            optimizer.step()

        read, runs = compiled(lambda x: x * w)
        x = mg.tensor([1.0])
        seen = []
        for _ in range(5):
            seen += read(x).tolist()
            train()
        assert seen == [1, 0, -1, -2, -3]
        assert runs.calls == 2

    @pytest.mark.parametrize("share", [False, True], ids=["alone", "another handle on the value"])
    def test_a_constant_that_changes(self, share):
        scale = mg.tensor([2.0])
        other = scale.detach() if share else None
        f, runs = compiled(lambda x: x * scale)
        x = mg.tensor([1.0])
        assert [f(x).item() for _ in range(3)] == [2, 2, 2]
        scale.assign(mg.tensor([5.0]))
        assert [f(x).item() for _ in range(2)] == [5, 5]
        expected = 3 if share else 2  # alone, it is read at each replay
        assert runs.calls == expected
        del other
        assert f(x).item() == 5
        assert runs.calls == expected

    def test_a_constant_that_was_not_computed(self):
        base = mg.tensor([2.0])
        scale = base + 1
        f, _ = compiled(lambda x: x * scale)
        x = mg.tensor([1.0])
        assert [f(x).item() for _ in range(3)] == [3, 3, 3]
        scale += 1
        assert [f(x).item() for _ in range(2)] == [4, 4]

    def test_frozen_parameters(self):
        training = Training()
        step, runs = compiled(training.step)
        data = batches(1)
        for _ in range(3):
            step(*data[0])
        first = training.model[0]
        first.requires_grad_(False)
        before = first.weight.tolist()
        for _ in range(2):
            step(*data[0])
        assert first.weight.tolist() == before
        assert runs.calls == 3

    def test_another_dtype(self):
        training = Training()
        step, _ = compiled(lambda: training.model[0].weight.sum())
        expected = step().item()
        assert [step().item() for _ in range(2)] == [expected] * 2
        training.model.to(mg.float64)
        assert step().dtype == mg.float64
        assert step().item() == pytest.approx(expected)


class Pair(NamedTuple):
    a: mg.Tensor
    b: mg.Tensor


class TestArgumentsAndResults:
    def test_nested_containers(self):
        def f(data, *, options):
            x, (y, z) = data["x"], data["rest"]
            return {"sum": x + y, "parts": [z * options["k"], (x, "text")], "none": None, "n": 3}

        g = mg.compile(f)
        for k in range(4):
            data = {"x": mg.tensor([1.0 + k]), "rest": (mg.tensor([2.0]), mg.tensor([3.0]))}
            result = g(data, options={"k": 2})
            assert result["sum"].tolist() == [3 + k]
            assert result["parts"][0].tolist() == [6]
            assert result["parts"][1][0].tolist() == [1 + k]
            assert result["parts"][1][1] == "text"
            assert isinstance(result["parts"][1], tuple)
            assert (result["none"], result["n"]) == (None, 3)

    def test_named_tuples(self):
        f = mg.compile(lambda p: Pair(p.b, p.a * 2))
        for k in range(3):
            result = f(Pair(mg.tensor([float(k)]), mg.tensor([1.0])))
            assert isinstance(result, Pair)
            assert (result.a.item(), result.b.item()) == (1, 2 * k)

    def test_order_and_keywords(self):
        f, runs = compiled(lambda a, b=None: a - b)
        one, two = mg.tensor([1.0]), mg.tensor([2.0])
        for _ in range(3):
            assert f(one, two).item() == -1
            assert f(two, one).item() == 1
            assert f(two, b=one).item() == 1
            assert f(b=two, a=one).item() == -1
        assert runs.calls == 6

    def test_one_tensor_twice_is_not_two(self):
        def f(a, b):
            a += 1
            return a + b

        g = mg.compile(f)
        for k in range(4):
            a, b = mg.tensor([1.0 * k]), mg.tensor([10.0])
            assert g(a, b).item() == k + 11
            c = mg.tensor([1.0 * k])
            assert g(c, c).item() == 2 * (k + 1)

    def test_an_argument_that_is_changed(self):
        def f(x):
            x += 1
            return x * 2

        g = mg.compile(f)
        for _ in range(4):
            x = mg.tensor([1.0])
            assert g(x).item() == 4
            assert x.item() == 2

    def test_arguments_with_gradient(self):
        w = mg.tensor([3.0], requires_grad=True)
        f = mg.compile(lambda x: mg.gradients((x * w).sum(), x))
        for k in range(3):
            assert f(mg.tensor([float(k)], requires_grad=True)).tolist() == [3]

    def test_unhashable_arguments(self):
        f = mg.compile(lambda x, options: x)
        with pytest.raises(TypeError, match="compile: expected arguments that are tensors or hash"):
            f(mg.tensor([1.0]), {1, 2})

    def test_an_argument_given_back(self):
        f = mg.compile(lambda x: x)
        for k in range(4):
            x = mg.tensor([float(k)])
            assert f(x).tolist() == [k]
        assert mg.compile(lambda: None)() is None

    def test_a_result_that_is_state(self):
        total = mg.tensor([0.0])

        @mg.compile
        def count():
            total.assign(total + 1)
            return total

        results = [count() for _ in range(5)]
        assert total.item() == 5
        assert [r.item() for r in results[1:]] == [2, 3, 4, 5]

    def test_a_temporary_that_is_changed_in_place(self):
        def f(x):
            y = x * 2
            y += 1
            return y

        g, runs = compiled(f)
        assert [g(mg.tensor([float(k)])).item() for k in range(5)] == [1, 3, 5, 7, 9]
        assert runs.calls == 2

    def test_a_function_without_tensors(self):
        f = mg.compile(lambda: mg.ones((2,)) * 3)
        for _ in range(3):
            assert f().tolist() == [3, 3]

    def test_borrowed_memory_is_read_anew(self):
        memory = bytearray(8)
        view = memoryview(memory).cast("f")
        f = mg.compile(lambda x: mg.tensor(x) * 2)
        for k in range(4):
            view[0], view[1] = k, k + 1
            assert f(mg.asarray(view)).tolist() == [2 * k, 2 * k + 2]


class TestState:
    def test_made_on_first_use(self):
        state: dict[str, mg.Tensor] = {}

        def f(x):
            if "mean" not in state:
                state["mean"] = x * 0
            state["mean"].assign(state["mean"] * 0.5 + x)
            return state["mean"] + 0

        g = mg.compile(f)
        expected = 0.0
        for k in range(5):
            expected = expected * 0.5 + k
            assert g(mg.tensor([float(k)])).item() == expected
        assert state["mean"].item() == expected

    def test_made_on_first_use_of_a_signature_recorded_before(self):
        """The call that would be recorded makes state: it runs as usual, the next is recorded."""
        state: list[mg.Tensor] = []
        wanted = [False]

        def f(x):
            if wanted[0]:
                if not state:
                    state.append(x * 0)
                state[0].assign(state[0] + x)
                return state[0] + 0
            return x * 0

        g = mg.compile(f)
        g(mg.tensor([1.0]))
        wanted[0] = True
        assert [g(mg.tensor([1.0])).item() for _ in range(4)] == [1, 2, 3, 4]

    def test_gradients_do_not_outlive_the_step(self):
        w = mg.tensor([1.0], requires_grad=True)

        def f(x):
            (x * w).sum().backward()
            return w.grad * 1.0  # no zero_grad: each call starts without

        g = mg.compile(f)
        for _ in range(4):
            assert g(mg.tensor([2.0])).item() == 2
            assert w.grad is None

    def test_a_gradient_from_before_is_refused(self):
        w = mg.tensor([1.0], requires_grad=True)

        def f(x):
            (x * w).sum().backward()
            return w.grad * 1.0

        g = mg.compile(f)
        g(mg.tensor([2.0]))
        (w * 3).sum().backward()
        with pytest.raises(CaptureError, match=r"no gradient from before the step.*zero_grad"):
            g(mg.tensor([2.0]))

    def test_deleted_state(self):
        holder = [mg.tensor([0.0])]

        def f():
            holder[0].assign(holder[0] + 1)
            return holder[0] + 0

        g, runs = compiled(f)
        assert [g().item() for _ in range(3)] == [1, 2, 3]
        holder[0] = mg.tensor([10.0])
        assert [g().item() for _ in range(2)] == [11, 12]
        assert runs.calls == 3

    def test_state_assigned_between_calls(self):
        total = mg.tensor([0.0])

        def f(x):
            total.assign(total + x)
            return total + 0

        g, runs = compiled(f)
        x = mg.tensor([1.0])
        assert [g(x).item() for _ in range(3)] == [1, 2, 3]
        total.assign(total * 10)  # lazy
        assert g(x).item() == 31
        assert runs.calls == 2


class TestRefused:
    @pytest.mark.parametrize(
        "look",
        [
            lambda x: x.sum().item(),
            lambda x: float(x[0]),
            lambda x: repr(x),
            lambda x: bool((x > 0)[0]),
            lambda x: x.tolist(),
        ],
        ids=["item", "float", "repr", "bool", "the argument itself"],
    )
    def test_a_value_is_looked_at(self, look):
        def f(x):
            look(x)
            return x * 2

        g = mg.compile(f)
        x = mg.tensor([1.0, 2.0])
        assert g(x).tolist() == [2, 4]
        message = r"no value is looked at inside a compiled function.* at .*test_capture\.py:\d+\."
        with pytest.raises(CaptureError, match=message):
            g(x)

    def test_state_is_looked_at(self):
        count = mg.tensor(0)

        def f(x):
            scale = 1.0 if count.item() < 3 else 0.0  # would be what it was, forever
            count.assign(count + 1)
            return x * scale

        g = mg.compile(f)
        g(mg.tensor([1.0]))
        with pytest.raises(CaptureError, match="which the function also assigns"):
            g(mg.tensor([1.0]))
        assert count.item() == 1

    def test_constants_may_be_looked_at(self):
        table = mg.tensor([2.0, 3.0])
        f, runs = compiled(lambda x: x * table[1].item())
        assert [f(mg.tensor([1.0])).item() for _ in range(3)] == [3, 3, 3]
        table.assign(table * 2)
        assert f(mg.tensor([1.0])).item() == 6
        assert runs.calls == 3

    def test_an_error_while_recording_changes_nothing(self):
        training = Training()
        broken = [False]

        def f(x, y):
            loss = training.step(x, y)
            if broken[0]:
                raise ZeroDivisionError
            return loss

        g = mg.compile(f)
        data = batches(3)
        g(*data[0])
        before, before_observer = training.state(), context.observer
        broken[0] = True
        with pytest.raises(ZeroDivisionError):
            g(*data[1])
        assert not capturing()
        assert context.observer is before_observer
        assert all(p.grad is None for p in training.model.parameters())
        assert all(p.node.storage is not None for p in training.model.parameters())
        assert training.state() == before
        broken[0] = False
        g(*data[1])
        g(*data[2])

        plain = Training()
        for batch in data:
            plain.step(*batch)
        same(training.state(), plain.state())

    def test_an_error_in_a_replay_changes_nothing(self, on_cpu):  # raised at once
        total = mg.tensor([0.0])

        def f(index):
            picked = mg.take(mg.tensor([1.0, 2.0]), index + 0, axis=0)
            total.assign(total + picked.sum())
            return picked

        g = mg.compile(f)
        for _ in range(3):
            g(mg.tensor([0, 1]))
        with pytest.raises(IndexError):
            g(mg.tensor([0, 5]))
        assert total.item() == 9
        g(mg.tensor([0, 1]))
        assert total.item() == 12


class TestOtherModes:
    def test_eager_and_anomaly_detection_run_the_function(self):
        f, runs = compiled(lambda x: mg.log(x))
        x = mg.tensor([1.0])
        for _ in range(3):
            f(x)
        with mg.eager():
            assert f(x).tolist() == [0]
        with mg.detect_anomaly(), pytest.raises(mg.AnomalyError):
            f(mg.tensor([-1.0]))
        assert runs.calls == 4

    def test_nested(self):
        inner = mg.compile(lambda x: x * 2)
        outer, runs = compiled(lambda x: inner(x) + 1)
        assert [outer(mg.tensor([float(k)])).item() for k in range(4)] == [1, 3, 5, 7]
        assert runs.calls == 2

    def test_keeps_its_name(self):
        @mg.compile
        def training_step():
            """What it does."""

        assert training_step.__name__ == "training_step"
        assert training_step.__doc__ == "What it does."

    def test_pending_updates_from_before(self):
        norm = layers.BatchNorm(1, momentum=0.5)
        f = mg.compile(lambda x: norm(x).sum())
        x = mg.tensor([[1.0], [3.0]])
        for _ in range(3):
            f(x)
        norm(x)  # an update that waits
        f(x)
        assert norm.num_batches_tracked.item() == 5
        assert norm.running_mean.item() == pytest.approx(2 * (1 - 0.5**5))


@pytest.mark.usefixtures("fresh_plans")
class TestMemory:
    def test_a_step_holds_no_values(self):
        data = batches(6)
        training = Training()
        step = mg.compile(training.step)
        for batch in data[:3]:
            step(*batch)
        base = live_bytes()
        for batch in data[3:]:
            step(*batch)
        assert live_bytes() == base

    def test_arguments_are_not_held(self):
        f = mg.compile(lambda x: x * 2)
        for _ in range(3):
            x = mg.tensor([1.0])
            f(x)
        node = weakref.ref(x.node)
        del x
        gc.collect()
        assert node() is None

    def test_modes_do_not_pile_up(self):
        training = Training()
        step = mg.compile(training.step)
        data = batches(1)
        sizes = []
        for _ in range(5):
            for _ in range(3):
                step(*data[0])
            training.model.eval()
            training.model.train()
            gc.collect()
            sizes.append(len(gc.get_objects()))
        assert sizes[-1] - sizes[1] < 50

    def test_a_replay_allocates_its_results_alone(self, on_cpu, monkeypatch):
        from minigrad.backend.cpu.runtime import memory

        training = Training()
        step = mg.compile(training.step)
        (batch,) = batches(1)
        for _ in range(4):
            step(*batch)
        made: list[int] = []
        allocate = memory.DeviceBuffer.__init__

        def counting(self: memory.DeviceBuffer, nbytes: int, purpose: str = "") -> None:
            made.append(nbytes)
            allocate(self, nbytes, purpose)

        monkeypatch.setattr(memory.DeviceBuffer, "__init__", counting)
        for _ in range(3):
            step(*batch)
        assert made == [4] * 3

    @pytest.mark.parametrize(
        "hold",
        [lambda t: t.detach(), lambda t: t.node, lambda t: t * 1],
        ids=["tensor", "node", "op"],
    )
    def test_old_values_that_somebody_holds_stay(self, hold):
        """The two buffers of a tensor are written in turns, but not while they are seen."""
        total = mg.tensor([0.0])

        @mg.compile
        def add(x):
            total.assign(total + x)

        x = mg.tensor([1.0])
        held, views = [], []
        for _ in range(7):
            add(x)
            held.append(hold(total))
            views.append(export_bytes(total).cast("f"))
        values = [h if isinstance(h, mg.Tensor) else tensor_base.wrap(h) for h in held]
        assert [v.item() for v in values] == [1, 2, 3, 4, 5, 6, 7]
        assert [v[0] for v in views] == [1, 2, 3, 4, 5, 6, 7]

    def test_an_expression_of_state_is_another_after_a_replay(self):
        total = mg.tensor([0.0])

        @mg.compile
        def add():
            total.assign(total + 1)

        seen = []
        for _ in range(6):
            add()
            seen.append((total * 2).item())
        assert seen == [2, 4, 6, 8, 10, 12]

    def test_programs_share_one_arena(self, on_cpu):
        from minigrad.backend.cpu.runtime.executable import arena

        f = mg.compile(lambda x: ((x.sum(axis=0) * x).sum(axis=1) * x.T).sum())
        inputs = [mg.ones((n, n)) for n in (4, 512, 8)]
        for _ in range(3):
            values = [f(x).item() for x in inputs]
            assert values == [float(x.shape[0] ** 4) for x in inputs]
        size = arena.buffer.nbytes
        for x in inputs:
            f(x)
        assert arena.buffer.nbytes == size
