"""Tests of the shell functions of batch jobs, with stand-ins for SLURM's programs: ends of jobs, forwarded signals."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from framework.sweeps.slurm_script import FUNCTIONS
from framework.tracking.run_status import read_status
from framework.tracking.summary_file import write_summary

FINISHED, PREEMPTED = '{\n  "ended": "finished"\n}', '{\n  "ended": "preempted"\n}'


@pytest.fixture
def bin_folder(tmp_path) -> Path:
    """Returns a folder of programs whose answers are in files beside them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "squeue": f"cat {tmp_path}/state",
        "scontrol": f'[ "$1" = requeue ] && touch {tmp_path}/requeued && exit 1\n'
        'echo "A=1 PreemptTime=$PREEMPT TimeLimit=${LIMIT:-UNLIMITED} B=2"',
        "srun": 'shift 2; exec "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def start(bin_folder: Path, line: str, **variables: str) -> subprocess.Popen[str]:
    """Runs a shell line after loading the functions."""
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


def test_a_job_that_failed_before_its_run_wrote_anything_is_shown_as_failed(bin_folder, tmp_path):
    run = tmp_path / "run"
    start(bin_folder, f"begin_job {run}").communicate(timeout=30)
    assert read_status(run).state == "not started"
    start(bin_folder, f"begin_job {run}\nend_job {run} 2 3").communicate(timeout=30)
    assert (read_status(run).state, "exit code 2" in str(read_status(run).why)) == ("failed", True)
    start(bin_folder, f"begin_job {run}").communicate(timeout=30)
    assert read_status(run).state == "not started", "the next start has begun"


def test_a_job_that_is_queued_again_twice_without_a_new_step_stops(bin_folder, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "state").write_text("RUNNING")

    def end(restarts: int, steps: int | None, checkpoint: int | None = None) -> tuple[bool, str]:
        """Ends one start of the job, and returns True if it is requeued, and its output."""
        (tmp_path / "requeued").unlink(missing_ok=True)
        write = save = ":"
        if steps is not None:
            write_summary(tmp_path, {"ended": "preempted", "why": None, "steps": steps, "skipped_steps": 999})
            write = f"cp {tmp_path}/summary.json {run}"
        if checkpoint is not None:
            folder = run / "checkpoints" / f"step_{checkpoint:08d}"
            save = f"mkdir -p {folder}; touch {folder}/COMPLETE"
        line = f"begin_job {run}; sleep 0.02; {write}; {save}; near_end=1; end_job {run} 0 99 2>&1"
        job = start(bin_folder, line, SLURM_RESTART_COUNT=str(restarts), LIMIT="0:03:10")
        said = job.communicate(timeout=30)[0]
        return (tmp_path / "requeued").exists(), said

    assert [end(0, None)[0], end(1, 0)[0], end(2, 5)[0], end(3, 5)[0], end(4, 5)[0]] == [True] * 5
    is_queued, said = end(5, 5)
    assert not is_queued
    assert "error: Job 7 was requeued twice without a new step (it is at step 5)" in said and "(now 190 s)" in said
    # A new job of the same run restarts the count. A checkpoint counts if a start was killed before its summary.
    assert [end(0, None)[0], end(1, None)[0], end(2, None, 120)[0], end(3, None)[0], end(4, None)[0]] == [True] * 5
    assert end(5, None)[0] is False


@pytest.mark.parametrize(
    ("limit", "refused"),
    [("00:02:00", True), ("00:02:01", False), ("1-00:00:00", False), ("UNLIMITED", False), ("Partition_Limit", False)],
)
def test_a_time_limit_no_longer_than_the_notice_is_refused(bin_folder, limit, refused):
    job = start(bin_folder, 'check_time_limit 120 "sbatch --time=HH:MM:SS" 2>&1; echo trains', LIMIT=limit)
    said = job.communicate(timeout=30)[0]
    assert job.returncode == (2 if refused else 0)
    message = "error: The time limit of job 7 is 120 s. It must be longer than 120 s: "
    assert (message in said) == refused and ("trains" in said) != refused


def test_a_signal_goes_on_to_the_step_once_and_its_exit_code_is_kept(bin_folder, tmp_path):
    # bash starts no extra process for the last command, so that the step's process counts the signals.
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
