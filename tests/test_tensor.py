"""The Tensor itself: metadata, rebinding, leaves, modes, conversions, printing, refusals."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference

import minigrad as mg
from minigrad.context import Observer, observing
from minigrad.tensor import Tensor
from minigrad.tensor_base import nodes_of, wrap


@pytest.fixture(autouse=True)
def interpreted() -> Any:
    """Nothing here is about kernels."""
    undo = reference.install()
    yield
    undo()


def test_import_is_light() -> None:
    code = (
        "import sys, minigrad; "
        "print([m for m in ('numba', 'numpy', 'cupy', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in mg.__all__:
        assert getattr(mg, name) is not None
    assert len(set(mg.__all__)) == len(mg.__all__)
    assert set(mg._LAZY) - {"study"} <= set(mg.__all__) <= set(dir(mg))
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        mg.no_such_name  # noqa: B018


def test_names_imported_later_are_those_that_their_modules_make_public() -> None:
    """And the type checker's branch of `minigrad/__init__.py` imports the same modules."""
    named: dict[str, set[str]] = {}
    for name, module in mg._LAZY.items():
        if module != "minigrad":
            named.setdefault(module, set()).add(name)
    assert named == {m: set(importlib.import_module(m).__all__) for m in named}
    source = Path(mg.__file__).read_text(encoding="utf-8")
    for_checkers = source.partition("if TYPE_CHECKING:")[2].partition("else:")[0]
    for module in named:
        assert f"    from {module} import *\n" in for_checkers
        assert f"    __all__ += {module.rpartition('.')[2]}.__all__\n" in for_checkers


def test_metadata_computes_nothing() -> None:
    x = mg.zeros((2, 3)) + 1.0
    assert (x.shape, x.ndim, x.size, x.numel(), len(x)) == ((2, 3), 2, 6, 6, 2)
    assert x.dtype is mg.float32
    assert x.device == mg.default_device()
    assert x.__array_namespace__() is mg
    assert x.node.storage is None
    with pytest.raises(
        TypeError, match=r"len: expected at least 1 axis, got a tensor of shape \(\)"
    ):
        len(mg.tensor(1.0))


def test_constructor_takes_nodes_only() -> None:
    with pytest.raises(TypeError, match=r"Tensor: expected a graph node, got list\. Make a tensor"):
        Tensor([1.0, 2.0])  # type: ignore[arg-type]


def test_handles_are_counted() -> None:
    x = mg.tensor([1.0])
    node = x.node
    assert node.handles == 1
    y = x.clone()
    assert node.handles == 2
    y += 1.0
    assert node.handles == 1
    assert y.node.handles == 1
    del x
    gc.collect()
    assert node.handles == 0


# Conversions to Python


def test_scalars() -> None:
    assert mg.tensor(2.5).item() == 2.5
    assert isinstance(mg.tensor([3]).item(), int)
    assert mg.tensor([[True]]).item() is True
    assert int(mg.tensor(2.9)) == 2
    assert float(mg.tensor([3])) == 3.0
    assert complex(mg.tensor(1.5)) == 1.5
    assert [10, 20, 30][mg.tensor(1)] == 20
    assert bool(mg.tensor(0.0)) is False
    assert f"{mg.tensor(1.23456):.2f}" == "1.23"
    with pytest.raises(
        ValueError, match=r"item: expected a tensor of one element, got shape \(2,\)"
    ):
        mg.zeros(2).item()
    with pytest.raises(ValueError, match=r"bool: expected a tensor of one element.*\.any\(\)"):
        bool(mg.zeros(2))
    with pytest.raises(TypeError, match=r"float: expected a tensor of one element"):
        float(mg.zeros(2))
    with pytest.raises(TypeError, match=r"index: expected an integer dtype, got float32"):
        [1, 2][mg.tensor(1.0)]


def test_tolist_iteration_and_membership() -> None:
    x = mg.arange(6).reshape(2, 3)
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [row.tolist() for row in x] == x.tolist()
    assert mg.zeros((2, 0, 3)).tolist() == [[], []]
    assert mg.tensor(7).tolist() == 7
    assert 4 in x
    assert 9 not in x
    with pytest.raises(TypeError, match=r"iter: expected at least 1 axis"):
        iter(mg.tensor(1.0))


