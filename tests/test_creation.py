"""Tensors from numbers and lists, and tensors of known content."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

import minigrad as mg


class TestFromLists:
    @pytest.mark.parametrize(
        ("data", "dtype", "shape"),
        [
            (1.5, "float32", ()),
            (3, "int64", ()),
            (True, "bool", ()),
            ([1, 2], "int64", (2,)),
            ([1, 2.0], "float32", (2,)),
            ([True, 2], "int64", (2,)),
            ([[True], [False]], "bool", (2, 1)),
            (((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)), "float32", (3, 2)),
            ([], "float32", (0,)),
            ([[], []], "float32", (2, 0)),
            (range(3), "int64", (3,)),
            ([Fraction(1, 2)], "float32", (1,)),
        ],
    )
    def test_dtype_and_shape(self, data: Any, dtype: str, shape: Any, device: Any) -> None:
        x = mg.tensor(data, device=device)
        assert (x.dtype.name, x.shape, x.device) == (dtype, shape, device)
        assert mg.asarray(data, device=device).tolist() == x.tolist()

    def test_values(self, device: Any) -> None:
        data = [[[1.0, -2.5], [math.inf, 0.0]], [[1e-30, 3.0], [4.0, 5.0]]]
        assert mg.tensor(data, "float64", device).tolist() == data
        assert mg.tensor([300, -1], "int32", device).tolist() == [300, -1]
        assert mg.tensor([1.9, 0.0], "int64", device).tolist() == [1, 0]
        assert mg.tensor([2, 0], "bool", device).tolist() == [True, False]
        assert mg.tensor([True, False], "float32", device).tolist() == [1.0, 0.0]

    def test_tensors_inside_lists(self) -> None:
        x = mg.tensor([1.0, 2.0])
        assert mg.tensor([x, [3.0, 4.0]]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert mg.tensor([mg.tensor(1.0), 2.0]).tolist() == [1.0, 2.0]

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ([[1, 2, 3], [4, 5]], r"got a list of 3 at \[0\] and a list of 2 at \[1\]\. Pad"),
            (
                [[[1], [2]], [[3], [4, 5]]],
                r"got a list of 1 at \[0\]\[0\] and a list of 2 at \[1\]\[1\]",
            ),
            ([[1, 2], 3], r"got a list of 2 at \[0\] and a number at \[1\]"),
            ([1, [2]], r"got a number at \[0\] and a list of 1 at \[1\]"),
        ],
    )
    def test_ragged(self, data: Any, text: str) -> None:
        with pytest.raises(
            ValueError, match=r"tensor: expected nested lists of equal length, " + text
        ):
            mg.tensor(data)

    def test_refused_elements(self) -> None:
        with pytest.raises(
            TypeError, match=r"tensor: expected real numbers, got str at \[1\]\[0\]"
        ):
            mg.tensor([[1], ["two"]])
        with pytest.raises(TypeError, match=r"tensor: expected real numbers, got complex at \[0\]"):
            mg.tensor([1j])
        with pytest.raises(
            TypeError, match=r"tensor: expected numbers, nested lists or an array, got str"
        ):
            mg.tensor("text")
        with pytest.raises(
            TypeError, match=r"tensor: dtype: expected one of bool, .*, got 'float8'"
        ):
            mg.tensor([1.0], dtype="float8")
        with pytest.raises(
            ValueError, match=r"expected numbers that int32 can hold, got 4294967296"
        ):
            mg.tensor([1, 2**32], "int32")
        with pytest.raises(
            ValueError, match=r"expected integers for int64, got: cannot convert float NaN"
        ):
            mg.tensor([math.nan], "int64")

    def test_requires_grad(self) -> None:
        x = mg.tensor([1.0], requires_grad=True)
        assert x.is_leaf
        assert mg.zeros(2, requires_grad=True).is_leaf
        assert not mg.tensor(x).requires_grad


class TestFromTensors:
    def test_asarray_passes_tensors_through(self) -> None:
        x = mg.ones(2)
        assert mg.asarray(x) is x
        assert mg.asarray(x, "float64").dtype is mg.float64
        assert mg.from_dlpack(x) is x

    def test_tensor_is_detached(self) -> None:
        x = mg.tensor([1.0], requires_grad=True)
        y = mg.tensor(x, requires_grad=True)
        assert y.is_leaf
        with pytest.raises(mg.GradientError):
            mg.gradients(y.sum(), x)
        assert mg.gradients((mg.asarray(x, "float64") * 2.0).sum(), x).tolist() == [2.0]

    def test_copy_false(self) -> None:
        with pytest.raises(
            ValueError, match=r"asarray: expected data that can be shared, got Python"
        ):
            mg.asarray([1.0], copy=False)
        with pytest.raises(
            ValueError, match=r"asarray: expected no copy to be needed, got float32 to"
        ):
            mg.asarray(mg.ones(2), "float64", copy=False)


class TestKnownContent:
    def test_filled(self, device: Any) -> None:
        assert mg.zeros((2, 1), device=device).tolist() == [[0.0], [0.0]]
        assert mg.ones(2, "int32", device).tolist() == [1, 1]
        assert mg.full((2,), 7, device=device).tolist() == [7, 7]
        assert mg.full((), 2.5, device=device).item() == 2.5
        assert mg.full(2, True).dtype is mg.bool
        assert mg.empty((2, 2)).shape == (2, 2)
        x = mg.tensor([1, 2], "int32", device)
        assert mg.zeros_like(x).tolist() == [0, 0]
        assert mg.ones_like(x).dtype is mg.int32
        assert mg.full_like(x, 2.5, "float32").tolist() == [2.5, 2.5]
        assert mg.empty_like(x).device == device
        assert math.copysign(1, mg.full(1, -0.0).item()) == -1
        assert math.copysign(1, mg.full(1, 0.0).item()) == 1

    def test_bad_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"full: expected extents of 0 or more, got \(2, -1\)"):
            mg.zeros((2, -1))
        with pytest.raises(TypeError, match=r"full: expected a shape of integers, got \(2\.0,\)"):
            mg.zeros((2.0,))  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"full: expected a number that uint8 can hold, got -1"
        ):
            mg.full(2, -1, "uint8")

    @pytest.mark.parametrize(
        "arguments", [(5,), (2, 7), (0, 10, 3), (10, 0, -3), (5, 2), (-3, 3, 2), (2**60, 2**60 + 3)]
    )
    def test_arange_of_integers(self, arguments: Any, device: Any) -> None:
        x = mg.arange(*arguments, device=device)
        assert x.dtype is mg.int64
        assert x.tolist() == list(range(*arguments))

    def test_arange_of_floats(self) -> None:
        assert mg.arange(0, 1, 0.25).tolist() == [0.0, 0.25, 0.5, 0.75]
        assert mg.arange(3.0).dtype is mg.float32
        assert mg.arange(3, dtype="float64").tolist() == [0.0, 1.0, 2.0]
        assert mg.arange(1.0, 0.0, -0.5).tolist() == [1.0, 0.5]
        with pytest.raises(ValueError, match=r"arange: expected a step other than 0"):
            mg.arange(1, 2, 0)

    def test_linspace(self) -> None:
        x = mg.linspace(0.1, 0.7, 7, "float64").tolist()
        assert x == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
        assert x[-1] == 0.7
        assert mg.linspace(0, 1, 4, endpoint=False).tolist() == [0.0, 0.25, 0.5, 0.75]
        assert mg.linspace(2, 3, 1).tolist() == [2.0]
        assert mg.linspace(2, 3, 0).tolist() == []

    def test_eye(self, device: Any) -> None:
        assert mg.eye(2, device=device).tolist() == [[1.0, 0.0], [0.0, 1.0]]
        assert mg.eye(2, 3, k=1, dtype="int32").tolist() == [[0, 1, 0], [0, 0, 1]]
        assert mg.eye(3, 2, k=-1).tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
