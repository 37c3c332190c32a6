"""The loop nest: what a backend turns into one kernel.

An outer loop runs over the *kept* axes; inside it several *passes* run over the *reduced* axes. A
reduction of one pass is a scalar to the passes after it, and an inner value is computed again in a
later pass rather than stored. A nest without reductions keeps every axis and has one pass.

Expressions are hash-consed tuples of a nest:
    ("load", access)                   ("const", slot, dtype name)
    ("index", affine, dtype name)      ("reduction", number)
    (op name, dtype name, argument, ...)   with arguments as numbers into `LoopNest.expressions`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from minigrad.backend.launch import Operand
from minigrad.dtype import DType

LEAVES = ("load", "const", "index", "reduction")
LEAST_RUN = 64  # elements along an innermost kept axis that one core should have, for its vectors


@dataclass(frozen=True)
class Affine:
    """An index: `offset + sum(coefficient[axis] * position[axis])` over a loop nest's axes."""

    offset: int
    coefficients: tuple[int, ...]

    def scaled(self, factor: int, shift: int = 0) -> Affine:
        """The index times `factor`, plus `shift`."""
        return Affine(self.offset * factor + shift, tuple(c * factor for c in self.coefficients))

    def plus(self, other: Affine) -> Affine:
        """The sum of two indices."""
        both = zip(self.coefficients, other.coefficients, strict=True)
        return Affine(self.offset + other.offset, tuple(a + b for a, b in both))


@dataclass(frozen=True)
class Access:
    """One element of a slot for each point of the nest. Strides and offset are in elements."""

    slot: int
    dtype: DType
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Reduction:
    """`kind` ("sum" or "max") of `expression` over the reduced axes, stored at `access`."""

    kind: str
    expression: int
    dtype: DType
    access: Access
    level: int  # the pass that accumulates it


@dataclass(frozen=True)
class Store:
    """`expression` written to `access` at every point, in pass `level`."""

    expression: int
    access: Access
    level: int


@dataclass
class LoopNest:
    """See the module's docstring. `kept[a]` tells the outer axes from the reduced ones."""

    shape: tuple[int, ...]
    kept: tuple[bool, ...]
    expressions: list[tuple[Any, ...]] = field(default_factory=list)
    types: list[DType] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    costs: dict[str, int] = field(default_factory=dict)  # of each op, in additions

    @property
    def passes(self) -> int:
        """How often the reduced axes are run over."""
        return 1 + max([r.level for r in self.reductions] + [s.level for s in self.stores])

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """The extents of the outer axes."""
        return tuple(n for n, is_kept in zip(self.shape, self.kept, strict=True) if is_kept)

    @property
    def is_empty(self) -> bool:
        """Whether it writes nothing; a reduction of nothing writes the neutral element."""
        return 0 in (self.kept_shape if self.reductions else self.shape)

    def reductions_of(self, level: int) -> list[tuple[int, Reduction]]:
        """The reductions that pass `level` accumulates, with their numbers."""
        return [(n, r) for n, r in enumerate(self.reductions) if r.level == level]

    def stores_of(self, level: int) -> list[Store]:
        """What pass `level` stores."""
        return [s for s in self.stores if s.level == level]

    def roots(self, level: int) -> list[int]:
        """The expressions that pass `level` reduces or stores."""
        found = [r.expression for _, r in self.reductions_of(level)]
        return found + [s.expression for s in self.stores_of(level)]

    def dependencies(self) -> list[frozenset[int]]:
        """For each expression, the axes along which its value changes."""
        kept = frozenset(a for a, is_kept in enumerate(self.kept) if is_kept)
        result: list[frozenset[int]] = []
        for e in self.expressions:
            if e[0] == "load":
                axes = frozenset(a for a, s in enumerate(e[1].strides) if s)
            elif e[0] == "index":
                axes = frozenset(a for a, c in enumerate(e[1].coefficients) if c)
            elif e[0] == "reduction":
                axes = kept
            elif e[0] == "const":
                axes = frozenset[int]()
            else:
                axes = frozenset[int]().union(*(result[k] for k in e[2:]))
            result.append(axes)
        return result

    def cone(
        self, roots: Iterable[int], known: Callable[[int], bool] = lambda k: False
    ) -> list[int]:
        """The expressions that `roots` need, arguments first; not what is behind a `known` one."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            k = stack.pop()
            if k not in seen:
                seen.add(k)
                if self.expressions[k][0] not in LEAVES and not known(k):
                    stack.extend(self.expressions[k][2:])
        return sorted(seen)  # numbers grow from arguments up

    def accesses(self) -> list[Access]:
        """Every access once: loads, then where reductions and stores write."""
        found = [e[1] for e in self.expressions if e[0] == "load"]
        found += [r.access for r in self.reductions] + [s.access for s in self.stores]
        return list(dict.fromkeys(found))

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops it computes, each once: reductions, then the others in order."""
        names = [r.kind for r in self.reductions]
        names += [e[0] for e in self.expressions if e[0] not in LEAVES]
        return tuple(dict.fromkeys(names))

    def reads(self) -> tuple[Operand, ...]:
        """What it loads."""
        return self._operands([e[1] for e in self.expressions if e[0] == "load"])

    def writes(self) -> tuple[Operand, ...]:
        """What it stores."""
        return self._operands([x.access for x in (*self.reductions, *self.stores)])

    def _operands(self, accesses: list[Access]) -> tuple[Operand, ...]:
        return tuple(Operand(a.slot, a.dtype, self.shape, a.strides, a.offset) for a in accesses)


