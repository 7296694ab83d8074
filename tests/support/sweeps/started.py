"""Starts a sweep with real jobs and finds their processes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.support.training.tiny_run import arguments, rows

STEPS = 12
WAIT_SECONDS = 300


def start(store: Path, *overrides: str) -> subprocess.Popen[str]:
    given = [each for each in arguments(store, store.parent, "", "ddp") if not each.startswith("run.id=")]
    line = [*given, f"trainer.max_steps={STEPS}", f"hydra.sweep.dir={store.parent}/runs/rates", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "framework.train", "--multirun", *line],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rank_of(job: str, rank: int, store: Path) -> int:
    """Finds the process of one rank.

    Args:
        job: Pattern of a variable that the environment of the job has.
        rank: Rank of the process.
        store: Token store of its command line; another test may run a job of the same name or number.
    """
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = file.read_text(errors="replace").split("\0")
            command = file.with_name("cmdline").read_text(errors="replace")
        except OSError:
            continue
        is_job = str(store) in command and any(re.fullmatch(job, entry) for entry in environment)
        if is_job and f"RANK={rank}" in environment:
            return int(file.parent.name)
    raise AssertionError(f"{job} has no rank {rank}")


def wait_for_rows(sweep: subprocess.Popen[str], run: Path, num_rows: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while len(rows(run)) < num_rows:
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() < deadline, f"no row {num_rows} in {run}"
        time.sleep(0.005)
