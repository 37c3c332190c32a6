"""How kernels are scheduled: passes, parts for idle cores, what is kept rather than recomputed."""

from __future__ import annotations

import random

import pytest
from observing import Watch
from test_compiler import check, random_tensor, standardized

import layers
import minigrad as mg
from minigrad.backend.cpu import backend
from minigrad.backend.cpu.machine import Cache, second_cache
from minigrad.backend.cpu.nests import lanes, loops, retain, rows, split, writer
from minigrad.backend.launch import Program
from minigrad.backend.loopnest import Access, LoopNest, Reduction, independent_points
from minigrad.backend.recompute import worth_keeping
from minigrad.compiler import fuse, run
from minigrad.dtype import float32

pytestmark = pytest.mark.usefixtures("on_cpu", "poisoned", "fresh_plans")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    """Plans are made for this many cores; those that are missing take turns. No size is small."""
    for module in (fuse, split):
        monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(writer, "PARALLEL_FROM", 0)

    def pretend(n: int) -> None:
        for module in (backend, lanes, writer, loops):
            monkeypatch.setattr(module, "num_threads", lambda: n)

    return pretend


class TestTwoLevels:
    """A reduction to few values is shared by all cores."""

    @pytest.mark.parametrize("n", [2, 5])
    @pytest.mark.parametrize(
        ("shape", "axes"),
        [
            ((401,), (0,)),  # no number of cores divides it
            ((3, 130), (1,)),
            ((130, 3), (0,)),
            ((7, 2, 29), (0, 2)),
            ((50, 4, 2), (0, 1)),
            ((3,), (0,)),  # fewer elements than cores
        ],
    )
    def test_values(self, cores, shape, axes, n):
        cores(n)
        x = random_tensor(*shape)
        check(x.sum(axis=axes), x.max(axis=axes), (x * x + 1.0).sum(axis=axes), tolerance=1e-5)

    @pytest.mark.parametrize("n", [2, 16])
    def test_passes(self, cores, n):
        cores(n)
        check(*standardized(random_tensor(2, 201), (1,)), tolerance=1e-4)
        check(*standardized(random_tensor(201, 2), (0,)), tolerance=1e-4)

    def test_positions_views_and_integers(self, cores):
        cores(3)
        i = mg.arange(500)
        x = random_tensor(500)
        check(
            (i * 3).sum(), (i % 7).max(), mg.flip(x).max(), (mg.flip(x) * i).sum(), tolerance=1e-2
        )
        whole = random_tensor(500, dtype="int32")
        check(whole.sum(), whole.max(), (whole > 3).sum())

    def test_what_is_stored_on_the_way_is_stored_once(self, cores, watch: Watch):
        cores(4)
        x = random_tensor(501)
        mg.evaluate(x)
        y = mg.exp(x)
        watch.reset()
        check(y, y.sum(), tolerance=1e-4)
        assert len(watch.kernels) == 3  # the parts, the rest, their combination

    def test_few_elements_stay_one_kernel(self, watch: Watch, monkeypatch):
        for module in (backend, loops):
            monkeypatch.setattr(module, "num_threads", lambda: 16)
        x = random_tensor(1000)
        mg.evaluate(x)
        watch.reset()
        check(x.sum())
        assert len(watch.kernels) == 1

    def test_a_channel_for_every_second_core_stays_one_kernel(self, cores, watch: Watch):
        """Passes over a cached slice move half of the bytes, so half of the cores may idle."""
        shape = (4, 6, 5, 5)
        norm = layers.BatchNorm2d(shape[1])
        mg.evaluate(*norm.parameters(), *norm.buffers())
        for n, kernels in ((8, 1), (16, 3)):
            cores(n)
            run._plans.clear()
            x = random_tensor(*shape, seed=n)
            mg.evaluate(x)
            watch.reset()
            check(mg.nn.relu(norm(x)), tolerance=1e-5)
            assert sum(space == shape for space in watch.spaces) == kernels

    def test_independent_points(self):
        assert independent_points((4, 100, 6), (True, False, True)) == 4
        assert independent_points((4, 100, 129), (True, False, True)) == 12
        assert independent_points((4, 100, 6), (True, True, False)) == 400
        assert independent_points((4,), (False,)) == 1


