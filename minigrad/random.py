"""Random numbers: a counter-based generator (Philox4x32-10), so one seed gives one stream anywhere.

[Note: the layout of the stream] A generator's state is int64[2]: seed and counter. Block number k
of the stream is Philox of (seed, k): four 32-bit words. A draw of n words takes ceil(n / 4) blocks
from the counter on, element i of the draw being word i % 4 of block i // 4, and moves the counter
past them. `uniform` in float32 takes one word an element and keeps its top 24 bits, in float64 two
(32 bits of the first, 21 of the second): every value is a multiple of 2**-24 or 2**-53 and exact.
The halves are drawn in float32 from as many bits as they hold (float16 11, bfloat16 8), so casting
does not round.
`normal` is one uniform draw for the radii, then one for the angles (Box & Muller); for the halves
it is that of float32, rounded. `randint` scales float64.

A draw advances the state where it will be found: at once from the host, or inside a captured step
as a part of its graph, so that each replay draws new numbers.
"""

# pyright: reportUnnecessaryIsInstance=false
# users' arguments are checked at run time

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from minigrad import ops
from minigrad.creation import tensor
from minigrad.device import Device, as_device, backend_of
from minigrad.dtype import PRECISION, DType, accumulator, as_dtype, bool_, float32, float64, int64
from minigrad.execution.compute import capturing, compute
from minigrad.functions.arguments import as_shape, as_type, expand_to, node_of
from minigrad.graph import Node, Shape, leaf, like
from minigrad.tensor_base import TensorBase, wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import DTypeLike, Extents, Place
    from minigrad.tensor import Tensor


