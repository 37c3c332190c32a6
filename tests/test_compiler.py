"""The compiler: which kernels a graph becomes, and that fused kernels compute what they should."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import reference
from observing import Watch

import layers
import minigrad as mg
from minigrad import ops
from minigrad.compiler import arena as placing
from minigrad.device import default_device
from minigrad.execution.compute import compute
from minigrad.graph import const_value, iota

pytestmark = pytest.mark.usefixtures("poisoned")


def random_tensor(*shape: int, seed: int = 0, dtype: str = "float32") -> mg.Tensor:
    numbers = random.Random(f"{seed} {shape}")
    values = [numbers.uniform(-2, 2) for _ in range(math.prod(shape))]
    if dtype in ("int32", "int64"):
        values = [int(100 * v) for v in values]
    if dtype == "uint8":
        values = [int(60 * v + 120) for v in values]
    if dtype == "bool":
        values = [v > 0.3 for v in values]
    return mg.tensor(values, dtype=dtype).reshape(shape) if values else mg.zeros(shape, dtype)


def check(*tensors: mg.Tensor, tolerance: float = 2e-6) -> None:
    """Compute the tensors together, and compare with the interpreter."""
    expected = [reference.evaluate(t.node) for t in tensors]
    compute([t.node for t in tensors])
    for k, (t, e) in enumerate(zip(tensors, expected, strict=True)):
        actual = reference.read(t.node)
        if not t.dtype.is_floating:
            assert actual == e, f"output {k}"
            continue
        scale = max([1.0, *(abs(v) for v in e if math.isfinite(v))])
        for i, (a, b) in enumerate(zip(actual, e, strict=True)):
            same = a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance * scale
            assert same, f"output {k}, element {i}: {a} instead of {b}"


def standardized(x: mg.Tensor, axes: tuple[int, ...]) -> list[mg.Tensor]:
    """Several reductions, and passes that depend on earlier ones."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    var = (centred * centred).mean(axis=axes, keepdims=True)
    y = centred / (var + 0.1).sqrt()
    return [y, mean, y.max(axis=axes), (y * x).sum(axis=axes)]


VIEWS = {
    "permuted": lambda x: mg.permute_dims(x, (2, 0, 1)),
    "flipped": lambda x: mg.flip(x, axis=(0, 2)),
    "strided": lambda x: x[::2, 1:, ::3],
    "broadcast": lambda x: x[:, :1, :].broadcast_to((4, 6, 7)),
    "split": lambda x: x.reshape((2, 2, 6, 7)),
    "merged": lambda x: x.reshape((24, 7)),
    "merged after permuting": lambda x: mg.permute_dims(x, (1, 0, 2)).reshape((24, 7)),
    "merged after slicing": lambda x: x[:, 1:5, :].reshape((16, 7)),
}


