"""Tests a sweep of 3 jobs with 2 processes each on a real SLURM: one is killed, one gets near its time limit."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

from tests.support.needs import machine
from tests.support.processes.slurm_cluster import slurm, why_not
from tests.support.sweeps.started import WAIT_SECONDS, rank_of, start, wait_for_rows
from tests.support.training.tiny_run import make_store, rows

STEPS = 30

pytestmark = machine(why_not)


def slurm_states() -> dict[str, str]:
    """Returns SLURM's state of each job by job number."""
    command = ["squeue", "--noheader", "--states=all", "--format=%i %T"]
    return dict(line.split() for line in subprocess.check_output(command, text=True).splitlines())


def test_what_was_killed_is_named_and_what_was_interrupted_is_queued_again(tmp_path: Path) -> None:
    store = make_store(tmp_path / "text")
    folder = tmp_path / "text" / "runs" / "rates"
    names = [f"rates-seed_{seed}" for seed in range(3)]
    line = ("hydra/launcher=slurm", "hydra.launcher.processes=2", "hydra.launcher.poll_seconds=0.5")
    line = (*line, "seed=0,1,2", f"trainer.max_steps={STEPS}")
    killed, interrupted = names[1], names[2]

    with slurm(tmp_path / "slurm"):
        sweep = start(store, *line, "hydra.launcher.wait=false")
        out, err = sweep.communicate(timeout=WAIT_SECONDS)
        assert (sweep.returncode, err) == (0, "") and "3 jobs stay in SLURM's queue" in out
        assert json.loads((folder / "sweep.json").read_text())["ended"] == "running"
        numbers = {name: json.loads((folder / name / "logs/slurm_job.json").read_text())["job"] for name in names}

        sweep = start(store, *line)
        wait_for_rows(sweep, folder / killed, 4)
        os.kill(rank_of(f"SLURM_JOB_ID={numbers[killed]}", 1, store), signal.SIGKILL)
        wait_for_rows(sweep, folder / interrupted, 4)
        # SLURM sends this signal near the time limit.
        subprocess.run(["scancel", "--batch", "--signal=USR1", str(numbers[interrupted])], check=True)
        out, err = sweep.communicate(timeout=WAIT_SECONDS)
        assert sweep.returncode == 2, out
        # One may have finished before the second start checked.
        assert re.search(r"([23]) of 3 jobs to run, \1 of them submitted before", out)
        assert re.match(
            rf"SweepError: 1 of 3 jobs failed: seed=1 \(SLURM job {numbers[killed]}: FAILED; "
            r"DistributedError \(rank 1, step \d+\): ended without an error report",
            err,
        )
        states = slurm_states()
        expected = dict.fromkeys(names, "COMPLETED") | {killed: "FAILED"}
        assert {name: states[str(numbers[name])] for name in names} == expected
        starts = {name: json.loads((folder / name / "provenance.json").read_text())["starts"] for name in names}
        assert {name: len(each) for name, each in starts.items()} == dict.fromkeys(names, 1) | {interrupted: 2}

        sweep = start(store, *line)
        out, err = sweep.communicate(timeout=WAIT_SECONDS)
        assert (sweep.returncode, err) == (0, "")
        assert "1 of 3 jobs to run, 0 of them submitted before" in out
        assert sorted(slurm_states()) == sorted([*map(str, numbers.values()), "4"])
    for name in names:
        assert [row["step"] for row in rows(folder / name)] == list(range(1, STEPS + 1))
    assert json.loads((folder / "sweep.json").read_text())["ended"] == "finished"
