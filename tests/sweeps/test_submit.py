"""Tests that slurm/submit.sh checks a job before it submits it, with stand-ins for sbatch and the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "submit.sh"


@pytest.fixture
def submit(tmp_path):
    """Returns a function that calls the script. Its check fails for "bad"; time limits are really checked."""
    is_limit = f'[[ "$*" != *slurm_time* ]] || exec {sys.executable} "$@"'
    for name, body in {
        "python": f'{is_limit}\necho "$*" >>{tmp_path}/checks\n[[ "$*" != *bad* ]] || exit 2',
        "sbatch": f'printf "%s\\n" "$@" >{tmp_path}/submitted',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def call(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str], list[str]]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
        for file in (tmp_path / "checks", tmp_path / "submitted"):
            file.unlink(missing_ok=True)
        ended = subprocess.run(
            [SCRIPT, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        written = [
            file.read_text().splitlines() if file.exists() else []
            for file in (tmp_path / "checks", tmp_path / "submitted")
        ]
        return ended, *written

    return call


def test_a_training_is_checked_for_its_processes_and_submitted(submit):
    line = ("experiment=pretrain_demo", "strategy=fsdp2")
    ended, checks, submitted = submit(
        "--nodes=4", "--gpus-per-node=h100:8", "--launch", "torchrun", "--time=1:00:00", *line
    )
    assert ended.returncode == 0, ended.stderr
    assert checks == [f"-m framework.train {' '.join(line)} check=32"]
    script = str(SCRIPT.with_name("train.sbatch"))
    assert submitted == [
        *("--nodes=4", "--gpus-per-node=h100:8", "--time=1:00:00", script, "--launch", "torchrun"),
        *line,
    ]


@pytest.mark.parametrize("notice", [("--save-seconds", "30"), ("--signal=B:USR1@30",)])
def test_slurm_and_the_script_of_the_job_mean_the_same_notice(submit, notice):
    ended, _, submitted = submit("--time=1", *notice, "experiment=x")
    script = str(SCRIPT.with_name("train.sbatch"))
    assert ended.returncode == 0, ended.stderr
    assert submitted == ["--time=1", "--signal=B:USR1@30", script, "--save-seconds", "30", "experiment=x"]


def test_what_fails_its_check_is_not_submitted(submit):
    ended, checks, submitted = submit("--ntasks-per-node=2", "experiment=bad")
    assert (ended.returncode, len(checks), submitted) == (2, 1, [])
    assert ended.stderr == "error: The check failed. Nothing was submitted. Correct it and submit again.\n"


def test_every_line_of_an_array_is_checked(submit, tmp_path):
    (tmp_path / "lines.txt").write_text("# rates\noptimizer.lr=1e-4 seed=1\n\noptimizer.lr=bad\n")
    ended, checks, submitted = submit("--array=1-2", "lines.txt", "experiment=x")
    assert (ended.returncode, submitted) == (2, [])
    assert checks == [
        "-m framework.train experiment=x optimizer.lr=1e-4 seed=1 check=1",
        "-m framework.train experiment=x optimizer.lr=bad check=1",
    ]
    assert "The check failed for this line of lines.txt: optimizer.lr=bad." in ended.stderr

    (tmp_path / "lines.txt").write_text("optimizer.lr=1e-4\n")
    ended, _, submitted = submit("--array=1-1", "--max-requeues", "3", "lines.txt", "experiment=x")
    script = str(SCRIPT.with_name("sweep.sbatch"))
    assert submitted == ["--array=1-1", script, "lines.txt", "--max-requeues", "3", "experiment=x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No override is given."),
        (
            ["--nodes", "2", "experiment=x"],
            "The option --nodes has no value. Options of sbatch must be written as --NAME=VALUE.",
        ),
        (["--nodes=1-2", "experiment=x"], "--nodes is 1-2. It must be one number."),
        (["--time=2", "experiment=x"], "--time is 2, 120 seconds. It must be longer than --save-seconds, 120"),
        (["--time=0-0:1", "--signal=B:USR1@60", "experiment=x"], "Raise --time, or lower --save-seconds."),
        (["--time=soon", "experiment=x"], "--time is 'soon', which is no time limit of SLURM"),
        (["--save-seconds", "x", "experiment=x"], "--save-seconds is x. It must be a number of at least 0"),
        (["nowhere.txt", "experiment=x"], "nowhere.txt is neither an override"),
    ],
)
def test_mistakes_are_named_before_the_check(submit, arguments, message):
    ended, checks, submitted = submit(*arguments)
    assert (ended.returncode, checks, submitted) == (2, [], [])
    assert message in ended.stderr
