"""`mg.study.kernels`: what it lists is what runs, and its bytes are those counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import layers
import minigrad as mg
from minigrad import Tensor, nn, study
from minigrad.compiler.plan import Plan
from minigrad.execution.compute import plans_for

IMAGES = (16, 8, 12, 12)
FULL = 4 * 16 * 8 * 12 * 12  # bytes


def normal(*shape: int, grad: bool = False) -> Tensor:
    x = mg.random.normal(shape).requires_grad_(grad)
    mg.evaluate(x)
    return x


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The compiled kernels that run during a test."""
    found: list[Any] = []
    run = Plan.run

    def watched(self: Plan, *args: Any) -> Any:
        found.extend(launch.kernel for launch in self.program.launches)
        return run(self, *args)

    monkeypatch.setattr(Plan, "run", watched)
    return found


def test_normalization_and_activation_are_one_kernel_of_three_passes():
    x, weight, bias = normal(*IMAGES), normal(8), normal(8)
    y = nn.relu(nn.batch_norm(x, None, None, weight, bias, training=True))
    (kernel,) = found = study.kernels(y)
    assert kernel.passes == 3  # the sample's distance to the mean, the variance, the output
    assert sorted(kernel.shape) == [8, 16, 144]
    assert kernel.reads == {"x": FULL, "weight": 32, "bias": 32}
    assert kernel.writes["y"] == FULL
    assert {"sum", "rsqrt", "mul", "sub"} <= set(kernel.ops)
    assert kernel.launches == 1
    assert found.inputs == FULL + 64
    assert found.floor(2e9) == found.compulsory / 2e9


def test_its_backward_comes_along_and_reads_x_and_g_once():
    x, weight, bias = normal(*IMAGES, grad=True), normal(8, grad=True), normal(8, grad=True)
    g = normal(*IMAGES)
    y = nn.relu(nn.batch_norm(x, None, None, weight, bias, training=True))
    dx, dweight, dbias = mg.gradients([y], [x, weight, bias], [g])
    found = study.kernels(y, dx, dweight, dbias)
    big = [k for k in found if k.bytes_written > FULL]
    assert len(big) == 1
    assert big[0].passes == 4  # two of the forward; two sums at once; both outputs
    assert big[0].reads == {"x": FULL, "weight": 32, "bias": 32, "g": FULL}
    assert big[0].writes["y"] == big[0].writes["dx"] == FULL
    assert found.inputs == 2 * FULL + 64
    # Kept for later: the sums behind the mean and the variance, 8 floats each.
    assert found.outputs == 2 * FULL + 4 * 32
    assert found.compulsory <= found.bytes_read + found.bytes_written < 1.01 * found.compulsory


def image_norm(f: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], int, tuple[int, ...]]:
    return f, 8, IMAGES


