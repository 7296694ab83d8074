"""Tests that a run under torchrun, killed with SIGKILL at a random step and resumed, has bitwise equal rows.

tests/integration/test_faults.py and test_preemption.py resume under torchrun.
"""

import json
import random
import time
from pathlib import Path

import pytest

from framework.tracking.run_status import RunStatus, read_status
from tests.support.commands.torchrun import kill, start, train_whole, wait_for_rows
from tests.support.training.tiny_run import STEPS


def status(folder: Path) -> RunStatus:
    return read_status(folder)


def wait_until_lost(folder: Path) -> RunStatus:
    """Waits until the status is `lost`: the kernel needs time to end the processes, and their parent to reap them."""
    deadline = time.monotonic() + 10
    while (seen := status(folder)).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "fsdp2"), (4, "ddp")])
def test_killed_run_goes_on_bit_for_bit(corpus: Path, num_ranks: int, strategy: str) -> None:
    undisturbed, killed = f"whole{num_ranks}", f"killed{num_ranks}"
    train_whole(corpus, undisturbed, num_ranks, strategy)

    run = start(corpus, killed, num_ranks, strategy)
    moment = random.SystemRandom().randint(4, STEPS - 2)
    wait_for_rows(run, corpus.parent / killed / "metrics.jsonl", moment)
    seen = status(corpus.parent / killed)
    kill(run)
    assert (seen.state, seen.num_ranks, seen.max_steps) == ("running", num_ranks, STEPS)
    assert moment <= seen.step <= STEPS
    assert seen.seconds_left is not None
    seen = wait_until_lost(corpus.parent / killed)
    assert (seen.state, list(seen.last_lines)) == ("lost", list(range(num_ranks)))
    assert all(f" rank {rank} step " in line for rank, line in seen.last_lines.items())
    cut = (corpus.parent / killed / "metrics.jsonl").read_bytes()
    assert len(cut.splitlines()) < STEPS
    train_whole(corpus, killed, num_ranks, strategy)

    expected = (corpus.parent / undisturbed / "metrics.jsonl").read_bytes()
    assert (corpus.parent / killed / "metrics.jsonl").read_bytes() == expected, f"killed at row {moment}"
    assert [json.loads(line)["step"] for line in expected.splitlines()] == list(range(1, STEPS + 1))
    summary = json.loads((corpus.parent / killed / "summary.json").read_text(encoding="utf-8"))
    assert summary["ended"] == "finished"
    assert summary["steps"] == STEPS
    seen = status(corpus.parent / killed)
    assert (seen.state, seen.step, seen.checkpoint_step, seen.ended_badly) == ("finished", STEPS, STEPS, False)
