"""What every primitive means, in plain Python: the oracle that kernels are tested against.

Values are flat row-major lists of Python numbers, rounded to the node's dtype after each op.
Nothing here is shared with the compiler or a backend, and nothing is fast.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from cases import ELEMENTWISE

from minigrad.backend.geometry import WindowAxis
from minigrad.compiler import run
from minigrad.device import backend_of
from minigrad.dtype import DType, float32
from minigrad.graph import Node, topological

Values = list[Any]
Index = tuple[int, ...]


def evaluate(node: Node) -> Values:
    """The node's elements, row-major, computed from constants and stored leaves alone."""
    return _evaluate([node], lambda n: n.op.name == "stored")[node]


def install() -> Callable[[], None]:
    """Make graphs be computed by this file instead of the compiler; returns what undoes it."""
    original = run.run_graph

    def compute(wanted: Any) -> None:
        pending = [n for n in wanted if n.storage is None]
        values = _evaluate(pending, lambda n: n.storage is not None)
        for node, elements in values.items():
            if node.storage is None and (node in pending or node.handles):
                code = "B" if node.dtype.format == "?" else node.dtype.format
                data = memoryview(array(code, [_plain(v) for v in elements]))
                node.storage = backend_of(node.device).from_bytes(data)
        for node in values:
            reached = node.needs_grad and any(n.needs_grad for n in node.inputs)
            if node.storage is not None and node.inputs and not reached:
                node.forget()

    run.run_graph = compute

    def undo() -> None:
        run.run_graph = original

    return undo


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _evaluate(roots: list[Node], known: Callable[[Node], bool]) -> dict[Node, Values]:
    values: dict[Node, Values] = {}
    for node in topological(roots, stop=known):
        if known(node):
            values[node] = read(node)
        else:
            inputs = [values[n] for n in node.inputs]
            meaning = MEANING.get(node.op.name, _elementwise)
            values[node] = rounded(meaning(node, *inputs), node.dtype)
            assert len(values[node]) == node.size, node
    return values


def read(node: Node) -> Values:
    """The elements of a node that has been computed."""
    data = backend_of(node.device).to_bytes(node.storage, node.size * node.dtype.itemsize)
    if node.size == 0:
        return []
    return memoryview(data).cast("B").cast(node.dtype.format).tolist()


def rounded(values: Values, dtype: DType) -> Values:
    """The numbers as `dtype` holds them: floats rounded, integers wrapped around."""
    if dtype.kind == "bool":
        return [bool(v) for v in values]
    if dtype is float32:
        return array("f", values).tolist()
    if dtype.is_floating:
        return [float(v) for v in values]
    bits = 8 * dtype.itemsize
    low = 0 if dtype.kind == "uint" else -(1 << (bits - 1))
    return [(int(v) - low) % (1 << bits) + low for v in values]


def _elementwise(node: Node, *inputs: Values) -> Values:
    """By the meaning that the op's row in `cases.py` gives."""
    meaning = next(c.meaning for c in ELEMENTWISE if c.primitive == node.op.name)
    return [meaning(*v) for v in zip(*inputs, strict=True)]


def _cast(node: Node, x: Values) -> Values:
    if node.dtype.kind in ("int", "uint"):
        return [math.trunc(v) if math.isfinite(v) else 0 for v in x]
    return x  # rounded() does the rest


# Indices.


def positions(shape: Index) -> Iterator[Index]:
    """Every index of a shape, row-major."""
    return itertools.product(*map(range, shape))


def flat(index: Index, shape: Index) -> int:
    """Where an index lies in the flat list."""
    place = 0
    for i, n in zip(index, shape, strict=True):
        place = place * n + i
    return place


def _gather(node: Node, x: Values, source: Callable[[Index], Index | None]) -> Values:
    """out[i] = x[source(i)], or zero where source(i) is None."""
    shape = node.inputs[0].shape
    places = (source(i) for i in positions(node.shape))
    return [0 if p is None else x[flat(p, shape)] for p in places]


def _permute(node: Node, x: Values) -> Values:
    axes = node.attrs["axes"]
    return _gather(node, x, lambda i: tuple(i[axes.index(a)] for a in range(len(axes))))


def _expand(node: Node, x: Values) -> Values:
    old = node.inputs[0].shape
    return _gather(
        node, x, lambda i: tuple(0 if n == 1 else k for k, n in zip(i, old, strict=True))
    )


