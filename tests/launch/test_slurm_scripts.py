"""Tests of the batch scripts: clean by shellcheck, and with clear errors. tests/integration runs jobs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from framework.sweeps.slurm_script import FUNCTIONS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("script", [*SCRIPTS, FUNCTIONS], ids=name_of)
def test_script_is_clean(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, "-x", str(script)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def run(script: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | variables
    command = [str(ROOT / "slurm" / f"{script}.sbatch"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


@pytest.mark.parametrize("script", ["train", "sweep"])
def test_script_answers_help(script, tmp_path):
    assert [path.stem for path in SCRIPTS] == ["sweep", "train"]
    done = run(script, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"slurm/{script}.sbatch" in done.stdout and "SBATCH" not in done.stdout and "set -" not in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "job", "message"),
    [
        ("train", ["seed=1"], {}, "This is not a SLURM job. The script needs the nodes of a job. Submit it: sbatch"),
        ("train", [], {}, "No override is given."),
        ("train", ["--launch", "mpirun", "seed=1"], {}, "--launch is mpirun. It must be srun or torchrun."),
        ("train", ["--launch"], {}, "--launch has no value."),
        (
            "train",
            ["--max-requeues", "many", "seed=1"],
            {},
            "--max-requeues is many. It must be an integer of at least 0.",
        ),
        ("train", ["--nodes", "2", "seed=1"], {}, "The option --nodes is unknown."),
        (
            "train",
            ["run.dir=${oc.env:HOME}"],
            {"SLURM_JOB_ID": "1"},
            "run.dir is ${oc.env:HOME}. In a batch job it may contain letters",
        ),
        ("train", ["--save-seconds", "x", "seed=1"], {}, "--save-seconds is x. It must be an integer of at least 0."),
        ("sweep", ["seed=1"], {}, "The first argument is 'seed=1'. It must be a file of overrides."),
        ("sweep", ["/no/such/file"], {}, "/no/such/file is not readable."),
        ("sweep", [str(ROOT / "LICENSE")], {}, "This is not an array task."),
        ("sweep", ["LICENSE"], {"SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "9999"}, "Task 9999 has no line."),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(script, arguments, job, message, tmp_path):
    done = run(script, ROOT if job else tmp_path, *arguments, **job)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script_path", "limit", "message"),
    [
        (
            str(ROOT / "slurm" / "train.sbatch"),
            "00:01:00",
            "error: The time limit of job 7 is 60 s. It must be longer than",
        ),
        (str(ROOT / "slurm" / "train.sbatch"), "01:00:00", "error: run.id is $x. In a batch job it may contain"),
        (
            "/nowhere/train.sbatch",
            "01:00:00",
            "error: / contains no launch/lib/settings.sh. The script needs the files next to it.",
        ),
    ],
)
def test_a_copy_that_slurm_runs_finds_cloze_from_any_folder(script_path, limit, message, tmp_path):
    copy, program = tmp_path / "spool" / "slurm_script", tmp_path / "bin" / "scontrol"
    for file in (copy, program):
        file.parent.mkdir()
    shutil.copy(ROOT / "slurm" / "train.sbatch", copy)
    program.write_text(f'#!/bin/sh\necho "JobId=7 TimeLimit={limit} Command={script_path} seed=1 WorkDir={tmp_path}"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", str(copy), "run.id=$x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(message), done.stderr
