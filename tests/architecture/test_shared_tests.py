"""Tests that shared test code is in tests/support: no test imports another, and no other folder has shared modules."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
SHARED = ("support", "benchmarks")
"""Folders of tests/ that contain modules without tests."""


def imported_tests(source: str) -> list[str]:
    """Returns the test modules, and the names in them, that a source imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    in_tests = [name for name in names if name.startswith(("tests.", "."))]
    return [name for name in in_tests if any(part.startswith("test_") for part in name.split("."))]


def missing_modules(source: str) -> list[str]:
    """Returns the modules of tests/ that a source imports and that do not exist."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and not node.level]
    names = {node.module for node in imports if node.module and node.module.startswith("tests.")}
    paths = {name: ROOT / name.replace(".", "/") for name in names}
    return sorted(name for name, path in paths.items() if not path.is_dir() and not path.with_suffix(".py").is_file())


def is_at_home(path: str) -> bool:
    """Returns True for tests, conftest.py, package files, and modules in the folders of shared modules."""
    name = path.split("/")[-1]
    return (
        path.split("/")[0] in SHARED
        or name in ("conftest.py", "__init__.py", "__main__.py")
        or name.startswith("test_")
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_is_imported(file):
    source = file.read_text(encoding="utf-8")
    assert imported_tests(source) == []
    assert missing_modules(source) == []


def test_shared_modules_lie_in_support():
    assert [path for file in FILES if not is_at_home(path := str(file.relative_to(TESTS)))] == []
    # A test in support/ would test no folder of framework/.
    assert [str(file) for file in (TESTS / "support").rglob("test_*.py")] == []
    assert len(FILES) > 250


@pytest.mark.parametrize(
    ("source", "is_wrong"),
    [
        ("from tests.data.test_plan import write", True),
        ("import tests.data.test_plan", True),
        ("from tests.data import test_plan", True),
        ("from . import test_plan", True),
        ("def late():\n    from tests.data.test_plan import write", True),
        ("from tests.support.data.stores import test_rows", True),
        ("from tests.support.data.stores import write_store", False),
        ("from framework.test_split import rows", False),
    ],
)
def test_an_import_of_a_test_is_seen(source, is_wrong):
    assert bool(imported_tests(source)) == is_wrong


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("support/data/stores.py", True),
        ("benchmarks/packing.py", True),
        ("data/test_plan.py", True),
        ("data/conftest.py", True),
        ("data/stores.py", False),
        ("ranks.py", False),
    ],
)
def test_a_shared_module_elsewhere_is_seen(path, expected):
    assert is_at_home(path) == expected


def test_an_import_of_a_missing_module_is_seen():
    assert missing_modules("from tests.data.nowhere import rows") == ["tests.data.nowhere"]
    assert missing_modules("from tests.support.processes.workers import WorkerPool") == []
    assert missing_modules("from tests.support.models import peers") == []
