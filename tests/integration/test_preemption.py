"""Tests that a run under torchrun, preempted twice and resumed, has bitwise equal rows."""

import json
import os
import signal
from pathlib import Path

from framework.checkpoint.layout import newest_complete
from tests.support.commands.torchrun import finish, start, train_whole, wait_for_rows, worker_pids

STEPS = 50
LENGTH = (f"trainer.max_steps={STEPS}", "trainer.val_every_n_steps=12", "trainer.checkpoint_every_n_steps=25")


def check_left(run_folder: Path, why: str) -> int:
    """Checks the files of a preempted run, and returns its step."""
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["ended"], summary["why"]) == ("preempted", why)
    step = summary["steps"]
    assert 3 <= step < STEPS
    checkpoint = newest_complete(run_folder / "checkpoints")
    assert checkpoint is not None and checkpoint.name == f"step_{step:08d}"
    rows = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, step + 1))
    return step


def test_a_run_that_left_twice_has_the_rows_of_one_that_did_not(corpus: Path) -> None:
    run_folder = corpus.parent / "left"
    train_whole(corpus, "whole", 2, "fsdp2", *LENGTH)

    run = start(corpus, "left", 2, "fsdp2", *LENGTH, "trainer.num_workers=1")
    wait_for_rows(run, run_folder / "metrics.jsonl", 3)
    # Signals the rank and its loader's process, as torchrun and SLURM do.
    os.killpg(worker_pids(run.pid)[1], signal.SIGTERM)
    finish(run)
    step = check_left(run_folder, "SIGTERM on rank 1")
    finish(start(corpus, "left", 2, "fsdp2", *LENGTH, "trainer.max_time=00:00:01"))
    assert check_left(run_folder, "max_time 00:00:01 reached") == step + 1
    train_whole(corpus, "left", 2, "fsdp2", *LENGTH)

    assert (run_folder / "metrics.jsonl").read_bytes() == (corpus.parent / "whole" / "metrics.jsonl").read_bytes()
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["ended"], summary["why"], summary["steps"]) == ("finished", None, STEPS)
