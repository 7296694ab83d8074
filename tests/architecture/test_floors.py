"""A folder of framework/ imports only from floors below its own, and from the siblings that the design names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "framework"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "errors": 0, "batch": 0, "constants": 0, "random": 0, "files": 0, "machine": 0,
    "nn": 1, "metrics": 1, "optim": 1,
    "models": 2, "data": 2,
    "tasks": 3,
    "distributed": 4, "checkpoint": 4,
    "modules": 5, "datamodules": 5, "callbacks": 5, "tracking": 5,
    "config": 6, "planning": 6,
    "sweeps": 7,
    "prepare": 8, "train": 8, "evaluate": 8, "predict": 8, "report": 8,
    "export": 8, "plan": 8, "status": 8, "preflight": 8,
    "launch": 8,
}  # fmt: skip
SIBLINGS = {
    ("checkpoint", "distributed"),
    ("callbacks", "tracking"),
    ("callbacks", "modules"),
    ("config", "planning"),
}


def imported_modules(source: str, file: Path) -> list[tuple[int, str]]:
    """Every `framework.*` module that a file imports, wherever the import stands, with its line."""
    package = ["framework", *file.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from framework import nn` names a package by an alias, `from framework.nn import norm` a module.
            found += (
                [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
                if module == "framework"
                else [(node.lineno, module)]
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            found += [(node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return [(line, name) for line, name in found if name.split(".")[0] == "framework" and name != "framework"]


def room(file: Path) -> str:
    """The folder, or the top-level module, that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward_imports(source: str, file: Path) -> list[str]:
    here = room(file)
    wrong = []
    for line, name in imported_modules(source, file):
        there = name.split(".")[1]
        if there == here or (here, there) in SIBLINGS or there.startswith("__"):
            continue
        if there not in FLOORS or FLOORS[there] >= FLOORS[here]:
            wrong.append(f"{file.name}:{line} imports {name}")
    return wrong


def test_every_room_has_a_floor():
    assert {room(file) for file in FILES} - {"__init__"} <= set(FLOORS)
    assert len(FILES) > 60


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name != "__init__.py"], ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_imports_go_down(file):
    assert upward_imports(file.read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("room_file", "source"),
    [
        ("nn/norm.py", "from framework.models.config import EncoderConfig"),
        ("nn/norm.py", "def late():\n    import framework.tasks.task"),
        ("models/encoder.py", "from framework.data.planning.plan import StepPlan"),
        ("models/encoder.py", "from ..data import plan"),
        ("data/planning/plan.py", "import importlib\nimportlib.import_module('framework.tasks.task')"),
        ("modules/objective.py", "from framework import callbacks"),
        ("modules/objective.py", "from framework.nowhere import thing"),
    ],
)
def test_an_upward_import_is_seen(room_file, source):
    assert len(upward_imports(source, PACKAGE / room_file)) == 1


def test_package_files_hold_a_docstring_only():
    for file in FILES:
        if file.name == "__init__.py":
            body = ast.parse(file.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), file
