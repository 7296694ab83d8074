"""Tests of scripts in a wheel: they are inside the package, and `framework.launch` runs them with its interpreter."""

import importlib
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import framework
from framework.errors import ConfigError
from framework.launch import run, scripts

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


@pytest.fixture
def installed(tmp_path) -> Path:
    """Returns a package folder with scripts as in a wheel, in an environment with a stand-in for Python."""
    environment = tmp_path / "an environment"
    package = environment / "lib" / "python3.12" / "site-packages" / "framework"
    for folder in ("launch", "slurm"):
        assert folder in WHEEL["only-include"]
        target = package.parent / WHEEL["sources"][folder]
        shutil.copytree(ROOT / folder, target, ignore=lambda *_: {"setup.sh", "test.sh", "quickstart.sh"})
    shutil.copy(ROOT / "framework" / "machine.py", package)
    python = environment / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    return package


def test_a_script_of_a_wheel_finds_its_package_and_interpreter(installed, tmp_path):
    command = ["bash", str(installed / "scripts" / "launch" / "torchrun.sh"), "--processes", "2", "--dry-run", "seed=1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    *settings, line = done.stdout.splitlines()
    assert shlex.split(line)[:2] == [
        str(installed.parents[3] / "bin" / "python"),
        str(installed / "scripts" / "launch" / "lib" / "elastic_agent.py"),
    ]
    assert not any(each.startswith("PYTHONPATH") for each in settings)


def test_paths_of_scripts(installed, monkeypatch, capsys):
    assert {*scripts()} >= {"torchrun.sh", "multi_node.sh", "train.sbatch", "sweep.sbatch"}
    run(["--path", "train.sbatch"])
    assert capsys.readouterr().out == f"{ROOT / 'slurm' / 'train.sbatch'}\n"
    monkeypatch.setattr(framework, "__file__", str(installed / "__init__.py"))
    assert set(scripts()) == {"faq.sh", "multi_node.sh", "torchrun.sh", "submit.sh", "sweep.sbatch", "train.sbatch"}
    run(["--path", "torchrun"])
    assert capsys.readouterr().out == f"{installed / 'scripts' / 'launch' / 'torchrun.sh'}\n"
    with pytest.raises(ConfigError, match=r"trochrun is not a launch script. Scripts are .*torchrun.sh"):
        run(["trochrun"])


def test_a_wheel_leaves_out_no_file_of_the_package():
    """Checks that .gitignore names no file of the package; the build excludes such files even if they are tracked."""
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard", *WHEEL["only-include"]]
    answer = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip("not a git checkout")
    assert answer.stdout == ""
    packages = {file.parent for file in (ROOT / "framework").rglob("*.py")}
    assert [folder for folder in packages if not (folder / "__init__.py").is_file()] == []
    assert (ROOT / "framework" / "py.typed").is_file()


def test_the_console_command_of_a_wheel_exists():
    module, _, function = PROJECT["project"]["scripts"]["cloze"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_script_has_a_line_in_the_page():
    page = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    files = [*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch" / "cloud").iterdir()]
    assert len(files) == 8
    for file in files:
        assert f"`{file.relative_to(ROOT / 'launch')}`" in page, file.name