class Generator:
    """A stream of random numbers.

    Args:
        seed: any integer; its lowest 64 bits count.

    State: one `state(device)` for each device drawn on, all beginning at the same place: the same
    draws give the same numbers on every device.
    """

    def __init__(self, seed: int = 0):
        self._states: dict[Device, Tensor] = {}
        # What each state was last set to from here, with the node that holds it.
        self._known: dict[Device, tuple[Node, tuple[int, int]]] = {}
        self.seed(seed)

    def seed(self, seed: int) -> Generator:
        """Begin the stream of `seed`."""
        if not isinstance(seed, int):
            raise TypeError(f"Generator: expected an integer seed, got {type(seed).__name__}.")
        self._start = (_signed(seed), 0)
        for device in self._states:
            self._set(device, self._start)
        return self

    def state(self, device: Place = None) -> Tensor:
        """The state on a device: int64[2], seed and counter. `assign` to it to go back."""
        place = as_device(device)
        if place not in self._states:
            self._set(place, self._start)
        return self._states[place]

    def _set(self, device: Device, value: tuple[int, int]) -> None:
        new = wrap(_state_leaf(value, device))
        if device in self._states:  # it keeps its handle: a captured step may hold it
            self._states[device].assign(new)
        else:
            self._states[device] = new
        self._known[device] = self._states[device].node, value

    def _value(self, device: Device) -> tuple[int, int]:
        """The state as numbers: no wait for the device, but after an `assign` or a replay."""
        node = self._states[device].node
        known, value = self._known[device]
        return value if known is node else _read(node)

    def bits(self, shape: Extents, device: Place = None) -> Tensor:
        """Random int32 words, one draw. See [Note: the layout of the stream]."""
        extents = as_shape("bits", shape)
        return wrap(self.draw(extents, as_device(device)))

    def draw(self, shape: Shape, device: Device) -> Node:
        """`bits` as a node."""
        backend_of(device, computing=True)
        state = self.state(device)
        before = state.node
        words = ops.random_bits(before, shape=shape)
        blocks = -(-math.prod(shape) // 4)
        if capturing():
            advance = ops.iota(2, int64, device) * blocks  # (0, blocks)
            state.assign(wrap(before + advance))
        else:
            seed, counter = self._value(device)
            self._set(device, (seed, _signed(counter + blocks)))
        return words

    def __repr__(self) -> str:
        return f"Generator({self._start[0]})"


def _state_leaf(state: tuple[int, int], device: Device) -> Node:
    storage = backend_of(device).from_bytes(memoryview(struct.pack("=qq", *state)))
    return leaf(storage, (2,), int64, device)


def _read(node: Node) -> tuple[int, int]:
    compute([node])
    return struct.unpack("=qq", backend_of(node.device).to_bytes(node.storage, 16))


def _signed(value: int) -> int:
    """The lowest 64 bits as an int64."""
    return (value + 2**63) % 2**64 - 2**63


default_generator = Generator(0)


def seed(n: int) -> Generator:
    """Seed the generator that is used where none is passed."""
    return default_generator.seed(n)


def uniform(
    shape: Extents = (),
    low: float = 0.0,
    high: float = 1.0,
    dtype: DTypeLike = float32,
    device: Place = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers in [low, high), each multiple of the resolution equally likely."""
    target = _floating("uniform", dtype)
    if not low <= high:
        raise ValueError(f"uniform: expected low <= high, got {low} and {high}.")
    u = _unit(as_shape("uniform", shape), target, as_device(device), generator)
    if (low, high) == (0, 1):
        u = as_type(u, target)
    else:
        u = as_type(u * (high - low) + low, target)
        # Rounding may reach `high`, which is excluded.
        u = ops.where(ops.less(u, like(high, u)), u, like(low, u))
    return wrap(u)


def normal(
    shape: Extents = (),
    mean: float = 0.0,
    std: float = 1.0,
    dtype: DTypeLike = float32,
    device: Place = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers of the normal distribution: sqrt(-2 log(1 - u)) * cos(2 pi v) * std + mean."""
    target = _floating("normal", dtype)
    extents, place = as_shape("normal", shape), as_device(device)
    if std < 0:
        raise ValueError(f"normal: expected std of 0 or more, got {std}.")
    u, v = (_unit(extents, accumulator(target), place, generator) for _ in range(2))
    z = ops.sqrt(ops.log(1.0 - u) * -2.0) * ops.cos(v * (2 * math.pi))
    if std != 1:
        z = z * std
    return wrap(as_type(z + mean if mean != 0 else z, target))


def randint(
    low: int,
    high: int,
    shape: Extents = (),
    dtype: DTypeLike = int64,
    device: Place = None,
    generator: Generator | None = None,
) -> Tensor:
    """Integers in low .. high - 1, equally likely to within (high - low) * 2**-53."""
    target = as_dtype(dtype, "randint: dtype")
    if target.kind not in ("int", "uint"):
        raise TypeError(f"randint: expected an integer dtype, got {target.name}.")
    if not 0 < high - low <= 2**53:
        raise ValueError(
            f"randint: expected low < high, at most 2**53 apart, got {low} and {high}."
        )
    u = _unit(as_shape("randint", shape), float64, as_device(device), generator)
    k = ops.cast(ops.floor(u * float(high - low)), dtype=int64) + low
    return wrap(as_type(k, target))


def bernoulli(
    shape: Extents = (),
    p: float | Tensor = 0.5,
    dtype: DTypeLike = bool_,
    device: Place = None,
    generator: Generator | None = None,
) -> Tensor:
    """True with probability p, else False; p is a number or a tensor that broadcasts to `shape`."""
    extents = as_shape("bernoulli", shape)
    if isinstance(p, TensorBase):
        chance = node_of("bernoulli", p)
        chance = as_type(chance, accumulator(chance.dtype))
        u = _unit(extents, chance.dtype, chance.device, generator)
        chance = expand_to(chance, extents)
    else:
        if not 0 <= p <= 1:
            raise ValueError(f"bernoulli: expected p in [0, 1], got {p}.")
        u = _unit(extents, float32, as_device(device), generator)
        chance = like(p, u)
    return wrap(as_type(ops.less(u, chance), as_dtype(dtype, "bernoulli: dtype")))


def permutation(n: int, device: Place = None, generator: Generator | None = None) -> Tensor:
    """The integers 0 .. n - 1 in random order: by 64-bit random keys, sorted on the host.

    Raises: RuntimeError in a captured step, whose replay could not sort again.
    """
    (count,) = as_shape("permutation", n)
    if capturing():
        raise RuntimeError(
            "permutation: expected no step to be captured, got a call inside one. "
            "Draw the permutation outside and pass it in."
        )
    place = as_device(device)
    words = _generator(generator).draw((2 * count,), place)
    compute([words])
    keys = backend_of(place).to_bytes(words.storage, 8 * count).cast("q")
    return tensor(sorted(range(count), key=keys.__getitem__), dtype=int64, device=place)


def _generator(generator: Generator | None) -> Generator:
    return default_generator if generator is None else generator


def _unit(shape: Shape, dtype: DType, device: Device, generator: Generator | None) -> Node:
    """Numbers in [0, 1), the halves' in float32. See [Note: the layout of the stream]."""
    stream = _generator(generator)
    if accumulator(dtype) is float32:
        words = stream.draw(shape, device)
        # As many of the top bits as the dtype holds; the others are 0, so that the cast is exact.
        top = ops.bitwise_and(words, like(-(2 ** (32 - PRECISION[dtype])), words))
        return ops.cast(top, dtype=float32) * 2.0**-32 + 0.5
    words = stream.draw((*shape, 2), device)
    first, second = (
        ops.reshape(ops.narrow(words, len(shape), i, i + 1), shape=shape) for i in range(2)
    )
    low = ops.bitwise_and(second, like(2**21 - 1, second))
    high = ops.cast(first, dtype=float64) * 2.0**-32 + 0.5
    return high + ops.cast(low, dtype=float64) * 2.0**-53


def _floating(caller: str, dtype: DTypeLike) -> DType:
    target = as_dtype(dtype, f"{caller}: dtype")
    if not target.is_floating:
        raise TypeError(f"{caller}: expected a floating dtype, got {target.name}.")
    return target


__all__ = [
    "Generator",
    "bernoulli",
    "default_generator",
    "normal",
    "permutation",
    "randint",
    "seed",
    "uniform",
]
