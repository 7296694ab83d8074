"""Starts tiny runs under torchrun, waits for them and kills them; `train_whole` starts one without torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes.ranks import Ranks
from tests.support.training.tiny_run import arguments, make_store

WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Returns a token store of invented sentences."""
    return make_store(tmp_path_factory.mktemp("corpus") / "text")


def start(store: Path, run_id: str, num_ranks: int, strategy: str, *overrides: str) -> subprocess.Popen[bytes]:
    """Starts torchrun in its own process group, so that all of its processes can be killed at once."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    return start_process([sys.executable, *launcher, *training(store, run_id, strategy, *overrides)])


def train_whole(store: Path, run_id: str, num_ranks: int, strategy: str, *overrides: str) -> None:
    """Trains, or resumes, until the end in forked ranks, whose start takes a tenth of the time of torchrun's.

    For runs that nothing disturbs: the run that others are compared with, and the last start of one that was disturbed.
    """
    ranks = Ranks(
        arguments(store, store.parent, run_id, strategy, *overrides), num_ranks, store.parent / f"{run_id}.txt"
    )
    assert ranks.wait(WAIT_SECONDS) == [0] * num_ranks, ranks.read_output()


def training(store: Path, run_id: str, strategy: str, *overrides: str) -> list[str]:
    """Returns the arguments of Python or torchrun that start a tiny run."""
    return ["-m", "framework.train", *arguments(store, store.parent, run_id, strategy, *overrides)]


def start_process(command: list[str], **variables: str) -> subprocess.Popen[bytes]:
    """Starts a command in its own process group, with standard output and error in one pipe."""
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
    """Returns the process ids of torchrun's workers, by rank."""
    pids = {}
    for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        pids.update({int(entry[5:]): pid for entry in environ if entry.startswith(b"RANK=")})
    return [pids[rank] for rank in sorted(pids)]


def kill(run: subprocess.Popen[bytes]) -> None:
    """Kills torchrun and its workers. Each worker has its own session."""
    workers = worker_pids(run.pid)
    for group in (run.pid, *workers):
        os.killpg(group, signal.SIGKILL)
    run.wait()
