"""Nested arguments and results: tuples, named tuples, lists and dicts with tensors as leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

Tree = Any


def tree_leaves(tree: Any) -> list[Any]:
    """What a tree holds, in order."""
    if isinstance(tree, dict):
        parts = list(cast("dict[Any, Any]", tree).values())
    elif isinstance(tree, (tuple, list)):
        parts = list(cast("tuple[Any, ...]", tree))
    else:
        return [tree]
    return [leaf for part in parts for leaf in tree_leaves(part)]


def tree_rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    """A tree of the same containers with other leaves."""
    if isinstance(tree, dict):
        items = cast("dict[Any, Any]", tree).items()
        return {key: tree_rebuilt(part, leaves) for key, part in items}
    if isinstance(tree, (tuple, list)):
        container = cast("tuple[Any, ...]", tree)
        parts = [tree_rebuilt(part, leaves) for part in container]
        if hasattr(container, "_fields"):  # a named tuple takes its fields one by one
            return type(container)(*parts)
        return parts if isinstance(tree, list) else tuple(parts)
    return next(leaves)


def tree_paths(tree: Any, name: str) -> Iterator[str]:
    """The names of the leaves, in order: `name['key'][0]`."""
    if isinstance(tree, dict):
        parts = list(cast("dict[Any, Any]", tree).items())
    elif isinstance(tree, (tuple, list)):
        parts = list(enumerate(cast("tuple[Any, ...]", tree)))
    else:
        yield name
        return
    for key, part in parts:
        yield from tree_paths(part, f"{name}[{key!r}]")
