"""Tests that a folder of framework/ imports only from lower floors, and that no folders or files form a circle."""

import ast
from pathlib import Path

import pytest

from tests.support.architecture.imports import FILES, PACKAGE, between_folders, circles, file_imports, imported_modules

FLOORS = {
    "errors": 0, "batch": 0, "random": 0, "files": 0, "machine": 0, "ragged": 0,
    "nn": 1, "metrics": 1, "optim": 1, "privacy": 1, "retrieval": 1,
    "models": 2, "published": 2, "data": 2,
    "tasks": 3,
    "distributed": 4, "checkpoint": 4, "exports": 4,
    "modules": 5, "datamodules": 5, "callbacks": 5, "tracking": 5,
    "config": 6,
    "runs": 7,
    "inference": 8,
    "sweeps": 9, "audits": 9, "mining": 9, "planning": 9,
    "prepare": 10, "train": 10, "evaluate": 10, "predict": 10, "explain": 10, "audit": 10, "mine": 10, "report": 10,
    "export": 10, "plan": 10, "status": 10, "preflight": 10, "calibrate": 10, "launch": 10, "trained_model": 10,
    "__main__": 11,
}  # fmt: skip
SIBLINGS = {
    ("published", "models"),
    ("checkpoint", "distributed"),
    ("exports", "checkpoint"),
    ("callbacks", "tracking"),
    ("callbacks", "modules"),
}


def room(file: Path) -> str:
    """Returns the folder, or the top-level module, that a file belongs to."""
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


def test_rooms_and_floors_name_the_same():
    assert {room(file) for file in FILES} - {"__init__"} == set(FLOORS)
    assert {name for pair in SIBLINGS for name in pair} <= set(FLOORS)
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
        ("modules/encoder_module.py", "from framework import callbacks"),
        ("modules/encoder_module.py", "from framework.nowhere import thing"),
    ],
)
def test_an_upward_import_is_seen(room_file, source):
    assert len(upward_imports(source, PACKAGE / room_file)) == 1


def test_no_file_is_part_of_a_circle():
    graph = file_imports()
    assert sum(len(imported) for imported in graph.values()) > 1000
    assert circles(graph) == []


def test_no_folder_is_part_of_a_circle():
    folders = between_folders(file_imports())
    assert {"framework.data.planning", "framework.distributed.processes", "framework.tasks.embedding"} <= set(folders)
    assert circles(folders) == []


def test_a_circle_of_sub_folders_is_seen():
    graph = {
        "framework.data.planning.plan": {"framework.data.masking"},
        "framework.data.masking": {"framework.data.planning.order"},
        "framework.data.planning.order": set(),
    }
    assert circles(graph) == []
    assert circles(between_folders(graph)) == [["framework.data", "framework.data.planning"]]


def test_package_files_hold_a_docstring_only():
    for file in FILES:
        # The package's __init__.py is the Python interface. It imports lazily.
        if file.name == "__init__.py" and file.parent != PACKAGE:
            body = ast.parse(file.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), file


def test_readers_of_files_know_no_examples():
    for file in (PACKAGE / "data" / "reading").glob("*.py"):
        names = [name for _, name in imported_modules(file.read_text(encoding="utf-8"), file)]
        assert not [name for name in names if name.startswith("framework.data.examples")], file
