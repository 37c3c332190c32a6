"""The Python values that a recorded step took for granted: it holds while they are what they were.

[Note: what is guarded] A recording bakes in every Python number that the function read. What it
may read is found in two ways:

* From the code of the function, and of the functions it calls outside of libraries: the globals,
  closure variables and defaults that are read, and of the objects found there the attributes whose
  names the code reads. Of lists, dicts and sets found there, the elements.
* What takes part says so while it is recorded (`Observer.used`) and names the attributes it
  bakes in: a module all it has (p, eps, training, ...), an optimizer its choices.

Numbers, text and None are compared by value; all else (tensors, functions, objects) by identity.
What the function itself changes while it is recorded (a counter, a cache) is not guarded: that
happens while recording only. Not noticed is what no name in the code leads to (files, clocks,
Python's random numbers, `getattr` with a computed name) and what changes inside of libraries.
"""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, cast

from minigrad.graph import OWN_PACKAGES
from minigrad.tensor_base import TensorBase

MOST_ELEMENTS = 64  # longer containers are data, and too long to compare at each replay
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MISSING = object()


class _Watched(NamedTuple):
    read: Callable[[], Any]
    value: Any
    name: str


class _Found(NamedTuple):
    """An object whose attributes count if some code reads their names."""

    owner: Any
    name: str
    attributes: set[str]


class Guard:
    """Watches what `function` may read, from before a recording until it is dropped."""

    def __init__(self, function: Callable[..., Any]):
        self.tensors: list[TensorBase] = []  # that were found; until `settle`
        self._watched: dict[Any, _Watched] = {}
        self._names: dict[int, str] = {}  # of what was looked into, by id
        self._alive: list[Any] = []  # so that no id is given again meanwhile
        self._found: list[_Found] = []
        self._used: set[int] = set()
        self._read: set[str] = set()  # attributes that some code reads
        self._called: set[str] = {"__call__", "forward"}  # and that it calls
        self._entries: list[_Watched] = []
        self._visit(function, "")
        self._look_up()

    def use(self, owner: Any) -> None:
        """Watch an object that takes part: the attributes that `owner.baked_in()` names."""
        if id(owner) in self._used:
            return
        self._used.add(id(owner))
        self._visit(owner, type(owner).__name__)
        name = self._names[id(owner)]
        for attribute in owner.baked_in():
            self._watch_attribute(owner, attribute, f"{name}.{attribute}")
        self._look_up()

    def settle(self) -> None:
        """The recording is over: what it changed itself is watched no more."""
        self._entries = [w for w in self._watched.values() if _same(w.read(), w.value)]
        self._watched, self._names = {}, {}
        self.tensors, self._alive, self._found = [], [], []

    def changed(self) -> tuple[str, str] | None:
        """The name of the first value that is another now, and what happened to it."""
        for read, before, name in self._entries:
            now = read()
            if now is not before and not _same(now, before):
                return name, _difference(before, now)
        return None

    def _watch(self, key: Any, read: Callable[[], Any], name: str) -> None:
        if key not in self._watched:
            value = read()
            self._watched[key] = _Watched(read, value, name)
            self._visit(value, name)

    def _watch_attribute(self, owner: Any, attribute: str, name: str) -> None:
        read = partial(getattr, owner, attribute, _MISSING)
        self._watch((id(owner), attribute), read, name)

    def _visit(self, value: Any, name: str) -> None:
        """Look into a value: follow functions, watch elements, remember objects."""
        if isinstance(value, TensorBase):
            self.tensors.append(value)
            return
        if isinstance(value, _PLAIN) or id(value) in self._names:
            return
        self._names[id(value)] = name
        self._alive.append(value)
        if isinstance(value, types.MethodType):
            self._visit(value.__self__, "self")
            self._visit(value.__func__, name)
        elif isinstance(value, partial):
            part = cast("partial[Any]", value)
            self._visit((part.func, part.args, part.keywords), name)
        elif isinstance(value, types.FunctionType):
            self._visit(vars(value).get("__wrapped__"), name)
            if not _is_library(value.__globals__.get("__name__", "")):
                self._follow(value)
        elif isinstance(value, (list, tuple, dict, set, frozenset)):
            self._visit_elements(cast("Any", value), name)
        else:
            attributes = _attributes(value)
            if attributes:
                self._found.append(_Found(value, name, attributes))

    def _visit_elements(self, container: Any, name: str) -> None:
        if len(container) > MOST_ELEMENTS:
            return
        keyed = hasattr(container, "items")
        elements = container.items() if keyed else container
        if not isinstance(container, (tuple, frozenset)):
            self._watch((id(container), "elements"), partial(tuple, elements), name)
        for key, element in elements if keyed else enumerate(elements):
            self._visit(element, f"{name}[{key!r}]")

    def _follow(self, function: types.FunctionType) -> None:
        for attribute in ("__defaults__", "__kwdefaults__"):
            self._watch_attribute(function, attribute, f"{function.__name__}.{attribute}")
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            self._watch((id(cell), "contents"), partial(_contents, cell), name)
        self._follow_code(function.__code__, function.__globals__)

    def _follow_code(self, code: types.CodeType, names: dict[str, Any]) -> None:
        for instruction in dis.get_instructions(code):
            operation, name = instruction.opname, instruction.argval
            if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
                if name in names:
                    self._watch((id(names), name), partial(names.get, name, _MISSING), name)
            elif operation in ("LOAD_METHOD", "LOAD_SUPER_ATTR") or (
                operation == "LOAD_ATTR" and sys.version_info >= (3, 12) and instruction.arg & 1
            ):
                self._called.add(name)
            elif operation == "LOAD_ATTR":
                self._read.add(name)
        for constant in code.co_consts:  # lambdas and comprehensions
            if isinstance(constant, types.CodeType):
                self._follow_code(constant, names)

    def _look_up(self) -> None:
        """Watch the attributes that count; the functions among them may read yet more names."""
        size = -1
        while size != (size := len(self._found) + len(self._read) + len(self._called)):
            for owner, name, attributes in list(self._found):
                for attribute in sorted(attributes & (self._read | self._called)):
                    self._look_at(owner, attribute, f"{name}.{attribute}" if name else attribute)

    def _look_at(self, owner: Any, attribute: str, name: str) -> None:
        value: Any = inspect.getattr_static(owner, attribute, None)
        own = not isinstance(owner, type) and attribute in getattr(owner, "__dict__", ())
        if own or isinstance(value, types.MemberDescriptorType) or not hasattr(value, "__get__"):
            # The code calls a method of this name. A number or text cannot be called, so the code
            # means another object's, and this one is not watched.
            if attribute in self._read or not isinstance(value, _PLAIN):
                self._watch_attribute(owner, attribute, name)
            return
        for inner in ("__func__", "fget", "func"):  # static and class methods, properties
            value = getattr(value, inner, value)
        self._visit(value, name)