class TestSlices:
    """What a kernel of several passes retains of a slice."""

    CACHE = Cache(512 << 10, 8)

    def nest(self, shape, strides):
        """Two passes that read one array, the second after a sum of the first."""
        load = Access(0, float32, strides, 0)
        out = Access(1, float32, tuple(0 for _ in shape), 0)
        expressions = [("load", load), ("reduction", 0), ("sub", "float32", 0, 1)]
        sums = [Reduction("sum", 0, float32, out, 0), Reduction("sum", 2, float32, out, 1)]
        kept = (True, *(False for _ in shape[1:]))
        return LoopNest(shape, kept, expressions, [float32] * 3, sums, costs={"sub": 1})

    def retained(self, shape, strides, cache=CACHE):
        nest = self.nest(shape, strides)
        emitter = rows.RowLoops(Program(first_scratch=2), nest)
        far = retain.far_accesses(nest, cache)
        return retain.retained(nest, emitter.varies, far, cache)

    def test_a_dense_slice_is_near(self):
        assert self.retained((64, 30_000), (30_000, 1)) == []

    def test_a_slice_that_falls_into_few_sets_is_retained(self):
        """Rows of 1 KB, 64 KB apart: all in the same 16 of 1024 sets."""
        assert self.retained((64, 128, 256), (256, 64 * 256, 1)) == [0]
        assert self.retained((65, 128, 256), (256, 65 * 256, 1)) == []

    def test_a_slice_larger_than_the_cache_is_not(self):
        assert self.retained((64, 128, 4096), (4096, 64 * 4096, 1)) == []

    @pytest.mark.parametrize("n", [1, 2, 3])
    @pytest.mark.parametrize("shape", [(64, 4, 8, 8), (33, 4, 3, 8), (8, 2, 32, 32)])
    def test_values(self, cores, monkeypatch, shape, n):
        """Each task has slices of its own; small caches make more of them, and none."""
        cores(n)
        for cache in (Cache(64 << 10, 64), Cache(8 << 10, 2), second_cache()):
            monkeypatch.setattr(rows, "second_cache", lambda cache=cache: cache)
            run._plans.clear()
            x = mg.tensor(random_tensor(*shape), requires_grad=True)
            g = random_tensor(*shape, seed=1)
            y = mg.tanh(mg.nn.batch_norm(x, training=True))
            check(y, *mg.gradients([y], [x], [g]), tolerance=2e-5)

    def test_masks_are_retained_as_bytes(self, monkeypatch):
        monkeypatch.setattr(retain, "WRITE", 0.0)
        x = random_tensor(4, 5000)
        s = x.sum(axis=1, keepdims=True)
        y = mg.where(x * x + x.exp() < s, x, s)
        check(y, mg.where(x * x + x.exp() < s, s, x * y.sum(axis=1, keepdims=True)), tolerance=1e-2)


