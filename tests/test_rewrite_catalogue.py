"""The catalogue of rules: each that the sources name is listed, used on a graph, and tested."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from rewrite_cases import Leaves
from test_rewrite import CASES
from test_rewrite_rules import ARITHMETIC, EXAMPLES, GRAPHS
from test_rewrite_strict import HIDERS

from minigrad import ops, rewrite
from minigrad.compiler.run import structure
from minigrad.graph import Node, topological
from minigrad.rewrite import CATALOGUE, HIDING, RULES, STATEMENTS, Rewriting, simplify

# A graph on which each rule is used, one of CASES but for the last.
USED = {
    "powers": "BN", "like terms": "BN", "same value": "BN", "cancelled terms": "BN",
    "product with zero": "BN", "multiply out": "BN + Scale", "collect": "BN, E[x2] - E[x]2",
    "power of a root": "BN, c / sqrt", "cancelled powers": "cross-entropy by log(p)",
    "views": "GN, 5-D view", "nested sums": "IN", "zero": "bias + IN", "open centre": "BN twice",
    "linearity": "BN", "split": "IN", "count": "BN", "invariant factor": "BN", "open": "BN",
    "one-hot": "cross-entropy", "one sum": "a sum of a sum",
}  # fmt: skip
ALWAYS = {"powers", "like terms", "same value"}  # `off` does not switch these off
REPLACED = {"zero", "one sum"}  # others come to the same without them


def graph(name: str) -> list[Node]:
    if name in CASES:
        return [n for part in CASES[name][0]() for n in part]
    inner = ops.sum_(Leaves()(3, 4, 5).node, axes=(1,))
    return [ops.sum_(inner, axes=(0,))]


def named_in_sources() -> set[str]:
    """The names that rewriting records, and those that it asks `off` for."""
    found: set[Any] = set()
    for path in Path(rewrite.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".record"):
                found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
            if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("off"):
                found |= {node.left.value} if isinstance(node.left, ast.Constant) else set()
    return found


def test_every_rule_that_the_sources_name_is_listed():
    found = named_in_sources()
    assert {"collect", "like terms", "views", "power of a root"} <= found
    assert found <= CATALOGUE.keys()


def test_the_lists_of_rules_are_the_catalogue():
    assert {name: rule.statement for name, rule in CATALOGUE.items()} == STATEMENTS
    assert {name: rule.statement for name, rule in CATALOGUE.items() if rule.hides} == HIDING
    assert list(RULES) == [n for n, rule in CATALOGUE.items() if rule.kind == "reduction"]


def test_every_rule_has_a_test_of_its_kind():
    tests = {"reduction": EXAMPLES, "terms": ARITHMETIC | GRAPHS, "graph": GRAPHS}
    for name, rule in CATALOGUE.items():
        assert name in tests[rule.kind], f"{name}: {rule.home.__module__} has a rule without a test"
        assert name in USED, f"{name}: say on which graph it is used"
    assert HIDERS.keys() == HIDING.keys()


class Heard:
    """Hears which rules a simplifier applies."""

    def __init__(self) -> None:
        self.rules: set[str] = set()

    def enter(self, n: Node) -> None:
        pass

    def leave(self, n: Node, terms: Any) -> None:
        pass

    def __call__(self, rule: str, before: Any, after: Any) -> None:
        self.rules.add(rule)


def called(roots: list[Node], off: Any) -> set[CodeType]:
    """The functions that are called to simplify a graph."""
    found: set[CodeType] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: found.add(frame.f_code))
    try:
        simplify(roots, off=off)
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_rule_is_used(name):
    roots, rule = graph(USED[name]), CATALOGUE[name]
    # The home of "cancelled powers" is what takes the place of the rule.
    assert rule.home.__code__ in called(roots, {name} if name == "cancelled powers" else ())
    if rule.kind == "reduction":
        heard = Heard()
        Rewriting(roots).recorded(lambda algebra: heard)
        assert name in heard.rules


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - ALWAYS - REPLACED))
def test_every_rule_can_be_switched_off(name):
    roots = graph(USED[name])
    on, off = simplify(roots), simplify(roots, off={name})
    assert structure(topological(on), on) != structure(topological(off), off)
