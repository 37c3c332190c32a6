"""`norm=` by name, and the README's table of all normalizations."""

from __future__ import annotations

from pathlib import Path

import pytest

import layers
import minigrad as mg
from layers import BatchNorm2d, GroupNorm, Identity, norm_factory
from layers.models import LeNet5
from layers.module import Module
from layers.norm.registry import NAMED, NORMALIZATIONS, NUMBERS, norm_table

README = Path(__file__).parents[1] / "README.md"
NOT_ONE = {"ExponentialMovingAverage", "Normalization"}  # classes of the room that do not normalize


def test_the_readme_has_the_table():
    text = README.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- normalizations: written by layers.norm.norm_table() -->\n")
    table, end, _ = rest.partition("\n<!-- end of normalizations -->")
    assert end, "the markers are gone"
    assert table == norm_table(), "put there what layers.norm_table() returns"


def test_every_normalization_has_a_row_and_every_name_one():
    rows = {name for row in NORMALIZATIONS for name in row.layer.split(", ")}
    classes = {n for n in layers.norm.__all__ if isinstance(getattr(layers, n), type)} - NOT_ONE
    assert classes <= rows
    assert {row.name for row in NORMALIZATIONS if row.name} == NAMED.keys()
    assert NUMBERS.keys() <= NAMED.keys()
    columns = {line.count("|") for line in norm_table().splitlines()}
    assert columns == {len(NORMALIZATIONS[0]) + 1}


@pytest.mark.parametrize("name", NAMED)
def test_every_name_makes_a_layer(name):
    layer = norm_factory(f"{name}:2" if name in NUMBERS else name)(4)
    assert isinstance(layer, Module)
    assert layer(mg.zeros((3, 4, 2, 2))).shape == (3, 4, 2, 2)
    number = {"group": "num_groups", "decorrelated": "groups", "local_response": "size"}.get(name)
    assert number is None or getattr(layer, number) == 2


@pytest.mark.parametrize("norm", [None, "batch", "renorm", "group:2", "mean_only", BatchNorm2d])
def test_one_argument_apart(norm):
    model = LeNet5(norm=norm)
    assert model(mg.zeros((2, 3, 32, 32))).shape == (2, 10)
    assert (model.conv1.bias is None) == (norm is not None)
    kinds = {type(m) for m in (model.norm1, model.norm2, model.norm3, model.norm4)}
    assert kinds == {Identity if norm is None else type(norm_factory(norm)(4))}


def test_numbers_and_factories():
    assert norm_factory("group")(64).num_groups == 32
    assert norm_factory("group:8")(64).num_groups == 8
    assert norm_factory(BatchNorm2d) is BatchNorm2d
    assert isinstance(norm_factory("layer")(6), GroupNorm)


@pytest.mark.parametrize("norm", ["sphere", "", "batch:2", "group:", "group:x", "Batch"])
def test_unknown_names(norm):
    with pytest.raises(ValueError, match=r"norm: expected None, a factory .* group:32, .*, got '"):
        norm_factory(norm)
