"""The Python examples of both READMEs run and print what they say."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("path", "least"), [("README.md", 20), ("minigrad/README.md", 5)])
def test_examples_run(path, least):
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testfile(str(ROOT / path), module_relative=False, optionflags=options)
    assert results.attempted > least
    assert not results.failed