class TestSharedValues:
    """What several kernels would compute."""

    def test_a_function_along_rows_and_columns_is_stored(self, watch: Watch):
        x = random_tensor(60, 70)
        mg.evaluate(x)
        watch.reset()
        columns = mg.exp(mg.tanh(x) * x).sum(axis=0)  # no tensor holds what is summed
        rows = mg.exp(mg.tanh(x) * x).sum(axis=1)
        check(columns, rows, tolerance=1e-4)
        assert sum("tanh" in name for name in watch.kernels) == 1

    def test_arithmetic_is_computed_again(self, watch: Watch):
        x = random_tensor(60, 70)
        mg.evaluate(x)
        watch.reset()
        check(((x + 1.0) * x).sum(axis=0), ((x + 1.0) * x).sum(axis=1), tolerance=1e-4)
        assert sum("mul" in name for name in watch.kernels) == 2

    def test_layer_norm_writes_its_gradient_beside_its_row_sums(self, watch: Watch):
        norm_shape = (128,)
        x = mg.tensor(random_tensor(64, 128), requires_grad=True)
        w, b = (mg.tensor(random_tensor(128, seed=k), requires_grad=True) for k in (1, 2))
        g = random_tensor(64, 128, seed=3)
        mg.evaluate(x, w, b, g)
        watch.reset()
        y = mg.nn.relu(mg.nn.layer_norm(x, norm_shape, w, b))
        check(y, *mg.gradients([y], [x, w, b], [g]), tolerance=2e-5)
        assert watch.spaces == [(64, 128)] * 2  # rows: all but the column sums

    def test_residual_block_end_is_one_kernel(self, watch: Watch):
        """Normalization, residual addition and activation, forward and backward."""
        x, r = (mg.tensor(random_tensor(8, 3, 10, 10, seed=k), requires_grad=True) for k in (0, 1))
        w, b = (mg.tensor(random_tensor(3, seed=k), requires_grad=True) for k in (2, 3))
        g = random_tensor(8, 3, 10, 10, seed=4)
        mg.evaluate(x, r, w, b, g)
        watch.reset()
        y = mg.nn.relu(mg.nn.batch_norm(x, weight=w, bias=b, training=True) + r)
        check(y, *mg.gradients([y], [x, r, w, b], [g]), tolerance=2e-5)
        assert watch.spaces.count((8, 3, 10, 10)) == 1


class TestWorthKeeping:
    """The choice alone, on a graph of letters: a costs 10; b = f(a); c, d = g(b), h(b)."""

    ARGUMENTS = {"a": "", "b": "a", "c": "b", "d": "b", "e": "a"}  # noqa: RUF012

    def kept(self, sections, cost, read=1.0, write=2.0, **options):
        return worth_keeping(
            sections, self.ARGUMENTS.__getitem__, cost.__getitem__, lambda k: read,
            lambda k: write, **options,
        )  # fmt: skip

    def test_the_value_nearest_to_its_uses(self):
        cost = dict.fromkeys("abcde", 1.0) | {"a": 10.0}
        assert self.kept(["c", "d"], cost) == ["b"]
        assert self.kept(["c", "d", "e"], cost) == ["a"]  # serves e, too: 18 saved against 10

    def test_cheap_values_are_computed_again(self):
        assert self.kept(["c", "d"], dict.fromkeys("abcde", 1.0)) == []

    def test_one_section_keeps_nothing(self):
        assert self.kept(["cde"], dict.fromkeys("abcde", 100.0)) == []

    @pytest.mark.parametrize("seed", range(40))
    def test_each_choice_saves_most(self, seed):
        """Against the definition: what all sections pay, with a value kept and without."""
        draw = random.Random(seed)
        below = [draw.choices(range(k), k=draw.randint(0, 3)) if k else [] for k in range(20)]
        sections = [draw.choices(range(20), k=2) for _ in range(4)]
        cost = [draw.uniform(0, 20) for _ in below]

        def price(kept):
            total, keeper = 2.0 * len(kept), {}
            for s, roots in enumerate(sections):
                needed, stack = set(), list(roots)
                while stack:
                    k = stack.pop()
                    if k not in needed:
                        needed.add(k)
                        stack += [] if k in keeper else below[k]
                total += sum(1.0 if k in keeper else cost[k] for k in needed)
                keeper |= {k: s for k in needed if k in kept}
            return total

        found = worth_keeping(
            sections, below.__getitem__, cost.__getitem__, lambda k: 1.0, lambda k: 2.0,
            lambda kept: len(kept) == 1,
        )  # fmt: skip
        best = min(range(20), key=lambda k: price([k]))
        assert found == ([best] if price([best]) < price([]) else [])

    def test_what_does_not_fit_is_not_kept(self):
        cost = dict.fromkeys("abcde", 50.0)
        assert self.kept(["c", "d"], cost, fits=lambda kept: "b" not in kept) == ["a"]
