"""Tests of file and function sizes, of words that single-device code must not mention, and of meaningless names."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "framework"
FILES = sorted(PACKAGE.rglob("*.py"))
OWN_FILES = sorted(
    path for folder in ("framework", "tests", "launch", "conf") for path in (ROOT / folder).rglob("*") if path.is_file()
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_PARAMETERS = 12
MAX_TRAIN_LINES = 80
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
IMPURE = re.compile(
    r"lightning|hydra|omegaconf|wandb|torch\.distributed|DeviceMesh|DTensor|fully_shard|world_size|local_rank|\branks?\b|\bmesh(es)?\b"
)

GUARD = "framework/config/guard.py"
"""The one file with `except Exception`, since no command may end in a traceback."""

OF_MATRICES = {"framework/nn/lora.py"}
"""Files in which `rank` means the rank of a matrix."""


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                line for line in body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return ast.unparse(tree)


def passes_through(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns True if a function passes its **keyword arguments on unchanged."""
    taken = function.args.kwarg.arg if function.args.kwarg else None
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    given = [keyword.value for call in calls for keyword in call.keywords if keyword.arg is None]
    return taken is not None and any(isinstance(value, ast.Name) and value.id == taken for value in given)


def test_passing_through_would_be_seen():
    for source, wrong in (
        ("def f(**k):\n    g(**k)", True),
        ("def f(**k):\n    g(k)", False),
        ("def f():\n    g(**k)", False),
    ):
        assert passes_through(functions(ast.parse(source))[0]) == wrong


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_sizes(file):
    source = file.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_FILE_LINES
    for function in functions(ast.parse(source)):
        assert function.end_lineno - function.lineno + 1 <= MAX_FUNCTION_LINES, function.name
        arguments = function.args
        assert not passes_through(function), f"{function.name} hands on its **{arguments.kwarg.arg} unseen"
        if function.name == "__init__":
            assert len(arguments.args) + len(arguments.kwonlyargs) - 1 <= MAX_CONSTRUCTOR_PARAMETERS


def test_train_reads_at_a_glance():
    assert (PACKAGE / "train.py").read_text(encoding="utf-8").count("\n") < MAX_TRAIN_LINES


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.relative_to(PACKAGE).parts[0] in ("nn", "models")], ids=name_of
)
def test_model_code_knows_one_device(file):
    """Checks that nn/ and models/ mention no ranks, meshes, Lightning, Hydra or W&B. Docstrings may explain why."""
    source = without_docstrings(file.read_text(encoding="utf-8"))
    if name_of(file) in OF_MATRICES:
        source = re.sub(r"\brank\b", "", source)
    found = IMPURE.search(source)
    assert found is None, found


def test_impurity_would_be_seen():
    for text in ("import lightning", "the rank of a process", "torch.distributed", "a mesh"):
        assert IMPURE.search(text)
    assert not IMPURE.search("frank, ranking and meshed are other words")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_debris(file):
    source = file.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else "everything"
            assert name_of(file) == GUARD or caught not in ("everything", "Exception", "BaseException"), (
                f"line {node.lineno}"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert len(file.relative_to(PACKAGE).parts) == 1, f"print in line {node.lineno}"


def test_file_names_say_something():
    assert [name_of(file) for file in OWN_FILES if file.stem in BANNED_NAMES] == []
    assert [name_of(path.parent) for path in FILES if path.parent.name in BANNED_NAMES] == []


def test_no_file_carries_a_path_of_this_machine():
    here = str(ROOT)
    text_files = [file for file in OWN_FILES if file.suffix in {".py", ".sh", ".yaml", ".md"}]
    assert len(text_files) > 100
    assert [name_of(file) for file in text_files if here in file.read_text(encoding="utf-8")] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_no_file_of_the_project_is_ignored_by_git():
    """The wheel leaves such files out, and `git add` passes over new files beside them."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
