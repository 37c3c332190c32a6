"""Random graphs and their gradients, compiled, against one op at a time and against the reference.

Every op here is smooth where it is used, and keeps values near 1, so that rounding differences stay
rounding differences. Decisions (`where`) depend on leaves alone, for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import reference
from cases import Input, store
from hypothesis import given, note, settings
from hypothesis import strategies as st

import minigrad as mg
from minigrad import ops
from minigrad.autodiff import gradients
from minigrad.device import default_device
from minigrad.dtype import DType, float32, float64, int32, int64, uint8
from minigrad.execution.compute import compute
from minigrad.functions.arguments import broadcast_shape, expand_to
from minigrad.graph import Node, const, like, topological
from minigrad.ops.control import substitute

Draw = Callable[[st.SearchStrategy[Any]], Any]
LARGEST = 300  # elements of a node
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
INTEGERS = (uint8, int32, int64)
SOME = settings.default.max_examples * 3 // 5
FEW = settings.default.max_examples // 3

UNARY: list[Callable[[Node], Node]] = [
    ops.neg,
    ops.tanh,
    ops.sin,
    ops.cos,
    ops.erf,
    lambda x: ops.exp(ops.tanh(x)),
    lambda x: ops.log(x * x + 0.5),
    lambda x: ops.sqrt(x * x + 0.25),
    lambda x: ops.rsqrt(x * x + 0.25),
    lambda x: ops.abs_(x + 0.0371),
    lambda x: ops.pow_(ops.tanh(x), like(2.0, x)),
]
BINARY: list[Callable[[Node, Node], Node]] = [
    ops.add,
    ops.sub,
    lambda a, b: a * ops.tanh(b),
    lambda a, b: a / (b * b + 0.5),
    lambda a, b: ops.maximum(a, b + 0.0371),
    lambda a, b: ops.minimum(a, b - 0.0173),
]
INTEGER_UNARY: list[Callable[[Node], Node]] = [ops.neg, ops.abs_, ops.sign, ops.bitwise_invert]
INTEGER_BINARY: list[Callable[[Node, Node], Node]] = [
    ops.add, ops.sub, ops.mul, ops.maximum, ops.minimum, ops.bitwise_and, ops.bitwise_xor,
    lambda a, b: ops.where(ops.less(a, b), a, b),
]  # fmt: skip


class Builder:
    """Grows a graph by drawing ops whose inputs are earlier nodes."""

    def __init__(self, draw: Draw, dtype: DType):
        self.draw, self.dtype = draw, dtype
        self.leaves: list[Node] = []
        self.nodes: list[Node] = []
        for _ in range(draw(st.integers(1, 3))):
            self.leaf(tuple(draw(st.lists(st.integers(0, 5), max_size=3))))

    def leaf(self, shape: tuple[int, ...]) -> None:
        low, high = (-2.0, 2.0) if self.dtype.is_floating else (-100, 100)
        values = Input(shape, low, high).values(f"leaf {len(self.leaves)}", self.dtype)
        node = store(values, shape, self.dtype, default_device(), needs_grad=True)
        self.leaves.append(node)
        self.nodes.append(node)

    def pick(self) -> Node:
        """An earlier node, later ones more often: chains, with sharing."""
        n = len(self.nodes)
        return self.nodes[max(self.draw(st.integers(0, n - 1)) for _ in range(2))]

    def grow(self, steps: int) -> None:
        kinds = [self.unary, self.binary, self.view, self.reduction, self.gather]
        if self.dtype.is_floating:
            kinds += [self.normalization, self.choice]
        for _ in range(steps):
            node = self.draw(st.sampled_from(kinds))()
            if node.size <= LARGEST:
                self.nodes.append(node)

    def unary(self) -> Node:
        x = self.pick()
        return self.draw(st.sampled_from(UNARY if self.dtype.is_floating else INTEGER_UNARY))(x)

    def binary(self) -> Node:
        a, b = self.partners()
        return self.draw(st.sampled_from(BINARY if self.dtype.is_floating else INTEGER_BINARY))(
            a, b
        )

    def partners(self) -> tuple[Node, Node]:
        """Two nodes broadcast to one shape; one node and a number if theirs do not fit."""
        a, b = self.pick(), self.pick()
        try:
            shape = broadcast_shape("random graph", a.shape, b.shape)
        except ValueError:
            return a, like(self.draw(st.integers(1, 3)), a)
        return expand_to(a, shape), expand_to(b, shape)

    def choice(self) -> Node:
        a, b = self.partners()
        condition = ops.less(self.leaves[0], like(0.1, self.leaves[0]))
        try:
            shape = broadcast_shape("random graph", a.shape, condition.shape)
        except ValueError:
            condition, shape = const(True, mg.bool, default_device()), a.shape
        return ops.where(expand_to(condition, shape), expand_to(a, shape), expand_to(b, shape))

    def axes(self, x: Node) -> tuple[int, ...]:
        return tuple(sorted(self.draw(st.sets(st.sampled_from(range(x.ndim)), min_size=1))))

    def reduction(self) -> Node:
        x = self.pick()
        if x.ndim == 0:
            return x + 1
        axes = self.axes(x)
        if 0 not in [x.shape[a] for a in axes] and self.draw(st.booleans()):
            return ops.max_(x, axes=axes)
        total = ops.sum_(x, axes=axes)
        if not self.dtype.is_floating:
            return total
        return total * (1.0 / max(1, math.prod(x.shape[a] for a in axes)))

    def normalization(self) -> Node:
        """The pattern the compiler exists for: statistics, and a map that uses them."""
        x = self.pick()
        if x.ndim == 0:
            return ops.tanh(x)
        axes = self.axes(x)
        scale = 1.0 / max(1, math.prod(x.shape[a] for a in axes))
        centred = x - expand_to(ops.sum_(x, axes=axes) * scale, x.shape)
        var = ops.sum_(centred * centred, axes=axes) * scale
        return centred * expand_to(ops.rsqrt(var + 0.5), x.shape)

    def view(self) -> Node:
        x = self.pick()
        kinds = [self.slice, self.pad, self.flip, self.permute, self.merge, self.repeat]
        return self.draw(st.sampled_from(kinds))(x) if x.ndim else ops.reshape(x, shape=(1, 1))

    def slice(self, x: Node) -> Node:
        starts, stops, steps = [], [], []
        for n in x.shape:
            start = self.draw(st.integers(0, min(n, 2)))
            starts.append(start)
            stops.append(self.draw(st.integers(start, n)) if self.draw(st.booleans()) else n)
            steps.append(self.draw(st.integers(1, 3)))
        return ops.slice_(x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))

    def pad(self, x: Node) -> Node:
        low, high, interior = (
            tuple(self.draw(st.integers(0, 2)) for _ in x.shape) for _ in range(3)
        )
        return ops.pad(x, low=low, high=high, interior=interior)

    def flip(self, x: Node) -> Node:
        return ops.flip(x, axes=self.axes(x))

    def permute(self, x: Node) -> Node:
        return ops.permute(x, axes=tuple(self.draw(st.permutations(range(x.ndim)))))

    def merge(self, x: Node) -> Node:
        """Two neighbouring axes into one, or an axis of 1 in front."""
        if x.ndim == 1:
            return ops.reshape(x, shape=(1, *x.shape))
        k = self.draw(st.integers(0, x.ndim - 2))
        return ops.reshape(x, shape=(*x.shape[:k], x.shape[k] * x.shape[k + 1], *x.shape[k + 2 :]))

    def repeat(self, x: Node) -> Node:
        n = self.draw(st.integers(0, 3))
        return ops.expand(ops.reshape(x, shape=(1, *x.shape)), shape=(n, *x.shape))

    def gather(self) -> Node:
        x = self.pick()
        if x.ndim == 0:
            return ops.reshape(x, shape=(1,))
        axis = self.draw(st.integers(0, x.ndim - 1))
        n = x.shape[axis]
        if n == 0:
            return ops.concat(x, x, axis=axis)
        picked = self.draw(st.lists(st.integers(0, n - 1), max_size=5))
        return ops.take(x, store(picked, (len(picked),), int64, default_device()), axis=axis)


def text(roots: list[Node]) -> str:
    """The graph, one node a line."""
    return "\n".join(
        f"  %{n.id} = {n!r} of {[f'%{i.id}' for i in n.inputs]} {n.attrs or ''}"
        for n in topological(roots)
    )


def with_gradients(y: Node, leaves: list[Node], order: int) -> list[Node]:
    """y, its vector-Jacobian products for a fixed cotangent, and (order 2) theirs."""
    values = Input(y.shape, -1.0, 1.0).values("cotangent", y.dtype)
    c = store(values, y.shape, y.dtype, default_device())
    first = gradients([y], leaves, [c], unreached="zero")
    result = [y, *first]
    if order == 2:
        weights = [
            store(
                Input(g.shape, -1.0, 1.0).values("second", g.dtype),
                g.shape,
                g.dtype,
                default_device(),
            )
            for g in first
        ]
        result += gradients(first, leaves, weights, unreached="zero")
    return result


def compare(actual: list[Node], expected: list[list[Any]], what: str) -> None:
    for k, (node, e) in enumerate(zip(actual, expected, strict=True)):
        a = reference.read(node)
        allowed = TOLERANCE.get(node.dtype.name, 0.0) * max([1.0, *map(abs, e)])
        wrong = [i for i in range(len(e)) if not abs(a[i] - e[i]) <= allowed]
        assert not wrong, f"{what}: output {k}, elements {wrong}: {a} instead of {e}"


def run(draw: Draw, dtype: DType, order: int, against_eager: bool) -> None:
    builder = Builder(draw, dtype)
    builder.grow(draw(st.integers(1, 8)))
    y, leaves = builder.nodes[-1], builder.leaves
    roots = with_gradients(y, leaves, order) if order else [y]
    note(text(roots))
    expected = [reference.evaluate(n) for n in roots]
    if against_eager:
        again = [
            store(reference.read(x), x.shape, x.dtype, default_device(), needs_grad=True)
            for x in leaves
        ]
        with mg.eager():
            y_again = substitute(y, dict(zip(leaves, again, strict=True)))
            eager = with_gradients(y_again, again, order) if order else [y_again]
        compute(eager)
        compare(eager, expected, "eager")
    if draw(st.booleans()):  # the value first, then the gradient of what is computed already
        compute([y])
    compute(roots)
    compare(roots, expected, "compiled")


@given(st.data())
def test_gradients_float64(data):
    run(data.draw, float64, order=1, against_eager=False)


@given(st.data())
@settings(max_examples=SOME)
def test_gradients_float32(data):
    run(data.draw, float32, order=1, against_eager=False)


@given(st.data())
@settings(max_examples=SOME)
def test_eager_agrees(data):
    run(data.draw, float64, order=1, against_eager=True)


@given(st.data())
@settings(max_examples=FEW)
def test_second_gradients(data):
    run(data.draw, float64, order=2, against_eager=False)


@given(st.data(), st.sampled_from(INTEGERS))
@settings(max_examples=SOME)
def test_integers(data, dtype):
    run(data.draw, dtype, order=0, against_eager=False)


def test_view_of_a_value_that_the_same_kernel_makes():
    """The flipped gradient of a normalization reads the kernel's own sums at other places."""
    x = store(
        Input((2, 3)).values("x", float64), (2, 3), float64, default_device(), needs_grad=True
    )
    flipped = ops.flip(x, axes=(0,))
    scale = 1.0 / 3.0
    centred = flipped - expand_to(ops.sum_(flipped, axes=(1,)) * scale, x.shape)
    var = ops.sum_(centred * centred, axes=(1,)) * scale
    roots = with_gradients(centred * expand_to(ops.rsqrt(var + 0.5), x.shape), [x], order=1)
    compute(roots)
    compare(roots, [reference.evaluate(n) for n in roots], "compiled")
