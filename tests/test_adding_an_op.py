"""A public elementwise op is said in five places, and each that is missing is named here.

`minigrad/README.md` has the recipe; below it is followed with a sample, the cube.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cases
import pytest
import reference

import minigrad as mg
from minigrad import functions, nn, ops
from minigrad.backend.cpu import expressions as on_cpu
from minigrad.backend.cuda import expressions as on_cuda
from minigrad.dtype import float32, float64
from minigrad.functions import elementwise
from minigrad.functions.arguments import as_float, node_of
from minigrad.graph import PRIMITIVES, Primitive
from minigrad.tensor_base import wrap

RECORD = "minigrad/ops/elementwise.py"
ON_CPU = "minigrad/backend/cpu/expressions.py"
ON_CUDA = "minigrad/backend/cuda/expressions.py"
FUNCTION = "minigrad/functions/elementwise.py"
ROW = "tests/cases.py"

# Public functions that are no methods. Activations are functions of nn, and no methods either.
NOT_METHODS = {"where"}
OTHERWISE_NAMED = {"cast": "astype"}  # it has several rows, one for each kind of target


def _rows() -> dict[str, cases.Case]:
    return {c.primitive: c for c in cases.ELEMENTWISE if c.primitive}


def _maps() -> set[str]:
    """The elementwise ops that any of the five places knows."""
    recorded = {p.name for p in PRIMITIVES.values() if p.kind == "map"}
    return recorded | set(on_cpu.EXPRESSIONS) | set(on_cuda.EXPRESSIONS) | set(_rows())


def missing_places(name: str) -> list[str]:
    """The files that should say something of an elementwise op and do not, with what to write."""
    record, row = PRIMITIVES.get(name), _rows().get(name)
    function = (row.function if row is not None else "") or OTHERWISE_NAMED.get(name, name)
    found = []
    if record is None:
        found.append(f"{RECORD}: a record, `{name} = _map({name!r}, ...)`")
    elif record.cost <= 0:
        found.append(f"{RECORD}: the record's cost in additions, 1 or more")
    elif not {name, f"{name}_"} & set(ops.elementwise.__all__):
        found.append(f"{RECORD}: {name!r} in `__all__`")
    for file, table in ((ON_CPU, on_cpu.EXPRESSIONS), (ON_CUDA, on_cuda.EXPRESSIONS)):
        if name not in table:
            found.append(f"{file}: its expression, an entry of `EXPRESSIONS`")
    if function not in {*elementwise.__all__, *functions.comparison.__all__, *nn.__all__}:
        found.append(f"{FUNCTION}: a function `{function}`, named in `__all__`")
    elif function not in {*nn.__all__, *NOT_METHODS} and not hasattr(mg.Tensor, function):
        found.append(f"{FUNCTION}: {function!r} as a method, in `ElementwiseMethods`")
    if row is None:
        found.append(f"{ROW}: a row in `ELEMENTWISE`")
    return [f"{name} is missing in {place}" for place in found]


def test_every_elementwise_op_is_said_in_all_places():
    missing = [place for name in sorted(_maps()) for place in missing_places(name)]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("row", [c for c in cases.ELEMENTWISE if c.function], ids=lambda c: c.name)
def test_the_public_function_has_the_meaning_of_its_row(row: cases.Case):
    dtype = float64 if row.floating else row.integers[-1]
    tensors = row.tensors(dtype, mg.default_device())
    found = getattr(nn if row.function in nn.__all__ else mg, row.function)(*tensors)
    inputs = zip(*[reference.read(t.node) for t in tensors], strict=True)
    expected = reference.rounded([row.meaning(*v) for v in inputs], found.dtype)
    assert reference.evaluate(found.node) == pytest.approx(expected, rel=1e-15)
    assert found.shape == tensors[0].shape


# The recipe, step by step. Each is a function that does to the running package what an edit of the
# file would do.


def _record(patch: pytest.MonkeyPatch) -> None:
    cube = ops.elementwise._map("cube", ("float",), 2, lambda g, y, x: (g * (x * x * 3.0),))
    patch.setattr(ops.elementwise, "__all__", [*ops.elementwise.__all__, "cube"])
    patch.setattr(ops, "cube", cube, raising=False)


def _expression_on_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(on_cpu.EXPRESSIONS, "cube", "{0} * {0} * {0}")


def _expression_on_cuda(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(on_cuda.EXPRESSIONS, "cube", "{0} * {0} * {0}")


def _function(patch: pytest.MonkeyPatch) -> None:
    def cube(x: Any) -> Any:
        """x times x times x."""
        return wrap(ops.cube(as_float(node_of("cube", x))))

    patch.setattr(elementwise, "__all__", [*elementwise.__all__, "cube"])
    patch.setattr(elementwise.ElementwiseMethods, "cube", cube, raising=False)
    patch.setattr(mg, "cube", cube, raising=False)


def _row(patch: pytest.MonkeyPatch) -> None:
    row = cases._map("cube", lambda x: x * x * x)
    patch.setattr(cases, "ELEMENTWISE", [*cases.ELEMENTWISE, row])
    patch.setattr(reference, "ELEMENTWISE", cases.ELEMENTWISE)


RECIPE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    RECORD: _record,
    ON_CPU: _expression_on_cpu,
    ON_CUDA: _expression_on_cuda,
    FUNCTION: _function,
    ROW: _row,
}


@pytest.fixture
def no_op_stays():
    """A patch after which the primitives are what they were before."""
    before = set(PRIMITIVES)
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    for name in set(PRIMITIVES) - before:
        del PRIMITIVES[name]


@pytest.mark.parametrize("left_out", RECIPE)
def test_a_place_that_is_left_out_is_named(left_out: str, no_op_stays: pytest.MonkeyPatch):
    for file, step in RECIPE.items():
        if file != left_out:
            step(no_op_stays)
    (missing,) = missing_places("cube")
    assert "cube" in _maps()
    assert missing.startswith(f"cube is missing in {left_out}: ")


@pytest.mark.parametrize("only", RECIPE)
def test_one_place_alone_names_all_the_others(only: str, no_op_stays: pytest.MonkeyPatch):
    RECIPE[only](no_op_stays)
    if only == FUNCTION:  # alone it is a function like others that are no primitive
        assert "cube" not in _maps()
    else:
        assert "cube" in _maps()
        named = " ".join(missing_places("cube"))
        assert [file for file in RECIPE if file in named] == [f for f in RECIPE if f != only]


def test_a_record_must_say_what_the_op_costs(no_op_stays: pytest.MonkeyPatch):
    for step in RECIPE.values():
        step(no_op_stays)
    assert missing_places("cube") == []
    free = Primitive("cube", "map", PRIMITIVES["cube"].infer, PRIMITIVES["cube"].vjp)
    no_op_stays.setitem(PRIMITIVES, "cube", free)
    assert "cost in additions" in missing_places("cube")[0]
    with pytest.raises(TypeError, match="cost"):
        ops.elementwise._map("square", ("float",))


def test_the_recipe(no_op_stays: pytest.MonkeyPatch, device, watch):
    """With the five places the op computes, fuses and differentiates, on each device."""
    for step in RECIPE.values():
        step(no_op_stays)
    row = _rows()["cube"]
    for dtype in (float32, float64):
        node = row.f(*row.tensors(dtype, device)).node
        mg.evaluate(wrap(node))
        assert reference.read(node) == pytest.approx(reference.evaluate(node), rel=1e-6)
    (x,) = row.tensors(float32, device)
    watch.reset()
    y = mg.sum(mg.exp(x.cube() - 8.0))  # one kernel, with its neighbours
    expected = sum(math.exp(v**3 - 8.0) for v in reference.read(x.node))
    assert y.item() == pytest.approx(expected, rel=1e-5)
    assert len(watch.kernels) == 1
    mg.gradcheck(mg.cube, *row.tensors(float64, device), order=row.order)
