"""The README's Python examples run and print what they say."""

import doctest
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples_in_the_readme():
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testfile(str(README), module_relative=False, optionflags=options)
    assert results.attempted > 20
    assert not results.failed