def _slice(node: Node, x: Values) -> Values:
    starts, steps = node.attrs["starts"], node.attrs["steps"]
    return _gather(
        node, x, lambda i: tuple(a + k * s for k, a, s in zip(i, starts, steps, strict=True))
    )


def _flip(node: Node, x: Values) -> Values:
    axes, shape = node.attrs["axes"], node.shape
    return _gather(
        node, x, lambda i: tuple(shape[a] - 1 - k if a in axes else k for a, k in enumerate(i))
    )


def _pad(node: Node, x: Values) -> Values:
    low, interior = node.attrs["low"], node.attrs["interior"]
    old = node.inputs[0].shape

    def source(index: Index) -> Index | None:
        place = []
        for k, a, gap, n in zip(index, low, interior, old, strict=True):
            q, r = divmod(k - a, gap + 1)
            if r or not 0 <= q < n:
                return None
            place.append(q)
        return tuple(place)

    return _gather(node, x, source)


def _concat(node: Node, *inputs: Values) -> Values:
    axis, out = node.attrs["axis"], [0] * node.size
    offset = 0
    for source, x in zip(node.inputs, inputs, strict=True):
        for value, i in zip(x, positions(source.shape), strict=True):
            out[flat((*i[:axis], i[axis] + offset, *i[axis + 1 :]), node.shape)] = value
        offset += source.shape[axis]
    return out


def _places(name: str, indices: Values, extent: int) -> Values:
    """Indices counted from the start; negative ones count from the end."""
    for k in indices:
        if not -extent <= k < extent:
            raise IndexError(f"{name}: expected indices in [-{extent}, {extent}), got {k}.")
    return [k + extent if k < 0 else k for k in indices]


def _take(node: Node, x: Values, indices: Values) -> Values:
    axis = node.attrs["axis"]
    indices = _places("take", indices, node.inputs[0].shape[axis])
    return _gather(node, x, lambda i: (*i[:axis], indices[i[axis]], *i[axis + 1 :]))


def _scatter_add(node: Node, indices: Values, updates: Values) -> Values:
    axis, size = node.attrs["axis"], node.attrs["size"]
    parts: list[Values] = [[] for _ in range(node.size)]
    indices = _places("scatter_add", indices, size)
    for value, i in zip(updates, positions(node.inputs[1].shape), strict=True):
        parts[flat((*i[:axis], indices[i[axis]], *i[axis + 1 :]), node.shape)].append(value)
    return [_sum(p) for p in parts]


# Reductions and contractions: exact sums, rounded once.


