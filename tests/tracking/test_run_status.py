"""What is told of a run from its folder alone: states, speed, checkpoints, half-written files; and the table of it."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from framework.distributed.processes.beats import Beat, Beats
from framework.status import find_runs, main
from framework.tracking.run_status import read_status, tail_rows

LONG_AGO, START = "20260101T000000-host-1", "20260102T000000-host-2"
BEFORE_START, AFTER_START = 1767225700.0, 1767400000.0


def make_run(folder: Path, rows: int = 0, **beats: Any) -> Path:
    """A run with so many rows, two seconds apart, and a beat of each of two ranks."""
    live = folder / "logs" / "live" / START
    live.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {checkpoints: null}\n")
    for rank in range(2):
        log = folder / "logs" / f"rank_{rank:05d}.log"
        log.write_text(f"... rank {rank} step - INFO training begins after step 0 of 100\n... rank {rank} last words\n")
        beat = {"host": socket.gethostname(), "pid": os.getpid(), "step": rows + 1} | beats
        Beats(live, 1.0).write(
            Beat(rank, number=3, count=9, point="trains", place="f", waits_for_others=False, log=str(log), **beat)
        )
    for step in range(1, rows + 1):
        append(folder / "metrics.jsonl", {"step": step, "train/loss": 10.0 - step})
        append(folder / "perf.jsonl", {"step": step, "perf/wall_seconds": 30 + 2.0 * step})
    return folder


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(folder: Path) -> Any:
    return read_status(folder, folder / "checkpoints")


def gone_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_running_run(tmp_path):
    seen = read(make_run(tmp_path / "run", rows=5))
    assert (seen.state, seen.step, seen.max_steps, seen.num_ranks) == ("running", 5, 100, 2)
    assert seen.loss == 5.0
    assert seen.seconds_left == 95 * 2.0
    assert (seen.checkpoint_step, seen.checkpoint_age) == (None, None)


def test_a_run_before_its_first_row(tmp_path):
    seen = read(make_run(tmp_path / "run", step=None))
    assert (seen.state, seen.step, seen.seconds_left) == ("running", None, None)


def test_a_folder_whose_run_has_not_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {}\n")
    assert read(tmp_path).state == "not started"


def test_processes_that_are_gone_without_a_word(tmp_path):
    seen = read(make_run(tmp_path / "run", rows=2, pid=gone_pid()))
    assert seen.state == "lost"
    assert seen.ended_badly
    assert seen.last_lines == {0: "... rank 0 last words", 1: "... rank 1 last words"}


def test_another_host_is_judged_by_its_files_alone(tmp_path):
    folder = make_run(tmp_path / "run", rows=2, host="elsewhere", pid=1)
    assert read(folder).state == "running"
    for beat in (folder / "logs" / "live" / START).iterdir():
        os.utime(beat, (time.time() - 60,) * 2)
    assert read(folder).state == "silent"


@pytest.mark.parametrize(("written", "state"), [(AFTER_START, "preempted"), (BEFORE_START, "lost")])
def test_a_summary_counts_where_it_is_of_the_newest_start(tmp_path, written, state):
    folder = make_run(tmp_path / "run", rows=2, pid=gone_pid())
    (folder / "summary.json").write_text(json.dumps({"ended": "preempted", "why": "SIGTERM"}))
    os.utime(folder / "summary.json", (written, written))
    assert read(folder).state == state


@pytest.mark.parametrize(("seconds", "state"), [(AFTER_START, "failed"), (BEFORE_START, "lost")])
def test_a_failure_counts_where_it_is_of_the_newest_start(tmp_path, seconds, state):
    folder = make_run(tmp_path / "run", rows=2, pid=gone_pid())
    failure = {"seconds": seconds, "kind": "DataError", "rank": 1, "step": 2, "message": "no such row"}
    (folder / "logs" / "failure.json").write_text(json.dumps(failure))
    seen = read(folder)
    assert seen.state == state
    if state == "failed":
        assert seen.why == "DataError (rank 1, step 2): no such row"


def test_rows_that_are_half_written_are_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    long_row = {"step": 1, "text": "x" * 70_000}
    path.write_text(json.dumps(long_row) + '\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [row["step"] for row in tail_rows(path)] == [2, 3]
    assert tail_rows(tmp_path / "none.jsonl") == []


def test_the_table_names_what_is_wrong(tmp_path, capsys):
    make_run(tmp_path / "runs" / "good", rows=5)
    make_run(tmp_path / "runs" / "bad", rows=2, pid=gone_pid())
    assert main(["--runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    (good,) = (line for line in out.splitlines() if "good" in line)
    assert good.split() == ["good", "running", "5/100", "5.0000", "3m"]
    assert "bad: lost, all processes are gone" in out
    assert "... rank 1 last words" in out


def test_runs_are_found_by_id_pattern_and_folder(tmp_path):
    runs = tmp_path / "runs"
    for name in ("sst2-a", "sst2-b", "ner"):
        make_run(runs / name)
    names = lambda *given: [folder.name for folder in find_runs(given, runs)]  # noqa: E731
    assert names() == ["ner", "sst2-a", "sst2-b"]
    assert names("sst2-*") == ["sst2-a", "sst2-b"]
    assert names("ner", "*") == ["ner", "sst2-a", "sst2-b"]
    assert names(str(runs / "ner")) == ["ner"]
    assert names(str(runs)) == ["ner", "sst2-a", "sst2-b"]


def test_a_run_that_is_not_there(tmp_path, capsys):
    assert main(["nix", "--runs", str(tmp_path)]) == 2
    assert "there is no run nix" in capsys.readouterr().err
