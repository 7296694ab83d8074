"""Tests of ranks that fail, die or hang: the error names the rank and its position, nothing remains, runs resume."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands.torchrun import WAIT_SECONDS, start_process, train_whole, training
from tests.support.processes.alive import is_alive
from tests.support.training.tiny_run import STEPS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
FAULTY = "task._target_=tests.support.tasks.faulty_task.FaultyTask"


def faulty(store: Path, kind: str, rank: int, step: int, launcher: list[str], strategy: str, *overrides: str):
    """Starts a run that fails once. Its folder has the name of the fault."""
    command = [*launcher, *training(store, kind, strategy, FAULTY, *overrides)]
    return start_process(command, CLOZE_TEST_FAULT=f"{kind} {rank} {step} {store.parent / kind}.happened")


def ended(run: subprocess.Popen[bytes]) -> str:
    """Waits for the end of a run that must fail, and returns its output."""
    output = run.communicate(timeout=WAIT_SECONDS)[0].decode()
    assert run.returncode != 0, output
    return output


def left_over(run_folder: Path) -> list[int]:
    """Returns processes named in the logs of a run, ranks and loaders, that have not ended."""
    logs = "".join(path.read_text(encoding="utf-8") for path in (run_folder / "logs").glob("rank_*.log"))
    pids = {int(pid) for pid in re.findall(r"pid (\d+)", logs)}
    assert pids
    return [pid for pid in pids if is_alive(pid)]


def log_of(run_folder: Path, rank: int) -> str:
    return (run_folder / "logs" / f"rank_{rank:05d}.log").read_text(encoding="utf-8")


def failure_of(run_folder: Path) -> dict:
    return json.loads((run_folder / "logs" / "failure.json").read_text(encoding="utf-8"))


def test_an_error_on_one_rank_ends_all_and_comes_first(corpus: Path) -> None:
    run = faulty(corpus, "error", 1, 5, [*TORCHRUN, "--standalone"], "ddp")
    output = ended(run)
    assert left_over(corpus.parent / "error") == []
    line = "DataError (rank 1, step 5): shard.txt, row 8: no text."
    # torchrun prints its own traceback after it, and the cause again in its summary.
    ours, _, summary = output.partition("failed (exitcode")
    assert ours.count(line) == 1 and line in summary and "Traceback" not in ours and "gloo" not in ours

    folder = corpus.parent / "error"
    failure = failure_of(folder)
    assert (failure["rank"], failure["step"], failure["why"]) == (1, 5, line)
    assert json.loads((folder / "summary.json").read_text())["why"] == line
    own = log_of(folder, 1)
    assert 'rank 1 step 5 ERROR   File "' in own and "rank 1 step 5 ERROR framework.errors.DataError: shard" in own
    other = log_of(folder, 0)
    assert f"first failure: {line}" in other and "rank 0 step 5 ERROR" in other
    for rank, text in ((0, other), (1, own)):
        form = re.compile(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d rank {rank} step (-|\d+) [A-Z]+ .*")
        assert all(form.fullmatch(entry) for entry in text.splitlines())
        assert f"rank {rank} of 2, attempt 0" in text.splitlines()[0]
        assert "INFO checkpoint of step 3 is complete" in text and "step 4 INFO row: train/loss" in text


def test_a_killed_rank_is_named_and_the_run_goes_on_bit_for_bit(corpus: Path) -> None:
    train_whole(corpus, "whole", 2, "ddp")
    run = faulty(corpus, "kill", 1, 8, [*TORCHRUN, "--standalone", "--max-restarts", "1"], "ddp")
    output = run.communicate(timeout=WAIT_SECONDS)[0].decode()
    assert run.returncode == 0, output
    assert left_over(corpus.parent / "kill") == []
    assert "DistributedError (rank 1, step 8): ended without an error report" in output, output
    assert "Traceback" not in output.partition("failed (exitcode")[0]

    folder = corpus.parent / "kill"
    assert (folder / "metrics.jsonl").read_bytes() == (corpus.parent / "whole" / "metrics.jsonl").read_bytes()
    assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == STEPS
    failure = failure_of(folder)
    assert (failure["rank"], failure["reporter"], failure["step"]) == (1, 0, 8)
    for rank in range(2):
        text = log_of(folder, rank)
        assert f"rank {rank} of 2, attempt 0" in text and f"rank {rank} of 2, attempt 1" in text
        # The checkpoint of step 6 may not have been complete yet.
        assert re.search(r"Resuming from step [36] of .*/step_0000000[36]", text)
        assert f"step {STEPS} INFO training ended after step {STEPS} of {STEPS}" in text


TIMEOUT = 15
HANGS = "trainer.num_workers=1", f"trainer.timeout_seconds={TIMEOUT}"


@pytest.fixture(scope="module")
def hung(corpus: Path) -> dict[str, str]:
    """Runs three hanging runs at the same time and returns their outputs. Only their checkpoints remain."""
    single = [sys.executable]
    launcher = [*TORCHRUN, "--master-port", "29633"]
    runs = {
        "sleep": faulty(corpus, "sleep", 1, 5, launcher, "ddp", *HANGS),
        "sleep_in_loader": faulty(corpus, "sleep_in_loader", 0, 5, single, "single", *HANGS),
    }
    # Runs without torchrun, which waits for 30 s before it kills a stopped process.
    command = [sys.executable, *training(corpus, "stop", "fsdp2", FAULTY, *HANGS)]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29634"}
    stopped = [
        start_process(
            command,
            CLOZE_TEST_FAULT=f"stop 1 5 {corpus.parent / 'stop.happened'}",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **shared,
        )
        for rank in range(2)
    ]
    runs["stop"] = stopped[0]
    printed = {name: ended(run) for name, run in runs.items()}
    still_there = stopped[1].poll() is None
    stopped[1].send_signal(signal.SIGKILL)
    stopped[1].communicate()
    assert still_there
    assert [left_over(corpus.parent / name) for name in runs] == [[], [], []]
    return printed


@pytest.mark.parametrize(
    ("name", "rank", "where", "message"),
    [
        ("sleep", 1, "rank 1, step 5", "in step 5: forward of micro-batch 1, in tasks/faulty_task.py"),
        ("stop", 1, "rank 1, step 5", "its log ends with"),
        ("sleep_in_loader", 0, "step 5", "in step 5: waits for its batch, in "),
    ],
)
def test_a_rank_that_hangs_is_named(name: str, rank: int, where: str, message: str, hung: dict, corpus: Path) -> None:
    ours = hung[name].partition("failed (exitcode")[0]
    lines = [line for line in ours.splitlines() if "hangs: no progress" in line]
    assert len(lines) == 1, hung[name]
    assert lines[0].startswith(
        f"DistributedError ({where}): hangs: no progress within trainer.timeout_seconds={TIMEOUT}."
    )
    assert f"rank {rank} (host " in lines[0] and message in lines[0]
    assert ("Last heartbeat" in lines[0]) == (name == "stop")
    folder = corpus.parent / name
    assert (failure_of(folder)["rank"], failure_of(folder)["step"]) == (rank, 5)
    # It is written in the background, so that a stopped process may not have finished it.
    written = {path.name for path in (folder / "checkpoints").iterdir()}
    assert written == {"step_00000003"} or (name == "stop" and written == {"step_00000003.tmp"})
    if name != "stop":  # a stopped process writes nothing
        assert "Stack of the main thread:" in log_of(folder, rank)
    if name == "sleep":
        assert "fault" in log_of(folder, 1).partition("Stack of the main thread:")[2]
    if name == "sleep_in_loader":
        assert "kills the loader process" in log_of(folder, 0)