def _attributes(value: Any) -> set[str]:
    """The names a value knows of itself and, outside of libraries, of its classes."""
    if isinstance(value, types.ModuleType):
        return set() if _is_library(value.__name__) else set(vars(value))
    classes = (value if isinstance(value, type) else type(value)).__mro__
    if classes[0].__module__.partition(".")[0] in OWN_PACKAGES:
        return set()  # they tell what they bake in when they are used
    known: list[Any] = [vars(c) for c in classes if not _is_library(c.__module__)]
    if not isinstance(value, type):
        known.append(getattr(value, "__dict__", ()))
    return {name for names in known for name in names}


@cache
def _is_library(module: str) -> bool:
    """Whether a module is ours, the standard library's or an installed package's."""
    package = module.partition(".")[0]
    path = getattr(sys.modules.get(package), "__file__", None) or ""
    known = package in OWN_PACKAGES or package in sys.stdlib_module_names
    return known or "site-packages" in path or "dist-packages" in path


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value
        return _MISSING


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one to a recording."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        one, other = cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b)
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(a, _PLAIN) and repr(a) == repr(b)  # 0.0 is not -0.0, and NaN is itself


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, tuple) and isinstance(now, tuple):
        old, new = cast("tuple[Any, ...]", before), cast("tuple[Any, ...]", now)
        if len(old) != len(new):
            return f"had {len(old)} elements, has {len(new)}"
        return next(_difference(a, b) for a, b in zip(old, new, strict=True) if not _same(a, b))
    if isinstance(before, _PLAIN) and isinstance(now, _PLAIN):
        return f"was {before!r}, is {now!r}"
    return "was replaced"