class TestStructure:
    """Kernel counts. They change only on purpose."""

    def batch_norm(self, shape=(8, 3, 10, 10)):
        norm = layers.BatchNorm2d(shape[1])
        mg.evaluate(*norm.parameters(), *norm.buffers())
        return norm, mg.tensor(random_tensor(*shape), requires_grad=True)

    def test_batch_norm_and_relu_forward_is_one_kernel(self, watch: Watch):
        norm, x = self.batch_norm()
        y = mg.nn.relu(norm(x))
        watch.reset()
        mg.evaluate(y)
        assert watch.spaces.count(x.shape) == 1
        # The rest is of one value a channel: two running statistics, and the count of batches.
        assert len(watch.kernels) == 4, watch.kernels

    def test_batch_norm_and_relu_backward_is_one_kernel(self, watch: Watch):
        norm, x = self.batch_norm()
        y = mg.nn.relu(norm(x))
        cotangent = random_tensor(*y.shape, seed=1)
        mg.evaluate(y, cotangent)
        watch.reset()
        y.backward(cotangent)
        mg.evaluate(x.grad, norm.weight.grad, norm.bias.grad)
        assert watch.spaces.count(x.shape) == 1
        assert len(watch.kernels) <= 2, watch.kernels

    def test_a_convolution_layer_is_one_kernel(self, watch: Watch):
        layer = layers.Conv2d(3, 4, 3, bias=False)
        y = layer(random_tensor(2, 3, 8, 8))
        mg.evaluate(layer.weight)
        watch.reset()
        mg.evaluate(y)
        # Lowering may be several launches, but nothing elementwise comes along.
        assert all("conv" in name or "gemm" in name or "pack" in name for name in watch.kernels)

    def test_an_elementwise_chain_is_one_kernel(self, watch: Watch):
        x = random_tensor(6, 7)
        mg.evaluate(x)
        watch.reset()
        mg.evaluate(mg.exp(-(x * x)) * 3 + x.sin() - 1)
        assert len(watch.kernels) == 1

    def test_views_cost_nothing(self, watch: Watch):
        x = random_tensor(4, 6)
        mg.evaluate(x)
        watch.reset()
        y = mg.flip(x[1:, ::2].T.reshape((3, 3, 1)), axis=0).broadcast_to((3, 3, 5)) + 1.0
        check(y)
        assert len(watch.kernels) == 1

    def test_equal_shapes_compile_and_plan_nothing(self, watch: Watch):
        norm, _ = self.batch_norm()
        for k in range(3):
            norm.zero_grad()
            x = mg.tensor(random_tensor(8, 3, 10, 10, seed=k), requires_grad=True)
            loss = mg.nn.relu(norm(x)).sum()
            loss.backward()
            mg.evaluate(loss, x.grad)
            if k == 0:
                watch.reset()
                known = watch.known()
        assert (watch.compiled, watch.planned) == (0, 0)
        assert watch.known() == known

    @pytest.mark.usefixtures("fresh_plans")
    def test_kernels_serve_every_size(self, watch: Watch):
        norm, _ = self.batch_norm()
        # A GPU has other kernels where other widths of packs divide a row, so all are even here.
        for k, (batch, side) in enumerate([(8, 10), (8, 10), (5, 10), (16, 6), (3, 12)]):
            norm.zero_grad()
            x = mg.tensor(random_tensor(batch, 3, side, side), requires_grad=True)
            y = mg.nn.relu(norm(x))
            y.backward(random_tensor(*y.shape, seed=1))
            mg.evaluate(y, x.grad)
            if k == 1:  # from the second time on the graph is built in the same order
                known = watch.known()
        assert watch.known() == known

    def test_kernels_serve_every_constant(self, watch: Watch):
        x = random_tensor(5)
        mg.evaluate(x)
        results = []
        for k in range(3):
            results.append((x * (k + 2.5) + 1.5).tolist())
            if k == 0:
                watch.reset()
        assert watch.compiled == 0
        assert results[2] == pytest.approx([4.5 * v + 1.5 for v in x.tolist()])


