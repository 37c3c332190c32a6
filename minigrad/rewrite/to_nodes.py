"""Terms become nodes again: one product for each full-size factor, A*g + B*c + C.

Coefficients are computed in the small. Factors that vary along fewer axes are multiplied first, and
powers last and one at a time, ((gamma*P)*rho)*rho*rho: rho^3 alone overflows in float32 at a
deviation of 1e-13.
"""

from __future__ import annotations

from typing import Any

from minigrad.graph import Node
from minigrad.ops import pow_, rsqrt, sqrt
from minigrad.rewrite.algebra import Algebra
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.terms import (
    ONE,
    Coefficient,
    Exponent,
    Monomial,
    Terms,
    exact,
    inverse,
    key_of,
    ratio,
    scaled,
    times,
)


class NodeWriter:
    """Builds the nodes that compute terms, each value once."""

    def __init__(self, builder: NodeBuilder):
        self.builder = builder
        self.algebra: Algebra  # set by the one that owns both
        self._lowered: dict[Any, Node] = {}
        self._rooted: set[int] = set()  # reciprocal square roots in use

    def lower(self, p: Terms) -> Node:
        """The node of terms that are not a plain number."""
        key = key_of(p)
        node = self._lowered.get(key)
        if node is None:
            node = self._monomial(*next(iter(p.items()))) if len(p) == 1 else self._sum(p)
            self._lowered[key] = node
        return node

    def lower_like(self, p: Terms, like: Node) -> Node:
        """The node of terms, with the dtype and the rank of `like` if they are a plain number."""
        if not p or (len(p) == 1 and () in p):
            return self.builder.number(float(p.get((), 0)), like)
        return self.lower(p)

    def _factors(self, symbol: int, e: Exponent) -> list[Node]:
        """x^e as nodes to multiply: x^3 -> [x, x, x], v^(-3/2) -> three times rsqrt(v)."""
        builder, x = self.builder, self.algebra.node[symbol]
        if e == int(e):
            e = int(e)
            if e > 0:
                return [x] * e
            root = builder.make(rsqrt, (x,), {})
            if root.id in self._rooted:  # at hand anyway, and better than another division
                return [root] * (-2 * e)
            power = x
            for _ in range(-e - 1):
                power = builder.mul(power, x)
            return [builder.div(builder.number(1.0, x), power)]
        if 2 * e == int(2 * e) and abs(e) < 8:
            root = builder.make(sqrt if e > 0 else rsqrt, (x,), {})
            if e < 0:
                self._rooted.add(root.id)
            return [root] * int(2 * abs(e))
        return [builder.together(pow_, x, builder.number(float(e), x))]

    def _monomial(self, m: Monomial, k: Coefficient = 1) -> Node:
        builder, mask = self.builder, self.algebra.mask
        out: Node | None = None
        for axes in sorted({mask[i] for i, _ in m}, key=lambda v: (v.bit_count(), v)):
            groups = sorted([self._factors(i, e) for i, e in m if mask[i] == axes], key=len)
            part, *more = [f for group in groups for f in group]
            for f in more:
                part = builder.mul(part, f)
            if out is None and abs(k) != 1:
                part = self._scaled(part, abs(k))
            out = part if out is None else builder.mul(out, part)
        assert out is not None
        return out if k > 0 else builder.neg(out)

    def _scaled(self, x: Node, k: Coefficient) -> Node:
        return self.builder.mul(x, self.builder.number(float(k), x))

    def _sum(self, p: Terms) -> Node:
        algebra = self.algebra
        top = algebra.extent(p)
        rows = algebra.by_core(p, top)
        wide = any(algebra.varies(m) == top for row in rows.values() for m in row)
        rest = rows.pop((), {})
        if wide or not rows:  # a coefficient is full-size itself
            common = algebra.primitive(p)[1]
            if common:
                back = inverse(common)
                inner = self.lower({times(m, back): k for m, k in p.items()})
                return self.builder.mul(self._monomial(common), inner)
        if rows:
            parts = sorted(_merged(rows), key=_is_subtracted)
            parts += [(rest, ONE)] if rest else []
        else:
            parts = [({m: k}, ONE) for m, k in sorted(p.items(), key=self._breadth)]
        out = None
        for small, cores in parts:
            out = self._plus(out, small, cores)
        assert out is not None
        return out

    def _breadth(self, term: tuple[Monomial, Coefficient]) -> tuple[bool, int]:
        """Sums are built from the small terms up; a plain number comes last."""
        return not term[0], self.algebra.varies(term[0]).bit_count()

    def _plus(self, out: Node | None, p: Terms, q: Terms = ONE) -> Node:
        """out + p * q, as a difference where that saves a sign."""
        builder = self.builder
        sign = -1 if len(p) == 1 and next(iter(p.values())) < 0 else 1
        p = scaled(p, sign)
        if q == ONE:
            node = self.lower(p) if out is None else self.lower_like(p, out)
        elif len(p) == len(q) == 1:
            ((m, k),), ((n, c),) = p.items(), q.items()
            node = self._monomial(times(m, n), exact(k * c))
        elif len(p) == 1 and () in p:
            node = self.lower(q)
            if p != ONE:
                node = self._scaled(node, p[()])
        else:
            node = builder.mul(self.lower(p), self.lower(q))
        if out is None:
            return node if sign > 0 else builder.neg(node)
        return builder.add(out, node) if sign > 0 else builder.sub(out, node)


def _is_subtracted(part: tuple[Terms, Terms]) -> bool:
    """What is subtracted comes last."""
    return next(iter(part[0].values())) < 0


def _merged(rows: dict[Monomial, Terms]) -> list[tuple[Terms, Terms]]:
    """[(coefficient, cores)]: k*a + k*b becomes k*(a + b)."""
    out: dict[Any, tuple[Terms, Terms]] = {}
    for core, small in rows.items():
        key = tuple(small)
        if len(small) > 1 or () in small:
            out[key, core] = small, {core: 1}
        elif key in out:
            k = next(iter(out[key][0].values()))
            out[key][1][core] = ratio(next(iter(small.values())), k)
        else:
            out[key] = small, {core: 1}
    return list(out.values())