def _sum(values: Values) -> Any:
    if not values or isinstance(values[0], int):
        return sum(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs
        return sum(values)


def _dot_product(a: Values, b: Values) -> Any:
    return _sum([p * q for p, q in zip(a, b, strict=True)])


def _groups(node: Node, x: Values, axes: Index) -> list[Values]:
    parts: list[Values] = [[] for _ in range(node.size)]
    for value, i in zip(x, positions(node.inputs[0].shape), strict=True):
        kept = tuple(0 if a in axes else k for a, k in enumerate(i))
        parts[flat(kept, node.shape)].append(value)
    return parts


def _best(values: Values) -> int:
    """The place of the first maximum; NaN counts as the maximum."""
    best = 0
    for k, v in enumerate(values):
        if math.isnan(v):
            return k
        if v > values[best]:
            best = k
    return best


def _dot(node: Node, a: Values, b: Values) -> Values:
    (batch_a, batch_b), (sum_a, sum_b) = node.attrs["batch"], node.attrs["contract"]
    left, right = node.inputs
    free_a = [i for i in range(left.ndim) if i not in batch_a + sum_a]
    free_b = [i for i in range(right.ndim) if i not in batch_b + sum_b]
    contracted = list(positions(tuple(left.shape[i] for i in sum_a)))

    def place(shape: Index, *parts: tuple[Any, Index]) -> int:
        index = [0] * len(shape)
        for axes, part in parts:
            for axis, k in zip(axes, part, strict=True):
                index[axis] = k
        return flat(tuple(index), shape)

    out = []
    n, m = len(batch_a), len(batch_a) + len(free_a)
    for i in positions(node.shape):
        batch, row, column = i[:n], i[n:m], i[m:]
        left_places = [
            place(left.shape, (batch_a, batch), (free_a, row), (sum_a, k)) for k in contracted
        ]
        right_places = [
            place(right.shape, (batch_b, batch), (free_b, column), (sum_b, k)) for k in contracted
        ]
        out.append(_dot_product([a[p] for p in left_places], [b[p] for p in right_places]))
    return out


def _reached(at: int, tap: int, n: int, window: WindowAxis) -> int | None:
    """The input position that tap `tap` of window `at` reads, or None in padding and gaps."""
    position = at * window.stride - window.padding[0] + tap * window.dilation
    q, r = divmod(position, window.input_dilation)
    return q if r == 0 and 0 <= q < n else None


def _window(node: Node, index: Index) -> list[int]:
    """The flat places in the input that one window covers, row-major."""
    window, shape = node.attrs["window"], node.inputs[0].shape
    places = []
    for taps in positions(window.size):
        place = list(index)
        for axis, tap, along in zip(node.attrs["axes"], taps, window.axes, strict=True):
            place[axis] = _reached(index[axis], tap, shape[axis], along)
        if None not in place:
            places.append(flat(tuple(place), shape))
    return places


def _window_sum(node: Node, x: Values) -> Values:
    return [_sum([x[p] for p in _window(node, i)]) for i in positions(node.shape)]


def _winner(node: Node, x: Values, index: Index) -> int | None:
    places = _window(node, index)
    return places[_best([x[p] for p in places])] if places else None


def _window_max(node: Node, x: Values) -> Values:
    lowest = {"float": -math.inf, "uint": 0}.get(
        node.dtype.kind, -(1 << (8 * node.dtype.itemsize - 1))
    )
    winners = [_winner(node, x, i) for i in positions(node.shape)]
    return [lowest if p is None else x[p] for p in winners]


def _window_select(node: Node, x: Values, u: Values) -> Values:
    winners = [_winner(node, x, i) for i in positions(node.shape)]
    return [0 if p is None else u[p] for p in winners]


def _window_scatter(node: Node, x: Values, v: Values) -> Values:
    parts: list[Values] = [[] for _ in range(node.size)]
    for value, i in zip(v, positions(node.inputs[1].shape), strict=True):
        place = _winner(node, x, i)
        if place is not None:
            parts[place].append(value)
    return [_sum(p) for p in parts]


def _conv(node: Node, x: Values, w: Values) -> Values:
    attrs, (image, kernel) = node.attrs, node.inputs
    outputs = kernel.shape[0] // attrs["groups"]  # of one group
    inputs, taps = kernel.shape[1], kernel.shape[2:]
    result = []
    for n, o, *at in positions(node.shape):
        products = []
        for tap in positions(taps):
            y, x_ = (
                _reached(at[k], tap[k], image.shape[2 + k], attrs["window"].axes[k])
                for k in range(2)
            )
            if y is None or x_ is None:
                continue
            for c in range(inputs):
                channel = (o // outputs) * inputs + c
                products.append(
                    x[flat((n, channel, y, x_), image.shape)] * w[flat((o, c, *tap), kernel.shape)]
                )
        result.append(_sum(products))
    return result


def philox(counter: int, key: int) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011): the four 32-bit words of block `counter`, unsigned."""
    mask = 0xFFFFFFFF
    c = [counter & mask, counter >> 32 & mask, 0, 0]
    k = [key & mask, key >> 32 & mask]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & mask, p >> 32 ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def _random_bits(node: Node, state: Values) -> Values:
    words: Values = []
    for block in range(-(-prod(node.shape) // 4)):
        words += philox((state[1] + block) % (1 << 64), state[0] % (1 << 64))
    return words[: node.size]


def _identity(node: Node, x: Values, *rest: Values) -> Values:
    return x


MEANING: dict[str, Callable[..., Values]] = {
    "const": lambda node: [node.attrs["value"]],
    "iota": lambda node: list(range(node.attrs["n"])),
    "cast": _cast,
    "reshape": _identity,
    "permute": _permute,
    "expand": _expand,
    "slice": _slice,
    "flip": _flip,
    "pad": _pad,
    "concat": _concat,
    "sum": lambda node, x: [_sum(g) for g in _groups(node, x, node.attrs["axes"])],
    "max": lambda node, x: [g[_best(g)] for g in _groups(node, x, node.attrs["axes"])],
    "argmax": lambda node, x: [_best(g) for g in _groups(node, x, (node.attrs["axis"],))],
    "dot": _dot,
    "conv": _conv,
    "take": _take,
    "scatter_add": _scatter_add,
    "random_bits": _random_bits,
    "window_sum": _window_sum,
    "window_max": _window_max,
    "window_select": _window_select,
    "window_scatter": _window_scatter,
    "stop_gradient": _identity,
    "barrier": _identity,
    "variable": _identity,
    "checkpoint": _identity,
}
