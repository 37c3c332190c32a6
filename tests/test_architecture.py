"""The picture in `minigrad/README.md`, enforced: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("minigrad", "layers", "examples")

# From the ground up. A module imports from its own row and from those above it in this table; a
# name stands for everything under it, and the longest that fits decides.
ROWS = [
    ["minigrad.errors", "minigrad.config", "minigrad.trees", "minigrad.context"],
    ["minigrad.dtype", "minigrad.interop.encoding"],
    ["minigrad.backend.geometry", "minigrad.backend.launch", "minigrad.backend.loopnest"],
    ["minigrad.backend"],
    ["minigrad.device"],
    ["minigrad.graph"],
    ["minigrad.ops"],
    ["minigrad.autodiff", "minigrad.rewrite"],
    ["minigrad.compiler"],
    ["minigrad.tensor_base"],
    ["minigrad.execution"],
    ["minigrad.functions"],
    ["minigrad.interop"],
    ["minigrad.formatting", "minigrad.indexing"],
    ["minigrad.differentiate"],
    ["minigrad.tensor"],
    ["minigrad.creation"],
    ["minigrad.random", "minigrad.interop.safetensors", "minigrad.testing", "minigrad.study"],
    ["minigrad.nn"],
    ["minigrad.optim", "minigrad.data"],
    ["minigrad"],
    ["layers"],
    ["examples"],
]

# Inside a function, and only because the thing below is used from above in one place.
LAZY_UPWARDS = {
    ("minigrad.ops", "minigrad.autodiff"),  # the gradient of a checkpoint builds a gradient
    ("minigrad.indexing", "minigrad.creation"),  # an index may be a list
    ("minigrad.tensor", "minigrad"),  # __array_namespace__ is this package
}

# What programs are written in: Tensors and functions of them.
TENSORS = (
    "minigrad.functions",
    "minigrad.creation",
    "minigrad.tensor",
    "minigrad.tensor_base",
    "minigrad.execution",
    "minigrad.interop",
    "minigrad.device",
    "minigrad.dtype",
    "minigrad.errors",
)

# Narrower than the table: who knows what.
ONLY = {
    "minigrad.backend": (
        "minigrad.backend",
        "minigrad.dtype",
        "minigrad.config",
        "minigrad.errors",
    ),
    "minigrad.ops": (
        "minigrad.backend.geometry",
        "minigrad.ops",
        "minigrad.graph",
        "minigrad.dtype",
        "minigrad.errors",
        "minigrad.autodiff",
    ),
    "minigrad.autodiff": ("minigrad.ops", "minigrad.graph", "minigrad.errors"),
    "minigrad.nn": (
        "minigrad.nn",
        "minigrad.functions",
        "minigrad.ops",
        "minigrad.graph",
        "minigrad.tensor_base",
        "minigrad.execution",
        "minigrad.random",
        "minigrad.dtype",
    ),
    "minigrad.optim": ("minigrad.optim", "minigrad.context", *TENSORS),
    "minigrad.data": ("minigrad.data", "minigrad.backend.batches", "minigrad.nn", *TENSORS),
    "layers": ("layers", "minigrad"),
}
EXTERNAL = {
    "numba": "minigrad/backend/cpu/",
    "llvmlite": "minigrad/backend/cpu/",
    "cupy": "minigrad/backend/cuda/",
    "cupy_backends": "minigrad/backend/cuda/",
    "cudnn": "minigrad/backend/cuda/",
    "google": "layers/caffe/",  # protobuf
}


class Import(NamedTuple):
    source: str
    target: str
    lazy: bool
    where: str


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(module: str, path: Path) -> list[Import]:
    """Every import that is executed: those for the type checker alone are not."""
    result = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.orelse:
                visit(child, lazy)
            return
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            result.extend(Import(module, a.name, lazy, where) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{where}: a relative import"
            for a in node.names:
                full = f"{node.module}.{a.name}"
                result.append(
                    Import(module, full if full in MODULES else str(node.module), lazy, where)
                )
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return result


IMPORTS = [i for module, path in MODULES.items() for i in _imports(module, path)]


def _under(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def _row(module: str) -> int:
    fitting = [(len(n), k) for k, row in enumerate(ROWS) for n in row if _under(module, n)]
    return max(fitting)[1]


def _own(imports: list[Import]) -> list[Import]:
    return [i for i in imports if i.target.partition(".")[0] in PACKAGES]


def test_every_module_has_a_row_of_its_own():
    strays = [m for m in MODULES if m != "minigrad" and ROWS[_row(m)] == ["minigrad"]]
    assert not strays, f"add to ROWS in this test: {strays}"


def test_arrows_point_downwards():
    reversed_ = [
        f"{i.where}: {i.source} imports {i.target}"
        for i in _own(IMPORTS)
        if _row(i.target) > _row(i.source)
        and not (i.lazy and any(_under(i.source, a) and i.target == b for a, b in LAZY_UPWARDS))
    ]
    assert not reversed_, "\n".join(reversed_)


def test_layers_know_only_what_they_should():
    wrong = [
        f"{i.where}: {i.source} imports {i.target}"
        for i in _own(IMPORTS)
        for name, allowed in ONLY.items()
        if _under(i.source, name) and not any(_under(i.target, a) for a in allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_documents_that_are_named_are_in_the_repository():
    here = Path(__file__).name
    sources = [p for p in ROOT.rglob("*.py") if p.name != here and ".venv" not in p.parts]
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        for name in re.findall(r"[A-Za-z/]+\.md\b", path.read_text(encoding="utf-8"))
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "minigrad", path.parent))
    ]
    assert not wrong, wrong


def test_what_is_written_in_tensors_asks_no_backend():
    rooms = ("minigrad.nn", "minigrad.optim", "minigrad.data", "layers")
    wrong = [
        str(path.relative_to(ROOT))
        for module, path in MODULES.items()
        if any(_under(module, room) for room in rooms)
        and "backend_of" in path.read_text(encoding="utf-8")
    ]
    assert not wrong, f"ask `minigrad.execution` or `minigrad.creation` instead: {wrong}"


def test_nothing_in_minigrad_imports_layers():
    wrong = [
        i.where for i in IMPORTS if _under(i.source, "minigrad") and _under(i.target, "layers")
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", EXTERNAL)
def test_a_device_library_is_imported_in_its_backend_alone(package):
    wrong = [
        i.where
        for i in IMPORTS
        if _under(i.target, package) and not i.where.startswith(EXTERNAL[package])
    ]
    assert not wrong, wrong


def test_numpy_is_imported_and_named_nowhere():
    wrong = [i.where for i in IMPORTS if _under(i.target, "numpy")]
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id in ("np", "numpy"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, wrong


def test_no_derivative_device_or_kernel_code_in_layers():
    """Layers are functions of tensors: nothing below the public names is theirs to use."""
    below = ("autodiff", "backend", "compiler", "graph", "ops", "rewrite")
    wrong = [
        f"{i.where}: {i.target}"
        for i in IMPORTS
        if _under(i.source, "layers") and any(_under(i.target, f"minigrad.{b}") for b in below)
    ]
    assert not wrong, wrong


def test_importing_minigrad_loads_no_array_library(record_property):
    """It should take under 0.1 s, too; that is reported, since a busy machine proves nothing."""
    code = "import sys, minigrad; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        loaded = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - begin)
    record_property("seconds", min(seconds))
    print(f"python -c 'import minigrad', best of 5: {min(seconds):.3f} s")  # noqa: T201
    heavy = {"numpy", "numba", "llvmlite", "cupy", "torch", "scipy", "matplotlib", "layers"}
    assert not heavy & set(loaded.stdout.split())


ARCHITECTURE = (ROOT / "minigrad" / "README.md").read_text(encoding="utf-8")


def test_every_room_is_in_the_table_of_rooms():
    table = ARCHITECTURE.split("## Rooms")[1].split("## ")[0]
    named = set(re.findall(r"`([a-z_/]+(?:\.py)?)`", table))
    folder = ROOT / "minigrad"
    rooms = {f"{p.name}/" for p in folder.iterdir() if (p / "__init__.py").exists()}
    rooms |= {p.name for p in folder.glob("*.py")} - {"__init__.py"} | {"layers/"}
    assert not rooms - named, f"add to the table in minigrad/README.md: {sorted(rooms - named)}"


def test_files_that_the_description_names_exist():
    rooms = [ROOT, *(p for p in (ROOT / "minigrad").rglob("*") if p.is_dir()), ROOT / "minigrad"]
    named = set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE))
    missing = [name for name in named if not any((room / name).exists() for room in rooms)]
    assert len(named) > 40
    assert not missing, missing