# By function: how often the kernels of its forward, of forward and backward, and of both with the
# derivative of <u, dx> run over arrays of the size of x, all launches together. At most.
# Along rows dx is written beside the row sums, where the row is in the cache; column sums are a
# pass apart.
PASSES: dict[str, tuple[tuple[Callable[..., Tensor], int, tuple[int, ...]], tuple[int, ...]]] = {
    "batch_norm": (
        image_norm(lambda x, g, b: nn.batch_norm(x, None, None, g, b, training=True)), (3, 4, 5),
    ),
    "instance_norm": (
        image_norm(lambda x, g, b: nn.instance_norm(x, None, None, g, b)), (3, 4, 6),
    ),
    "group_norm": (image_norm(lambda x, g, b: nn.group_norm(x, 2, g, b)), (3, 5, 6)),
    "layer_norm": ((lambda x, g, b: nn.layer_norm(x, 96, g, b), 96, (256, 96)), (3, 5, 6)),
    "rms_norm": ((lambda x, g, b: nn.rms_norm(x, 96, g) + b, 96, (256, 96)), (2, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_passes_over_the_data(name):
    (f, channels, shape), most = PASSES[name]
    x, g, u = normal(*shape, grad=True), normal(*shape), normal(*shape)
    weight, bias = normal(channels, grad=True), normal(channels, grad=True)

    def passes(*roots: Tensor) -> int:
        nbytes = [
            (k.passes, [*k.reads.values(), *k.writes.values()]) for k in study.kernels(*roots)
        ]
        return sum(n for n, arrays in nbytes if max(arrays) == 4 * x.size)

    y = nn.relu(f(x, weight, bias))
    first = mg.gradients([y], [x, weight, bias], [g], create_graph=True)
    second = mg.gradients(first[:1], [x, weight], [u])
    found = passes(y), passes(y, *first), passes(y, *first, *second)
    assert all(a <= b for a, b in zip(found, most, strict=True)), found


def test_a_matrix_product():
    a, b = normal(64, 32), normal(32, 48)
    c = a @ b
    (kernel,) = found = study.kernels(c)
    assert kernel.ops == ("dot",)
    assert kernel.shape == (1, 64, 48, 32)
    assert (kernel.reads, kernel.writes) == (
        {"a": 4 * 64 * 32, "b": 4 * 32 * 48},
        {"c": 4 * 64 * 48},
    )
    assert found.compulsory == kernel.bytes_read + kernel.bytes_written


def test_a_convolution(on_cpu):
    x, w = normal(*IMAGES), normal(4, 8, 3, 3)
    y = nn.conv2d(x, w)
    (kernel,) = study.kernels(y)
    assert kernel.ops == ("conv2d",)
    assert kernel.shape == (16, 4, 10, 10, 8, 3, 3)
    assert kernel.reads == {"x": FULL, "w": 4 * w.size}
    assert kernel.writes == {"y": 4 * y.size}
    assert kernel.launches > 1  # weights are packed first
    assert kernel.source.count("def kernel(") == kernel.launches


def test_what_is_listed_is_what_runs(launched, watch):
    x, w = normal(*IMAGES, grad=True), normal(4, 8, 3, 3, grad=True)
    y = nn.max_pool2d(nn.relu(nn.conv2d(x, w)), 2)
    loss = mg.sum(y * y)
    dx, dw = mg.gradients([loss], [x, w])
    launched.clear()
    found = study.kernels(loss, dx, dw)
    assert not launched  # compiled, not run
    watch.reset()
    mg.evaluate(loss, dx, dw)
    assert watch.planned == 0
    assert sum(k.launches for k in found) == len(launched)
    assert {k.name for k in found} <= {kernel.name for kernel in launched}
    listed = "\n\n".join(k.source for k in found)
    assert all(kernel.source in listed for kernel in launched)
    assert listed.count("def kernel(") <= len(launched)


def test_computed_tensors_need_no_kernel():
    x = normal(3, 4)
    y = x * 2.0
    assert len(study.kernels(y)) == 1
    mg.evaluate(y)
    assert len(found := study.kernels(x, y)) == found.compulsory == 0


def test_a_compiled_step():
    x, w = normal(64, 32), normal(32)

    @mg.compile
    def step(x: Tensor) -> Tensor:
        w.assign(w + mg.sum(x, axis=0))
        return mg.sum(x * x)

    step(x)
    with pytest.raises(ValueError, match="kernels: expected a function that"):
        study.kernels(step)
    step(x)
    found = study.kernels(step)
    assert found.inputs == 4 * (64 * 32 + 32)
    assert found.outputs == 4 * (32 + 1)
    assert all("kernel(" in k.source or "KERNEL" in k.source for k in found)


def test_running_statistics_are_computed_with_the_output():
    norm, x = layers.BatchNorm2d(8), normal(*IMAGES)
    mean = norm.running_mean
    before = mean.tolist()
    y = norm(x)
    names = {"y": y, "mean": mean, "var": norm.running_var}
    written = {name for kernel in study.kernels(y, names=names) for name in kernel.writes}
    assert names.keys() <= written
    mg.evaluate(y)
    assert mean.tolist() != before


@pytest.mark.parametrize(
    ("f", "elements"),
    [
        (lambda x: mg.sum(x[:, :5]), 30),
        (lambda x: mg.sum(x[:, ::2]), 30),
        (lambda x: mg.sum(x[:2]) + mg.sum(x[4:]), 40),
        (lambda x: mg.sum(x[:2] * x[1:3]), 30),
        (lambda x: x[:, :6] + mg.permute_dims(x[:, :6], (1, 0)), 36),
        (lambda x: mg.sum(mg.broadcast_to(x[0, :5], (7, 5))), 5),
    ],
)
def test_each_element_that_is_read_counts_once(f, elements):
    x = normal(6, 10)
    y = f(x)
    with mg.rewrites(False):
        found = study.kernels(y)
    assert found.inputs == 4 * elements
    assert sum(k.reads.get("x", 0) for k in found) >= 4 * elements


def test_all_kinds_of_kernels_say_what_they_read_and_write():
    """Every launch belongs to one call, and what a call reads was there or was written before."""
    x, table = normal(4, 6, 10, 10, grad=True), normal(9, 5, grad=True)
    labels = mg.random.randint(0, 9, (4, 3))
    mg.evaluate(labels)
    pieces = [
        nn.max_pool2d(x, 3, 2),
        nn.avg_pool2d(x, 2),
        mg.concat([x[:, :2], mg.tanh(x[:, 2:])], axis=1),
        nn.conv2d(mg.permute_dims(x, (0, 1, 3, 2)), normal(6, 3, 3, 3), padding=1, groups=2),
        mg.take(table, labels[0], axis=0),
        mg.matmul(mg.reshape(x, (4, 60, 10)), normal(10, 3)),
        nn.local_response_norm(x, 3),
    ]
    loss = sum((mg.sum(p * p) for p in pieces), mg.zeros(()))
    roots = [loss, *mg.gradients([loss], [x, table]), mg.argmax(x, axis=1), mg.random.normal((9,))]
    ((plan, _),) = plans_for([r.node for r in roots])
    program = plan.program
    assert [i for call in program.calls for i in call.launches] == [*range(len(program.launches))]
    known = set(range(len(plan.inputs)))
    for call in program.calls:
        assert {o.slot for o in call.reads} <= known, call
        assert call.writes
        known |= {o.slot for o in call.writes}
    assert plan.holds.keys() <= known


def test_the_table():
    x, weight = normal(64, 4), normal(4)
    y = mg.tanh(x * weight)
    found = study.kernels(y)
    header, row, total = found.text().splitlines()
    assert header.split() == ["kernel", "shape", "passes", "tasks", "read", "written", "arrays"]
    assert row.endswith("1.04 kB  1.02 kB  weight, x -> y")
    assert total == "1 kernels move 2.06 kB; inputs once and outputs once are 2.06 kB"
    assert repr(found) + "\n" == found.text()
    renamed = study.kernels(y, names={"input": x})
    assert "in1, input -> out2" in renamed.text()


def test_arguments_of_another_kind_are_an_error():
    with pytest.raises(TypeError, match="kernels: expected Tensors or functions made by"):
        study.kernels(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernels: expected a function that"):
        study.kernels(len)


def test_a_measured_bandwidth():
    fast = study.copy_bandwidth(nbytes=1 << 22, repeats=3)
    assert 1e8 < fast < 1e13