def test_equality_is_elementwise_and_hash_by_identity() -> None:
    x, y = mg.tensor([1.0, 2.0]), mg.tensor([1.0, 3.0])
    assert (x == y).tolist() == [True, False]
    assert (x == None) is False  # noqa: E711
    assert (x != "text") is True
    assert len({x, y, x}) == 2


# Rebinding


def test_in_place_operators_rebind() -> None:
    x = mg.tensor([4.0, 9.0])
    y = x.clone()
    x += 1.0
    x *= 2.0
    x -= 4.0
    x /= 3.0
    assert x.tolist() == pytest.approx([2.0, 16.0 / 3.0])
    assert y.tolist() == [4.0, 9.0]
    n = mg.tensor([7, 8])
    n //= 2
    n **= 2
    n %= 5
    assert n.tolist() == [4, 1]
    n &= 5
    n |= 2
    n ^= 1
    assert n.tolist() == [7, 2]
    with pytest.raises(TypeError, match=r"/=: expected a result of int64, got float32"):
        n /= 2
    with pytest.raises(
        ValueError, match=r"\+=: expected a value that broadcasts to \(2,\), got \(3, 2\)"
    ):
        n += mg.zeros((3, 2), "int64")


def test_in_place_on_a_result_keeps_the_gradient() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3.0
    y += x
    y[0] = 0.0
    assert mg.gradients(y.sum(), x).tolist() == [0.0, 4.0]


def test_assign() -> None:
    p = mg.tensor([1.0, 2.0], requires_grad=True)
    loss = (p * p).sum()
    old = p.node
    p -= 0.1 * mg.ones(2)
    assert p.requires_grad
    assert p.is_leaf
    assert p.node is not old
    assert p.node.owner() is p
    assert not p.node.inputs[0].needs_grad
    assert p.tolist() == pytest.approx([0.9, 1.9])
    assert loss.item() == 5.0
    b = mg.zeros(2)
    assert b.assign(p) is b
    assert not b.requires_grad
    b.assign(3)
    assert b.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match=r"assign: expected shape \(2,\), got \(3,\)"):
        b.assign(mg.zeros(3))
    with pytest.raises(TypeError, match=r"assign: expected float32, got float64\. Use astype"):
        b.assign(mg.zeros(2, "float64"))
    with pytest.raises(TypeError, match=r"assign: expected a Tensor or a real number, got list"):
        b.assign([1.0, 2.0])  # type: ignore[arg-type]


def test_assignments_are_heard() -> None:
    heard: list[Any] = []

    class Listener(Observer):
        def assigned(self, tensor: Any, old: Any) -> None:
            heard.append((tensor, old))

    with observing(Listener()):
        x = mg.zeros(2)
        p = mg.zeros(2, requires_grad=True)
        assert heard == []
        before = x.node, p.node
        x += 1.0
        p.assign(2.0)
    x += 1.0
    assert [(t is u, n is m) for (t, n), u, m in zip(heard, (x, p), before, strict=True)] == [
        (True, True),
        (True, True),
    ]


def test_a_loop_of_assignments_does_not_grow_the_graph() -> None:
    p = mg.tensor([1.0], requires_grad=True)
    for _ in range(5):
        p -= 0.5 * p.detach()
        p.tolist()
        assert p.node.inputs == ()
        assert p.requires_grad


# Leaves and modes


def test_leaves() -> None:
    x = mg.tensor([1.0], requires_grad=True)
    assert x.requires_grad
    assert x.is_leaf
    y = x + 1.0
    assert y.requires_grad
    assert not y.is_leaf
    assert not y.detach().requires_grad
    z = mg.zeros(3, requires_grad=True)
    w = mg.zeros(3, requires_grad=True)
    assert z.node is not w.node
    z.requires_grad = False
    assert not z.requires_grad
    assert z.tolist() == [0.0] * 3
    assert mg.zeros(3).requires_grad_().is_leaf
    y.requires_grad_()
    assert y.is_leaf
    assert mg.gradients((y * y).sum(), y).tolist() == [4.0]
    with pytest.raises(TypeError, match=r"requires_grad: expected a floating dtype, got int64"):
        mg.tensor([1], requires_grad=True)


