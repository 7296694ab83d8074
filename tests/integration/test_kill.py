"""A run under torchrun, killed with SIGKILL at a random step and started again: not one bit of its rows differs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.tracking.run_status import RunStatus, read_status
from tests.faults.tiny_run import STEPS, arguments, make_store

WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A token store of invented sentences."""
    return make_store(tmp_path_factory.mktemp("corpus") / "text")


def start(store: Path, run_id: str, num_ranks: int, strategy: str, *overrides: str) -> subprocess.Popen[bytes]:
    """Starts torchrun in a process group of its own, so that all of it can be killed at once."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    return start_process([sys.executable, *launcher, *training(store, run_id, strategy, *overrides)])


def training(store: Path, run_id: str, strategy: str, *overrides: str) -> list[str]:
    """The command of a tiny run, as Python's or torchrun's arguments."""
    return ["-m", "framework.train", *arguments(store, store.parent, run_id, strategy, *overrides)]


def start_process(command: list[str], **variables: str) -> subprocess.Popen[bytes]:
    """Starts a command in a process group of its own, its two outputs in one pipe."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for_rows(run: subprocess.Popen[bytes], path: Path, num_rows: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists() or len(path.read_bytes().splitlines()) < num_rows:
        assert run.poll() is None, run.communicate()[0].decode()
        assert time.monotonic() < deadline, f"no row {num_rows} in {path} after {WAIT_SECONDS} s"
        time.sleep(0.005)


def finish(run: subprocess.Popen[bytes]) -> None:
    output = run.communicate(timeout=WAIT_SECONDS)[0].decode()
    assert run.returncode == 0, output


def worker_pids(agent: int) -> list[int]:
    """Process ids of torchrun's workers, by rank."""
    pids = {}
    for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        pids.update({int(entry[5:]): pid for entry in environ if entry.startswith(b"RANK=")})
    return [pids[rank] for rank in sorted(pids)]


def kill(run: subprocess.Popen[bytes]) -> None:
    """Kills torchrun and its workers, which it starts in sessions of their own."""
    workers = worker_pids(run.pid)
    for group in (run.pid, *workers):
        os.killpg(group, signal.SIGKILL)
    run.wait()


def status(folder: Path) -> RunStatus:
    return read_status(folder, folder / "checkpoints")


def wait_until_lost(folder: Path) -> RunStatus:
    """The kernel needs a moment to end processes, and whoever inherits them another to bury them."""
    deadline = time.monotonic() + 10
    while (seen := status(folder)).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "fsdp2"), (4, "ddp")])
def test_killed_run_goes_on_bit_for_bit(corpus: Path, num_ranks: int, strategy: str) -> None:
    whole, killed = f"whole{num_ranks}", f"killed{num_ranks}"
    finish(start(corpus, whole, num_ranks, strategy))

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
    finish(start(corpus, killed, num_ranks, strategy))

    expected = (corpus.parent / whole / "metrics.jsonl").read_bytes()
    assert (corpus.parent / killed / "metrics.jsonl").read_bytes() == expected, f"killed at row {moment}"
    assert [json.loads(line)["step"] for line in expected.splitlines()] == list(range(1, STEPS + 1))
    summary = json.loads((corpus.parent / killed / "summary.json").read_text(encoding="utf-8"))
    assert summary["ended"] == "finished"
    assert summary["steps"] == STEPS
    seen = status(corpus.parent / killed)
    assert (seen.state, seen.step, seen.checkpoint_step, seen.ended_badly) == ("finished", STEPS, STEPS, False)
