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

from collections.abc import Callable, Iterable
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

    def roots(self, level: int) -> list[int]:
        """The expressions that pass `level` reduces or stores."""
        found = [r.expression for r in self.reductions if r.level == level]
        return found + [s.expression for s in self.stores if s.level == level]

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


def reordered(nest: LoopNest, order: tuple[int, ...]) -> LoopNest:
    """The same nest with its axes in another order."""

    def moved(vector: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(vector[a] for a in order)

    def access(a: Access) -> Access:
        return Access(a.slot, a.dtype, moved(a.strides), a.offset)

    def expression(e: tuple[Any, ...]) -> tuple[Any, ...]:
        if e[0] == "load":
            return ("load", access(e[1]))
        if e[0] == "index":
            return ("index", Affine(e[1].offset, moved(e[1].coefficients)), e[2])
        return e

    return LoopNest(
        moved(nest.shape),
        moved(nest.kept),
        list(map(expression, nest.expressions)),
        nest.types,
        [replace(r, access=access(r.access)) for r in nest.reductions],
        [replace(s, access=access(s.access)) for s in nest.stores],
        nest.costs,
    )


def simplified(nest: LoopNest) -> LoopNest:
    """The same nest without axes of extent 1, adjacent axes merged where all strides allow."""
    shape, kept = list(nest.shape), list(nest.kept)
    vectors: dict[Any, list[int]] = {a: list(a.strides) for a in nest.accesses()}
    indices = {e[1]: list(e[1].coefficients) for e in nest.expressions if e[0] == "index"}
    everything = [*vectors.values(), *indices.values()]

    def drop(axis: int) -> None:
        del shape[axis], kept[axis]
        for v in everything:
            del v[axis]

    if not shape:  # one value: a backend sees at least one axis
        shape, kept = [1], [True]
        for v in everything:
            v.append(0)
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1 and len(shape) > 1:
            drop(axis)
    for axis in reversed(range(len(shape) - 1)):
        mergeable = kept[axis] == kept[axis + 1] and all(
            v[axis] == v[axis + 1] * shape[axis + 1] for v in everything
        )
        if mergeable:
            shape[axis + 1] *= shape[axis]
            drop(axis)

    accesses = {a: Access(a.slot, a.dtype, tuple(v), a.offset) for a, v in vectors.items()}
    affines = {i: Affine(i.offset, tuple(v)) for i, v in indices.items()}

    def renamed(e: tuple[Any, ...]) -> tuple[Any, ...]:
        if e[0] == "load":
            return ("load", accesses[e[1]])
        return ("index", affines[e[1]], e[2]) if e[0] == "index" else e

    return LoopNest(
        tuple(shape),
        tuple(kept),
        [renamed(e) for e in nest.expressions],
        nest.types,
        [
            Reduction(r.kind, r.expression, r.dtype, accesses[r.access], r.level)
            for r in nest.reductions
        ],
        [Store(s.expression, accesses[s.access], s.level) for s in nest.stores],
        nest.costs,
    )
