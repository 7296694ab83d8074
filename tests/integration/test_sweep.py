"""Tests a sweep of 4 jobs with 2 processes each under torchrun: one job is killed and restarted."""

import json
import os
import re
import signal
import statistics
from pathlib import Path

from tests.support.sweeps.started import STEPS, WAIT_SECONDS, rank_of, start, wait_for_rows
from tests.support.training.tiny_run import make_store, rows, summary


def test_a_killed_job_is_named_three_are_kept_and_the_second_start_runs_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "text")
    folder = tmp_path / "text" / "runs" / "rates"
    names = [f"rates-lr_{rate}-seed_{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)]
    line = ("optimizer.lr=1e-3,1e-2", "seed=0,1", "hydra.launcher.processes=2", "hydra.launcher.jobs_at_once=2")
    victim = folder / names[1]

    sweep = start(store, *line)
    wait_for_rows(sweep, victim, 4)
    os.kill(rank_of(f"CLOZE_SWEEP_JOB=[0-9]+:{re.escape(names[1])}", 1, store), signal.SIGKILL)
    out, err = sweep.communicate(timeout=WAIT_SECONDS)
    assert sweep.returncode == 2
    assert re.fullmatch(
        r"SweepError: 1 of 4 jobs failed: optimizer\.lr=0\.001, seed=1 \(exit code 1; DistributedError \(rank 1, step "
        r"\d+\): ended without an error report.*\)\. The results of the other jobs are kept\. Start the same "
        r"command again.*\n",
        err,
    )
    states = {each["run"]: each["state"] for each in json.loads((folder / "sweep.json").read_text())["jobs"]}
    assert states == dict.fromkeys(names, "finished") | {names[1]: "failed"}
    assert len(rows(victim)) < STEPS
    kept = {name: (folder / name / "summary.json").stat().st_mtime_ns for name in names if name != names[1]}

    sweep = start(store, *line)
    out, err = sweep.communicate(timeout=WAIT_SECONDS)
    assert (sweep.returncode, err) == (0, "")
    assert "1 of 4 jobs to run" in out
    assert kept == {name: (folder / name / "summary.json").stat().st_mtime_ns for name in kept}
    assert [row["step"] for row in rows(victim)] == list(range(1, STEPS + 1))
    starts = json.loads((victim / "provenance.json").read_text())["starts"]
    assert [each["world_size"] for each in starts] == [2, 2]
    assert summary(victim)["ended"] == "finished"

    # The last validation is at the last step, so that its row has the values that the tables aggregate.
    losses = [rows(folder / name)[-1]["val/loss"] for name in names]
    results = json.loads((folder / "sweep.json").read_text())
    for folded, pair in zip(results["seeds"], (losses[:2], losses[2:]), strict=True):
        assert folded["last"]["n"] == 2
        assert abs(folded["last"]["mean"] - statistics.mean(pair)) < 1e-12
        assert abs(folded["last"]["deviation"] - statistics.stdev(pair)) < 1e-12
    assert f"{statistics.mean(losses[2:]):.4f} ± {statistics.stdev(losses[2:]):.4f}" in out
