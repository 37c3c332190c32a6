"""x[index] and x[index] = v against nested lists, and against PyTorch for the advanced forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import reference

import minigrad as mg


@pytest.fixture(autouse=True)
def interpreted() -> Any:
    """Indexing composes primitives; the kernels behind them have their own tests."""
    undo = reference.install()
    yield
    undo()


def sample() -> Any:
    return mg.arange(60).reshape(3, 4, 5)


def number(i: int, j: int, k: int) -> int:
    return 20 * i + 5 * j + k


class TestBasic:
    def test_integers(self) -> None:
        x = sample()
        assert x[1, 2, 3].item() == number(1, 2, 3)
        assert x[-1, -1].tolist() == [number(2, 3, k) for k in range(5)]
        assert x[2].shape == (4, 5)
        assert x[()].tolist() == x.tolist()
        assert x[mg.tensor(1), 0, 0].item() == number(1, 0, 0)

    @pytest.mark.parametrize("start", [None, 0, 2, -2, 9, -9])
    @pytest.mark.parametrize("stop", [None, 0, 3, -1, 9, -9])
    @pytest.mark.parametrize("step", [None, 1, 2, -1, -3, 7])
    def test_slices(self, start: Any, stop: Any, step: Any) -> None:
        values = list(range(6))
        x = mg.arange(6)
        s = slice(start, stop, step)
        assert x[s].tolist() == values[s]
        x[s] = 9
        for i in range(6)[s]:
            values[i] = 9
        assert x.tolist() == values

    def test_new_axes_and_ellipsis(self) -> None:
        x = sample()
        assert x[None].shape == (1, 3, 4, 5)
        assert x[..., None].shape == (3, 4, 5, 1)
        assert x[:, None, 1, ..., None, ::2].shape == (3, 1, 1, 3)
        assert x[..., 2].tolist() == x[:, :, 2].tolist()
        assert x[1, ...].tolist() == x[1].tolist()
        assert x[0, 1, 2, ...].shape == ()

    def test_views_cost_nothing(self) -> None:
        x = sample()
        assert x[:].node is x.node
        assert x[...].node is x.node
        assert x[1].node.op.kind == "view"

    def test_gradients(self) -> None:
        x = mg.tensor([[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]], "float64")
        mg.gradcheck(lambda t: t[::-1, ::2] * t[0, 1], x, order=2)
        mg.gradcheck(lambda t: t[[1, 0, 1], 1:] ** 2, x, order=2)


class TestErrors:
    @pytest.mark.parametrize(
        ("index", "text"),
        [
            (3, r"expected an index in -3\.\.2 for axis 0 of shape \(3, 4, 5\), got 3"),
            ((0, -5), r"expected an index in -4\.\.3 for axis 1 of shape \(3, 4, 5\), got -5"),
            ([0, 3], r"expected an index in -3\.\.2 for axis 0 .*, got 3"),
            ((0, 0, 0, 0), r"expected at most 3 indices for shape \(3, 4, 5\), got 4"),
            ((..., 0, ...), r"expected at most one '\.\.\.', got several"),
            (1.0, r"expected integers, slices, None, \.\.\., lists, or .* tensors, got float"),
            ("a", r"expected integers, .* got str"),
            (True, r"expected a mask of at least 1 axis, got a bool"),
        ],
    )
    def test_bad_index(self, index: Any, text: str) -> None:
        with pytest.raises(IndexError, match=text):
            sample()[index]

    def test_float_tensor(self) -> None:
        with pytest.raises(IndexError, match=r"expected an integer or bool tensor, got float32"):
            sample()[mg.tensor([0.0])]

    def test_mask_of_another_shape(self) -> None:
        text = r"expected a mask of shape \(3,\) at axis 0 of shape \(3, 4, 5\), got \(4,\)"
        with pytest.raises(IndexError, match=text):
            sample()[mg.ones(4, "bool")]
        with pytest.raises(IndexError, match=text):
            sample()[mg.ones(4, "bool")] = 1

    def test_tensors_that_do_not_broadcast(self) -> None:
        with pytest.raises(IndexError, match=r"index: expected shapes that broadcast"):
            sample()[[0, 1], [0, 1, 2]]

    @pytest.mark.parametrize("wrong", [3, -4])
    def test_computed_index_out_of_range(self, wrong: int) -> None:
        x, i = sample(), mg.tensor([0, wrong])
        with pytest.raises(IndexError, match=rf"take: expected indices in \[-3, 3\), got {wrong}"):
            x[i].tolist()
        with pytest.raises(IndexError, match=r"take: expected indices in"):
            x[i, mg.tensor([0, 0])].tolist()

    def test_value_that_does_not_fit(self) -> None:
        x = sample()
        with pytest.raises(
            ValueError, match=r"expected a value that broadcasts to \(4, 5\), .* got \(4,\)"
        ):
            x[0] = mg.zeros(4, "int64")
        with pytest.raises(ValueError, match=r"expected a value that broadcasts to \(2, 4, 5\)"):
            x[[0, 1]] = mg.zeros((3, 4, 5), "int64")


ADVANCED: list[Any] = [
    [0, 2],
    [-1, 0, -1],
    [[0, 1], [2, 0]],
    ([0, 1], [3, 2]),
    ([0, 1], slice(None), [4, 2]),
    (slice(None), [0, 3]),
    (slice(None), [0, 3], [1, 2]),
    (slice(None), [[0], [3]], [1, 2]),
    (0, [1, 2]),
    ([0, 1], 2),
    ([0, 1], 2, slice(1, None)),
    (slice(1), 2, [1, 0, 1]),
    (..., [1, 2]),
    ([1, 2], None, slice(None, None, 2)),
    ([1], None, [2]),
    (slice(None, None, 2), [0, 1]),
    [True, False, True],
    (slice(None), [True, False, False, True], 2),
    (slice(None), slice(None), [False] * 5),
]


class TestAdvanced:
    @pytest.mark.parametrize("index", ADVANCED, ids=str)
    def test_like_torch(self, index: Any) -> None:
        torch = pytest.importorskip("torch")
        x, y = sample(), torch.arange(60).reshape(3, 4, 5)
        theirs = as_torch(torch, index)
        assert x[index].tolist() == y[theirs].tolist()
        assert x[as_tensors(index)].tolist() == y[theirs].tolist()
        x[index] = -1
        y[theirs] = -1
        assert x.tolist() == y.tolist()

    @pytest.mark.parametrize("index", ADVANCED, ids=str)
    def test_writing_values(self, index: Any) -> None:
        x, before = sample(), sample()
        value = x[index] * 100 + 7
        x[index] = value
        assert x[index].tolist() == value.tolist()
        chosen = {v // 100 for v in numbers(value)}
        for new, old in zip(numbers(x), numbers(before), strict=True):
            assert new == (old * 100 + 7 if old in chosen else old)

    def test_definition_without_torch(self) -> None:
        x = sample()
        assert x[[0, 1], [3, 2]].tolist() == [
            [number(0, 3, k) for k in range(5)],
            [number(1, 2, k) for k in range(5)],
        ]
        # As in NumPy, the integer counts as an index tensor; PyTorch differs here.
        assert x[0, :, [1, 2]].tolist() == [[number(0, j, k) for j in range(4)] for k in (1, 2)]

    def test_full_mask(self) -> None:
        x = sample()
        mask = x % 7 == 0
        expected = [v for v in range(60) if v % 7 == 0]
        assert x[mask].tolist() == expected
        assert x[:, mask[0]].shape == (3, 3)
        x[mask] = 0
        assert sum(numbers(x)) == sum(range(60)) - sum(expected)
        x[mask] = mg.arange(len(expected)) + 1000
        assert x[mask].tolist() == [1000 + i for i in range(len(expected))]

    def test_a_mask_write_of_one_value_computes_nothing(self) -> None:
        x = sample() + 0
        x[x > 5] = 0
        assert x.node.storage is None
        assert all(n.storage is None for n in x.node.inputs)

    def test_the_last_of_repeated_places_stands(self) -> None:
        x = mg.zeros(3)
        x[[0, 0, 2]] = mg.tensor([1.0, 2.0, 3.0])
        assert x.tolist() == [2.0, 0.0, 3.0]

    def test_writing_booleans(self) -> None:
        x = mg.zeros(4, "bool")
        x[[1, 3]] = True
        x[0:1] = mg.tensor([True])
        assert x.tolist() == [True, True, False, True]

    def test_writes_carry_gradients(self) -> None:
        v = mg.tensor([2.0, 3.0], requires_grad=True)
        x = mg.ones(4)
        y = x * 1.0
        y[[3, 1]] = v
        weights = mg.tensor([1.0, 10.0, 100.0, 1000.0])
        assert mg.gradients((y * weights).sum(), v).tolist() == [1000.0, 10.0]
        z = x * 1.0
        z[1:3] = v
        assert mg.gradients((z * weights).sum(), v).tolist() == [10.0, 100.0]

    def test_values_of_others_do_not_change(self) -> None:
        x = sample()
        row, y = x[0], x.clone()
        x[0] = 0
        assert row.tolist() == y[0].tolist()
        assert y[0, 0, 1].item() == 1


def numbers(x: Any) -> list[int]:
    return list(itertools.chain.from_iterable([x.flatten().tolist()]))


def as_torch(torch: Any, index: Any) -> Any:
    """Lists as tensors, and no negative steps: PyTorch has none."""
    if isinstance(index, tuple):
        return tuple(as_torch(torch, i) for i in index)
    return torch.tensor(index) if isinstance(index, list) else index


def as_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(as_tensors(i) for i in index)
    return mg.tensor(index) if isinstance(index, list) else index