def test_backward_fills_grad() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    assert x.grad is None
    (x * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 4.0]


def test_no_grad() -> None:
    x = mg.tensor([1.0], requires_grad=True)
    with mg.no_grad():
        y = x * 2.0
        with mg.no_grad():
            pass
        z = x + y
        p = mg.tensor([1.0], requires_grad=True)
    assert not y.requires_grad
    assert not z.requires_grad
    assert p.requires_grad

    @mg.no_grad()
    def f(t: Any) -> Any:
        return t.sum() + mg.concat([t, t])[0] + t[0] + t @ t

    assert not f(x).requires_grad
    assert (x * 2.0).requires_grad


def test_nodes_of_and_wrap() -> None:
    x = mg.tensor([1.0], requires_grad=True)
    assert nodes_of(x)[0] is x.node
    with mg.no_grad():
        assert not nodes_of(x)[0].needs_grad
    assert wrap(x.node).requires_grad


# Copies, devices, refusals


def test_copies() -> None:
    p = mg.tensor([1.0], requires_grad=True)
    q = copy.deepcopy(p)
    assert q.is_leaf
    assert q.node is not p.node
    p.assign(5.0)
    assert q.tolist() == [1.0]
    assert copy.copy(mg.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(
        TypeError, match=r"pickle: expected no Tensor, got one\. Use minigrad\.save"
    ):
        pickle.dumps(p)


def test_devices(on_cpu) -> None:
    x = mg.ones(2)
    assert x.to("cpu") is x
    with pytest.raises(mg.DeviceError, match=r"to: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"):
        x.to("tpu")
    if mg.devices()["cuda"] != "usable":
        with pytest.raises(mg.DeviceError, match=r"device 'cuda' cannot be used: "):
            x.to("cuda")
        with pytest.raises(mg.DeviceError, match=r"device 'cuda' cannot be used: "):
            mg.zeros(2, device="cuda")


# Printing

PRINTED = [
    (lambda: mg.tensor(3.14159265), "tensor(3.1416, dtype=float32, device=cpu)"),
    (
        lambda: mg.tensor([1.0, 2.5, -30.0]),
        "tensor([  1.0,   2.5, -30.0], dtype=float32, device=cpu)",
    ),
    (lambda: mg.tensor([1.0, 2.0]), "tensor([1., 2.], dtype=float32, device=cpu)"),
    (lambda: mg.tensor([True, False]), "tensor([ True, False], dtype=bool, device=cpu)"),
    (lambda: mg.zeros((0, 3)), "tensor([], shape=(0, 3), dtype=float32, device=cpu)"),
    (
        lambda: mg.tensor([1.0, float("nan"), float("-inf")]),
        "tensor([  1.,  nan, -inf], dtype=float32, device=cpu)",
    ),
    (
        lambda: mg.tensor([1e-9, 1.0], "float64"),
        "tensor([1.0000e-09, 1.0000e+00], dtype=float64, device=cpu)",
    ),
    (
        lambda: mg.arange(2000),
        "tensor([   0,    1,    2, ..., 1997, 1998, 1999], dtype=int64, device=cpu)",
    ),
    (
        lambda: mg.tensor([[1.0], [2.0]], requires_grad=True),
        "tensor([[1.],\n        [2.]],\n       dtype=float32, device=cpu, requires_grad=True)",
    ),
    (
        lambda: mg.arange(8).reshape(2, 2, 2),
        "tensor([[[0, 1],\n         [2, 3]],\n\n        [[4, 5],\n         [6, 7]]],\n"
        "       dtype=int64, device=cpu)",
    ),
]


@pytest.mark.parametrize(("make", "text"), PRINTED)
def test_repr(make: Any, text: str) -> None:
    if mg.default_device() != mg.cpu:
        pytest.skip("the texts name the CPU")
    assert repr(make()) == text


def test_repr_of_large_tensors_is_short() -> None:
    text = repr(mg.zeros((20, 20, 20)))
    assert len(text) < 2000
    assert text.count("...") == 6 * 6 + 6 + 1
    assert len(repr(mg.arange(500)).splitlines()[0]) <= 100