def independent_points(shape: tuple[int, ...], kept: tuple[bool, ...], run: int = LEAST_RUN) -> int:
    """How many cores the kept axes can occupy; of an innermost kept axis each takes a run."""
    outer = prod(n for n, is_kept in zip(shape[:-1], kept[:-1], strict=True) if is_kept)
    return outer * -(-shape[-1] // run) if kept and kept[-1] else outer


def relaid(
    nest: LoopNest,
    shape: tuple[int, ...],
    kept: tuple[bool, ...],
    vector: Callable[[tuple[int, ...]], tuple[int, ...]],
    shift: Callable[[tuple[int, ...]], int] = lambda v: 0,
) -> LoopNest:
    """The same expressions over other axes.

    Args:
        vector: from strides or coefficients along the old axes to those along the new ones.
        shift: from the same to what is added to the offset.
    """

    def access(a: Access) -> Access:
        return Access(a.slot, a.dtype, vector(a.strides), a.offset + shift(a.strides))

    def expression(e: tuple[Any, ...]) -> tuple[Any, ...]:
        if e[0] == "load":
            return ("load", access(e[1]))
        if e[0] == "index":
            v = e[1].coefficients
            return ("index", Affine(e[1].offset + shift(v), vector(v)), e[2])
        return e

    return replace(
        nest,
        shape=shape,
        kept=kept,
        expressions=[expression(e) for e in nest.expressions],
        reductions=[replace(r, access=access(r.access)) for r in nest.reductions],
        stores=[replace(s, access=access(s.access)) for s in nest.stores],
    )


def reordered(nest: LoopNest, order: Sequence[int]) -> LoopNest:
    """The same nest with its axes in another order."""

    def moved(vector: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(vector[a] for a in order)

    return relaid(nest, moved(nest.shape), moved(nest.kept), moved)


def simplified(nest: LoopNest) -> LoopNest:
    """The same nest without axes of extent 1, adjacent axes merged where all strides allow.

    It has at least one axis.
    """
    vectors = [a.strides for a in nest.accesses()]
    vectors += [e[1].coefficients for e in nest.expressions if e[0] == "index"]
    axes: list[int] = []  # those that stay, from the innermost out, and their extents
    extents: list[int] = []

    def is_run_of_last(axis: int) -> bool:
        """Whether a step along the axis goes as far as all steps along the last one found."""
        last, n = axes[-1], extents[-1]
        return nest.kept[axis] == nest.kept[last] and all(v[axis] == v[last] * n for v in vectors)

    for axis in reversed(range(len(nest.shape))):
        if nest.shape[axis] == 1:
            continue
        if axes and is_run_of_last(axis):
            extents[-1] *= nest.shape[axis]
        else:
            axes.append(axis)
            extents.append(nest.shape[axis])
    if not axes:  # one value: a backend sees at least one axis
        return relaid(nest, (1,), nest.kept[:1] or (True,), lambda v: v[:1] or (0,))
    axes.reverse()
    kept = tuple(nest.kept[a] for a in axes)
    return relaid(nest, tuple(reversed(extents)), kept, lambda v: tuple(v[a] for a in axes))


def copying(source: Operand, out: Operand) -> LoopNest:
    """A nest that copies one operand to another of the same shape."""
    load, store = (Access(x.slot, x.dtype, x.strides, x.offset) for x in (source, out))
    kept = (True,) * len(out.shape)
    nest = LoopNest(out.shape, kept, [("load", load)], [source.dtype], [], [Store(0, store, 0)])
    return simplified(nest)
