"""The rules by name: what each one states, its kind, whether it hides a NaN, and where it lives.

A rule of any kind is put in here by `@named` on the function that applies it, its home:

    terms      part of the arithmetic of terms (`algebra.py`, `walk.py`)
    graph      from a graph to a graph, before or after the terms (`views.py`, `nested_sums.py`)
    reduction  from a sum to simpler sums (`rules.py`, which tries them in its order)

The name is what a derivation prints (`record`) and what `simplify(off=...)` switches off: all rules
but "powers", "like terms" and "same value", without which there is no algebra. It is also what the
tests of a rule are found by: tests/test_rewrite_catalogue.py fails for a rule that nothing tests,
that no graph uses, or that does not go when it is switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Home = TypeVar("Home", bound=Callable[..., Any])

KINDS = ("terms", "graph", "reduction")


class NamedRule(NamedTuple):
    """A rule: its kind, what it states, its home, and whether it can turn a NaN into a number."""

    kind: str
    statement: str
    home: Callable[..., Any]
    hides: bool


CATALOGUE: dict[str, NamedRule] = {}


def named(
    name: str, statement: str, kind: str = "terms", hides: bool = False
) -> Callable[[Home], Home]:
    """Register the home of a rule."""

    def register(home: Home) -> Home:
        assert kind in KINDS, kind
        assert name not in CATALOGUE, name
        CATALOGUE[name] = NamedRule(kind, statement, home, hides)
        return home

    return register


def statements(hiding: bool = False) -> dict[str, str]:
    """Name -> statement, by kind; with `hiding`, only of the rules that hide a NaN."""
    rules = sorted(CATALOGUE.items(), key=lambda item: KINDS.index(item[1].kind))
    return {name: rule.statement for name, rule in rules if rule.hides or not hiding}
