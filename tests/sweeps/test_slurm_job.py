"""The shell functions of batch jobs, with programs in the place of SLURM's: ends of jobs, signals that go on once."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from framework.sweeps.slurm_script import FUNCTIONS

FINISHED, PREEMPTED = '{\n  "ended": "finished"\n}', '{\n  "ended": "preempted"\n}'


@pytest.fixture
def bin_folder(tmp_path) -> Path:
    """Programs that answer as files beside them say."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "squeue": f"cat {tmp_path}/state",
        "scontrol": f'[ "$1" = requeue ] && touch {tmp_path}/requeued && exit 1\necho "A=1 PreemptTime=$PREEMPT"',
        "srun": 'shift 2; exec "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def start(bin_folder: Path, line: str, **variables: str) -> subprocess.Popen[str]:
    """Runs a line of shell after the functions."""
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "PREEMPT": "None"} | variables
    text = f"set -euo pipefail\nsource {FUNCTIONS}\n{line}\n"
    return subprocess.Popen(["bash", "-c", text], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("code", "before", "after", "failure", "state", "near_end", "preempt", "restarts", "ends", "is_queued"),
    [
        (0, None, FINISHED, False, "RUNNING", 0, "None", 0, 0, False),
        (0, FINISHED, None, False, "RUNNING", 0, "None", 0, 0, False),
        (0, None, None, False, "RUNNING", 0, "None", 0, 75, False),
        (0, PREEMPTED, None, False, "RUNNING", 0, "None", 0, 75, False),
        (0, None, PREEMPTED, False, "RUNNING", 0, "None", 0, 75, True),
        (1, None, PREEMPTED, False, "RUNNING", 0, "None", 0, 1, True),
        (0, None, PREEMPTED, False, "COMPLETING", 0, "None", 0, 75, False),
        (0, None, PREEMPTED, False, "RUNNING", 0, "None", 3, 75, False),
        (2, None, None, False, "RUNNING", 0, "None", 0, 2, False),
        (1, PREEMPTED, None, True, "RUNNING", 0, "None", 0, 1, False),
        (1, None, None, True, "RUNNING", 1, "None", 0, 1, False),
        (1, None, None, False, "RUNNING", 1, "None", 0, 1, True),
        (138, FINISHED, None, False, "RUNNING", 1, "None", 0, 138, True),
        (143, None, None, False, "RUNNING", 0, "None", 0, 143, True),
        (137, None, None, False, "RUNNING", 0, "None", 0, 137, False),
        (1, None, None, False, "RUNNING", 0, "2026-01-01", 0, 1, True),
    ],
)
def test_a_job_ends_as_its_run_did(
    bin_folder, tmp_path, code, before, after, failure, state, near_end, preempt, restarts, ends, is_queued
):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    now = time.time()
    for name, text, age in (("summary.json", before, 20), ("logs/slurm_start", "", 10), ("summary.json", after, 0)):
        if text is not None:
            (run / name).write_text(text)
            os.utime(run / name, (now - age, now - age))
    if failure:
        (run / "logs" / "failure.json").write_text("{}")
    (tmp_path / "state").write_text(state)
    job = start(
        bin_folder, f"near_end={near_end}\nend_job {run} {code} 3", PREEMPT=preempt, SLURM_RESTART_COUNT=str(restarts)
    )
    job.communicate(timeout=30)
    assert (job.returncode, (tmp_path / "requeued").exists()) == (ends, is_queued)


def test_a_signal_goes_on_to_the_step_once_and_its_exit_code_is_kept(bin_folder, tmp_path):
    # bash makes no step of its own for the last command, so that the step's process is the one that counts signals.
    (tmp_path / "step.sh").write_text(
        f"count=0\ntrap 'count=$((count + 1))' USR1\ntouch {tmp_path}/ready\n"
        f"until [ -e {tmp_path}/end ]; do sleep 0.05; done\necho signals $count\nexit 9\n"
    )
    job = start(bin_folder, f"code=0; run_step bash {tmp_path}/step.sh || code=$?; echo $code $near_end")
    _wait(tmp_path / "ready")
    for number in ("TERM", "USR1"):
        subprocess.run(["kill", f"-{number}", str(job.pid)], check=True)
        time.sleep(0.3)
    (tmp_path / "end").touch()
    assert job.communicate(timeout=30)[0].splitlines() == ["signals 1", "9 1"]


def test_no_step_begins_after_a_signal(bin_folder, tmp_path):
    job = start(
        bin_folder,
        f"touch {tmp_path}/ready; until [ -e {tmp_path}/end ]; do sleep 0.05; done\n"
        "code=0; run_step echo begun || code=$?; echo $code",
    )
    _wait(tmp_path / "ready")
    job.terminate()
    (tmp_path / "end").touch()
    assert job.communicate(timeout=30)[0].splitlines() == ["138"]


def _wait(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