class TestLoopNests:
    SHAPE = (2, 3, 4, 5)

    @pytest.mark.parametrize(
        "axes", [(1,), (0, 2), (0, 3), (0, 2, 3), (3,), (0,), (1, 2), (0, 1, 2, 3), (1, 3)]
    )
    def test_passes_over_axes(self, axes):
        check(*standardized(random_tensor(*self.SHAPE), axes))

    @pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 1, 4, 1), (1, 1, 1, 1), (2, 3, 1, 1)])
    def test_extents_of_one(self, shape):
        for axes in ((0, 2, 3), (1,), (3,)):
            check(*standardized(random_tensor(*shape), axes))

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
    def test_extents_of_zero(self, shape):
        x = random_tensor(*shape)
        for axis in range(len(shape)):
            check((x * 2).sum(axis=axis), x + x.sum(axis=axis, keepdims=True))
        check((x * 2).sum())

    def test_long_axes_of_either_kind(self):
        """Past the blocks of the kernels: rows of 2048 and lanes of 8192."""
        row = random_tensor(2, 5000)
        check(*standardized(row, (1,)), tolerance=2e-5)
        lanes = random_tensor(3, 9000)
        check(*standardized(lanes, (0,)))

    def test_enough_work_for_threads(self):
        x = random_tensor(40, 1000)
        check(*standardized(x, (1,)), tolerance=2e-5)
        check(*standardized(x, (0,)), tolerance=2e-5)
        check(x * 2 + 1)

    @pytest.mark.parametrize("view", VIEWS)
    def test_strided_inputs(self, view):
        stored = random_tensor(4, 6, 7)
        mg.evaluate(stored)
        virtual = stored * 2 + 1  # the view is of a value that is never stored
        for x in (stored, virtual):
            v = VIEWS[view](x)
            check(v + 1.0, v.sum(axis=-1), v.max(axis=0), v.reshape((-1,)))

    def test_views_of_sums(self):
        x = random_tensor(4, 6)
        s = x.sum(axis=1)
        check(s.reshape((2, 2)).T + 1, mg.flip(s) * s, x / s.reshape((4, 1)))

    def test_iota_and_constants(self):
        i = mg.arange(6)
        check(i.reshape((2, 3)) * 10, mg.flip(i)[::2], mg.zeros((2, 3)), mg.full((3,), 7))
        counting = mg.Tensor(iota(4, mg.int64, default_device()))
        check(counting, counting.broadcast_to((3, 4)).sum(axis=0))
        check(mg.eye(3, 4), mg.tril(mg.ones((3, 3))))

    @pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
    def test_integers(self, dtype):
        x = random_tensor(5, 7, dtype=dtype)
        for axis in (0, 1):
            total = mg.Tensor(ops.sum_(x.node, axes=(axis,)))  # wraps in its own width
            check(total, x.max(axis=axis), x + x.max(axis=axis, keepdims=True))
        check(x // 3, mg.remainder(x, 7), x * x, mg.sign(x), mg.abs(x))

    def test_bools(self):
        a, b = random_tensor(5, 7, dtype="bool"), random_tensor(5, 7, seed=1, dtype="bool")
        check(a & b, a | ~b, a ^ b, a < b, a <= b, a == b, mg.where(a, b, ~b))
        for axis in (0, 1):
            check(
                mg.Tensor(ops.max_(a.node, axes=(axis,))),
                a.astype(mg.float32).sum(axis=axis),
                mg.all(a, axis=axis),
                mg.any(a, axis=axis),
            )

    @pytest.mark.parametrize("axis", [0, 1])
    def test_nan_and_infinity(self, axis):
        nan, inf = math.nan, math.inf
        x = mg.tensor([[1.0, nan, -inf], [2.0, 3.0, -inf], [inf, -1.0, -inf]])
        check(x.max(axis=axis), x.sum(axis=axis), mg.maximum(x, mg.flip(x, axis=0)), x.min(axis=0))
        check(mg.isnan(x), x == x, x * 0.0, mg.sign(x))

    @pytest.mark.parametrize("axis", [0, 1])
    def test_sums_are_accurate(self, axis):
        """A float32 accumulator alone would lose the fifth digit."""
        n = 1_000_000
        offsets = mg.arange(n, dtype=mg.float64) % 17 / 16
        x = (offsets + 1e4).astype(mg.float32)
        exact = math.fsum(x.tolist())
        rows = x.reshape((1, n) if axis == 1 else (n, 1)).broadcast_to(
            (2, n) if axis == 1 else (n, 2)
        )
        for total in (rows * 1.0).sum(axis=axis).tolist():
            assert total == pytest.approx(exact, rel=1.2e-7)  # half an ulp of the result, and a bit

    def test_deep_chains(self):
        """Graphs are walked without recursion, and long chains are cut into kernels."""
        x = y = random_tensor(3)
        mg.evaluate(x)
        for _ in range(1200):
            y = mg.flip(y * 1.0001 - 0.0001)
        expected = reference.evaluate(y.node)
        assert y.tolist() == pytest.approx(expected, abs=1e-4)

    def test_many_terms(self):
        """More inputs than one kernel reads."""
        terms = [random_tensor(3, 4, seed=k) for k in range(30)]
        check(sum(terms[1:], terms[0]))


class TestLibraryOps:
    """What is around the kernels that are not loop nests."""

    def test_padding_does_not_share_a_constant(self):
        """The zero of one graph is at the place of another number in a graph of equal structure."""
        x = mg.tensor([1.0, 2.0])

        def padded(c: float) -> list[float]:
            y = (x * c).node
            return mg.Tensor(ops.pad(y, low=(1,), high=(1,), interior=(0,))).tolist()

        assert padded(0.0) == [0, 0, 0, 0]
        assert padded(3.0) == [0, 3, 6, 0]

    def test_parts_of_concat_and_pad_are_evaluated_in_place(self, watch: Watch):
        x = random_tensor(3, 4)
        mg.evaluate(x)
        watch.reset()
        check(mg.concat([x * 2, mg.flip(x, axis=1), x.sum(axis=1, keepdims=True)], axis=1))
        assert len(watch.kernels) == 4  # the sum, and one for each part

    def test_contractions_of_views(self):
        a, b = random_tensor(4, 3, 5), random_tensor(5, 4, 3, seed=1)
        check((a * 2) @ mg.permute_dims(b, (1, 0, 2)), tolerance=1e-5)
        check(mg.flip(a, axis=2)[0] @ b[:, 1, :], tolerance=1e-5)
        check(mg.tensordot(a, b, axes=((0, 1), (1, 2))), tolerance=1e-5)

    def test_gather_of_a_virtual_value(self):
        x = random_tensor(4, 5)
        picked = mg.tensor([3, -4, 0])
        check(mg.take(x * 2 + 1, picked, axis=0), mg.take(mg.flip(x, axis=0), picked, axis=0))
        check(mg.take(x.T.reshape((4, 5)), picked + 0, axis=1))


class TestArena:
    def test_overlapping_lives_do_not_share(self):
        numbers = random.Random(0)
        for _ in range(50):
            sizes = {k: numbers.randrange(1, 5000) for k in range(12)}
            spans = {k: tuple(sorted(numbers.randrange(10) for _ in "ab")) for k in sizes}
            offsets, arena = placing.place(sizes, spans)
            for a, b in itertools.combinations(sizes, 2):
                apart = spans[a][1] < spans[b][0] or spans[b][1] < spans[a][0]
                first, second = sorted((a, b), key=offsets.__getitem__)
                end = offsets[first] + sizes[first] + placing.SLACK
                assert apart or end <= offsets[second]
            assert all(offsets[k] + sizes[k] + placing.SLACK <= arena for k in sizes)
            assert all(o % placing.ALIGNMENT == 0 for o in offsets.values())


def test_constants_stay_constant_when_looked_at():
    """Graphs share them: one that became memory would change the structure of all others."""
    two = mg.full((), 2.0)
    assert two.item() == 2.0
    assert const_value((mg.tensor([1.0]) * 2.0).node.inputs[1]) == 2.0
    filled = mg.zeros((3,))
    assert filled.tolist() == [0, 0, 0]
    assert const_value(filled.node) == 0


def test_constants_that_were_looked_at_are_no_inputs_of_later_graphs():
    x = mg.tensor([1.0, 2.0])
    for looked_at in (mg.full((), 2.5), mg.full((2,), 2.5)):
        assert set(mg.broadcast_to(looked_at, (2,)).tolist()) == {2.5}
        (kernel,) = mg.study.kernels(x * 2.5)
        assert kernel.reads == {"x": 8}
