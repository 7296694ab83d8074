"""Tests of a node that is lost and a node that joins, as two torchrun agents on this host: no step is lost or repeated.

Slow: set CLOZE_SLOW_TESTS=1. Each agent creates its own store for each attempt; the host of the rendezvous is fixed.
"""

import json
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands.torchrun import WAIT_SECONDS, finish, kill, start, start_process, training, wait_for_rows
from tests.support.needs import slow

pytestmark = slow

PORT = 29641
LEAVES, JOINS, STEPS = 40, 80, 240
LENGTH = (f"trainer.max_steps={STEPS}", "trainer.val_every_n_steps=60", "trainer.checkpoint_every_n_steps=15")
TIMES = "join_timeout=120,last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3,read_timeout=10"


def agent(store: Path, is_host: bool):
    """Starts one node of one process."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{PORT}", "--rdzv-id", "elastic"),
        *("--local-addr", "127.0.0.1", "--max-restarts", "3", "--rdzv-conf", f"is_host={int(is_host)},{TIMES}"),
        *training(store, "elastic", "ddp", "task._target_=tests.support.tasks.faulty_task.SlowTask", *LENGTH),
    ]
    return start_process(command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", GLOO_SOCKET_IFNAME="lo")


def wait_for_log(run_folder: Path, text: str, times: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    log = run_folder / "logs" / "rank_00000.log"
    while not log.exists() or log.read_text(encoding="utf-8").count(text) < times:
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8") if log.exists() else "no log"
        time.sleep(0.05)


def test_a_node_is_lost_and_another_joins(corpus: Path) -> None:
    run_folder = corpus.parent / "elastic"
    finish(start(corpus, "steady", 2, "ddp", *LENGTH))

    host = agent(corpus, True)
    guest = agent(corpus, False)
    wait_for_log(run_folder, "rank 0 of 2", 1)
    wait_for_rows(host, run_folder / "metrics.jsonl", LEAVES)
    kill(guest)
    lost = time.monotonic()
    wait_for_log(run_folder, "rank 0 of 1", 1)
    print(f"alone after {time.monotonic() - lost:.0f} s")
    wait_for_rows(host, run_folder / "metrics.jsonl", JOINS)
    guest = agent(corpus, False)
    wait_for_log(run_folder, "rank 0 of 2", 2)
    finish(guest)
    finish(host)

    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run_folder, corpus.parent / "steady")
    )
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert our_row == pytest.approx(their_row, rel=1e-5), our_row["step"]
