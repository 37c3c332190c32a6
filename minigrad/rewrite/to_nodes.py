"""Terms become nodes again: one product for each full-size factor, A*g + B*c + C.

Coefficients are computed in the small. Factors that vary along fewer axes are multiplied first, and
powers last and one at a time, ((gamma*P)*rho)*rho*rho: rho^3 alone overflows in float32 at a
deviation of 1e-13.
"""

from __future__ import annotations

from typing import Any

from minigrad.graph import Node
from minigrad.ops import pow_, rsqrt, sqrt
from minigrad.rewrite.node_builder import NodeBuilder
from minigrad.rewrite.terms import (
    ONE,
    Algebra,
    Coefficient,
    Exponent,
    Monomial,
    Terms,
    inverse,
    key_of,
    product,
    ratio,
    scaled,
    times,
)


class NodeWriter:
    """Builds the nodes that compute terms, each value once."""

    def __init__(self, table: NodeBuilder):
        self.table = table
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
            return self.table.number(float(p.get((), 0)), like)
        return self.lower(p)

    def _factors(self, symbol: int, e: Exponent) -> list[Node]:
        """x^e as nodes to multiply: x^3 -> [x, x, x], v^(-3/2) -> three times rsqrt(v)."""
        table, x = self.table, self.algebra.node[symbol]
        if e == int(e):
            e = int(e)
            if e > 0:
                return [x] * e
            root = table.make(rsqrt, (x,), {})
            if root.id in self._rooted:  # at hand anyway, and better than another division
                return [root] * (-2 * e)
            power = x
            for _ in range(-e - 1):
                power = table.mul(power, x)
            return [table.div(table.number(1.0, x), power)]
        if 2 * e == int(2 * e) and abs(e) < 8:
            root = table.make(sqrt if e > 0 else rsqrt, (x,), {})
            if e < 0:
                self._rooted.add(root.id)
            return [root] * int(2 * abs(e))
        return [table.together(pow_, x, table.number(float(e), x))]

    def _monomial(self, m: Monomial, k: Coefficient = 1) -> Node:
        table, mask = self.table, self.algebra.mask
        out: Node | None = None
        for axes in sorted({mask[i] for i, _ in m}, key=lambda v: (v.bit_count(), v)):
            groups = sorted([self._factors(i, e) for i, e in m if mask[i] == axes], key=len)
            part, *more = [f for group in groups for f in group]
            for f in more:
                part = table.mul(part, f)
            if out is None and abs(k) != 1:
                part = self._scaled(part, abs(k))
            out = part if out is None else table.mul(out, part)
        assert out is not None
        return out if k > 0 else table.neg(out)

    def _scaled(self, x: Node, k: Coefficient) -> Node:
        return self.table.mul(x, self.table.number(float(k), x))

    def _sum(self, p: Terms) -> Node:
        algebra = self.algebra
        top = algebra.extent(p)
        rows: dict[Monomial, Terms] = {}
        wide = False  # whether a coefficient is full-size itself
        for m, k in p.items():
            core = tuple([f for f in m if algebra.mask[f[0]] == top])
            small = tuple([f for f in m if algebra.mask[f[0]] != top])
            wide = wide or algebra.varies(small) == top
            rows.setdefault(core, {})[small] = k
        rest = rows.pop((), {})
        if wide or not rows:
            common = algebra.primitive(p)[1]
            if common:
                back = inverse(common)
                inner = self.lower({times(m, back): k for m, k in p.items()})
                return self.table.mul(self._monomial(common), inner)
            if not rows:
                out = None
                for m, k in sorted(p.items(), key=self._breadth):
                    out = self._plus(out, {m: k})
                assert out is not None
                return out
        out = None
        for small, cores in sorted(
            _merged(rows), key=lambda pair: next(iter(pair[0].values())) < 0
        ):  # what is subtracted comes last
            out = self._plus(out, small, cores)
        assert out is not None
        return self._plus(out, rest) if rest else out

    def _breadth(self, term: tuple[Monomial, Coefficient]) -> tuple[bool, int]:
        """Sums are built from the small terms up; a plain number comes last."""
        return not term[0], self.algebra.varies(term[0]).bit_count()

    def _plus(self, out: Node | None, p: Terms, q: Terms = ONE) -> Node:
        """Out + p * q, as a difference where that saves a sign."""
        table = self.table
        sign = -1 if len(p) == 1 and next(iter(p.values())) < 0 else 1
        p = scaled(p, sign)
        if q == ONE:
            node = self.lower(p) if out is None else self.lower_like(p, out)
        elif len(p) == len(q) == 1:
            ((m, k),), ((n, c),) = p.items(), q.items()
            node = self._monomial(times(m, n), product(k, c))
        elif len(p) == 1 and () in p:
            node = self.lower(q)
            if p != ONE:
                node = self._scaled(node, p[()])
        else:
            node = table.mul(self.lower(p), self.lower(q))
        if out is None:
            return node if sign > 0 else table.neg(node)
        return table.add(out, node) if sign > 0 else table.sub(out, node)


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
