"""The status of a run from its folder alone: states, speed, checkpoints, damaged files; and the table of runs."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.distributed.processes.beats import Beat, Beats
from framework.distributed.processes.failure_report import FailureReport
from framework.errors import ConfigError, DataError
from framework.runs.folder import RunFolder, write_start
from framework.runs.session import task_record
from framework.status import find_runs, run, status, with_pending
from framework.sweeps.outcome import FolderState, Outcome, classify_exit, output_file
from framework.sweeps.plan import Job, Sweep
from framework.sweeps.results import write_results
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tracking.run_status import read_status, tail_rows
from framework.tracking.summary_file import write_summary

LONG_AGO, START = "20260101T000000-host-1", "20260102T000000-host-2"
BEFORE_START, AFTER_START = 1767225700.0, 1767400000.0


SUMMARY: dict[str, Any] = {
    "ended": "preempted",
    "why": "SIGTERM",
    "steps": 2,
    "max_steps": 100,
    "tokens": 9,
    "wall_seconds": 1.0,
    "tokens_per_second": 9.0,
    "last": {},
    "best": None,
    "best_metric": "val/macro_f1",
}


def make_run(folder: Path, rows: int = 0, **beats: Any) -> Path:
    """Writes a run with this number of rows, two seconds apart, and a beat of each of two ranks."""
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
    return read_status(folder)


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


def test_processes_that_ended_without_a_message(tmp_path):
    seen = read(make_run(tmp_path / "run", rows=2, pid=gone_pid()))
    assert seen.state == "lost"
    assert seen.ended_badly
    assert seen.last_lines == {0: "... rank 0 last words", 1: "... rank 1 last words"}


def test_a_run_on_another_host_is_judged_only_by_its_files(tmp_path):
    folder = make_run(tmp_path / "run", rows=2, host="elsewhere", pid=1)
    assert read(folder).state == "running"
    for beat in (folder / "logs" / "live" / START).iterdir():
        os.utime(beat, (time.time() - 60,) * 2)
    assert read(folder).state == "silent"


@pytest.mark.parametrize(("written", "state"), [(AFTER_START, "preempted"), (BEFORE_START, "lost")])
def test_a_summary_counts_only_if_it_is_of_the_newest_start(tmp_path, written, state):
    folder = make_run(tmp_path / "run", rows=2, pid=gone_pid())
    write_summary(folder, SUMMARY)
    os.utime(folder / "summary.json", (written, written))
    assert read(folder).state == state


@pytest.mark.parametrize("content", ["", '{"ended": "finished"', '{"ended": "finished"}'])
def test_a_run_with_a_damaged_summary_is_not_called_lost(tmp_path, content):
    folder = make_run(tmp_path / "run", rows=2, pid=gone_pid())
    write_summary(folder, SUMMARY | {"ended": "finished", "why": None})
    assert (read(folder).state, read(folder).ended_badly) == ("finished", False)
    (folder / "summary.json").write_text(content)
    assert (read(folder).state, read(folder).ended_badly) == ("damaged", True)
    assert "summary.json cannot be read" in str(read(folder).why)
    os.utime(folder / "summary.json", (BEFORE_START, BEFORE_START))  # of an earlier start
    assert read(folder).state == "lost"


def test_a_job_that_failed_before_it_had_a_config_is_failed(tmp_path, capsys):
    """The state comes from the sweep, whose folder holds only the output of the job."""
    jobs = [Job(tmp_path / "sweep" / f"lr_{rate}", {"lr": rate}, (), {}) for rate in ("1", "2")]
    for job in jobs:
        output_file(job).parent.mkdir(parents=True)
        output_file(job).write_text("DataError: the file rows.csv is empty.\n")
    outcomes = {
        jobs[0].id: classify_exit(jobs[0], False, "exit code 2", FolderState(0, 0, 0)),
        jobs[1].id: Outcome("running"),
    }
    write_results(Sweep(tmp_path / "sweep", ("lr",), tuple(jobs)), outcomes, "running")
    run(["--runs", str(tmp_path)])
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["sweep/lr_1", "failed"] in rows and ["sweep/lr_2", "not", "started"] in rows
    assert "sweep/lr_1: failed, exit code 2; DataError: the file rows.csv is empty." in out


@pytest.mark.parametrize("has_ended", [False, True])
def test_the_metric_that_ranks_checkpoints_is_shown(tmp_path, capsys, has_ended):
    """In the order of metrics.jsonl it is not the first."""
    folder = make_run(tmp_path / "runs" / "x", rows=1)
    append(
        folder / "metrics.jsonl", {"step": 2, "val/loss": 0.1, "val/accuracy": 0.5, "val/macro_f1": 0.25, "val/z": 1}
    )
    run(["--runs", str(tmp_path / "runs")])
    assert "accuracy 0.5000" in capsys.readouterr().out, "runs of earlier versions do not record it"
    if has_ended:
        write_summary(folder, SUMMARY)
    else:
        record = task_record(SequenceClassificationTask(best_metric="macro_f1"), 1)
        write_start(RunFolder(folder, folder / "checkpoints", None, True), {}, {"fingerprints": {}}, record)
    run(["--runs", str(tmp_path / "runs")])
    assert "macro F1 0.2500" in capsys.readouterr().out


@pytest.mark.parametrize("is_of_this_start", [True, False])
def test_a_failure_counts_only_if_it_is_of_the_newest_start(tmp_path, is_of_this_start):
    """The failure is written by the code that writes it in a run."""
    folder = make_run(tmp_path / "run", rows=2, pid=gone_pid())
    report = FailureReport()
    live = folder / "logs" / "live" / START
    report.open(live, folder / "logs", folder / "logs" / "rank_00000.log", Beats(live, 1.0))
    report.exchange(report.describe(DataError("no such row")))
    if is_of_this_start:
        assert (read(folder).state, read(folder).why) == ("failed", "DataError: no such row")
    else:
        live.rename(live.with_name("29990102T000000-host-2"))
        assert read(folder).state == "lost"


def test_incomplete_rows_are_ignored(tmp_path):
    path = tmp_path / "rows.jsonl"
    long_row = {"step": 1, "text": "x" * 70_000}
    path.write_text(json.dumps(long_row) + '\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [row["step"] for row in tail_rows(path)] == [2, 3]
    assert tail_rows(tmp_path / "none.jsonl") == []


def test_the_table_names_problems(tmp_path, capsys):
    make_run(tmp_path / "runs" / "good", rows=5)
    make_run(tmp_path / "runs" / "bad", rows=2, pid=gone_pid())
    run(["--runs", str(tmp_path / "runs")])
    out = capsys.readouterr().out
    (good,) = (line for line in out.splitlines() if "good" in line)
    assert good.split() == ["good", "running", "5/100", "5.0000", "3m"]
    assert "bad: lost, all processes are gone" in out
    assert "... rank 1 last words" in out


def test_runs_are_found_by_id_pattern_and_folder(tmp_path):
    runs = tmp_path / "runs"
    for name in ("sst2-a", "sst2-b", "ner", "quick/start", "sweep/2026/lr_1"):
        make_run(runs / name)
    names = lambda *given: list(find_runs(given, runs).values())  # noqa: E731
    assert names() == ["ner", "quick/start", "sst2-a", "sst2-b", "sweep/2026/lr_1"]
    assert names("sst2-*") == ["sst2-a", "sst2-b"]
    assert names("ner", "sst2-*", "ner") == ["ner", "sst2-a", "sst2-b"]
    assert names(str(runs / "ner")) == ["ner"]
    assert names(str(runs)) == names()
    assert names("sweep") == names("lr_1") == names("sweep/2026/lr_*") == ["sweep/2026/lr_1"]


def overwrite(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def as_folder(name: str) -> Callable[[Path], object]:
    return lambda run: ((run / name).unlink(), (run / name).mkdir())


BEAT, LOG = f"logs/live/{START}/beat_00001.json", "logs/rank_00000.log"
DAMAGE: dict[str, Callable[[Path], object]] = {
    **{
        f"{name} {kind}": overwrite(name, content)
        for name in ("config.yaml", "summary.json", "logs/failure.json", BEAT, "metrics.jsonl", "perf.jsonl", LOG)
        for kind, content in {
            "empty": "",
            "binary": b"\x00\xff\xfe\n",
            "a list": "[1]\n",
            "a number": "7\n",
            "null": "null\n",
            "deep": "[" * 2_000 + "\n",
            "other keys": '{"a": 1, "step": "x"}\n',
        }.items()
    },
    "config.yaml a folder": as_folder("config.yaml"),
    "config.yaml gone": lambda run: (run / "config.yaml").unlink(),
    "checkpoints elsewhere": overwrite("config.yaml", "run: {checkpoints: 's3://a:b@c/d'}\n"),
    "checkpoints a number": overwrite("config.yaml", "run: {checkpoints: 7}\n"),
    "run a list": overwrite("config.yaml", "run: [7]\n"),
    "checkpoints a file": overwrite("checkpoints", ""),
    "a summary without why": overwrite("summary.json", '{"ended": "failed"}\n'),
    "a summary with a state of no kind": overwrite("summary.json", '{"ended": ["x"], "why": 1}\n'),
    "a failure without its time": overwrite("logs/failure.json", '{"why": "x"}\n'),
    "a failure in no time": overwrite("logs/failure.json", '{"why": "x", "time": "soon"}\n'),
    "values that are no numbers": overwrite(
        "metrics.jsonl", '{"step": 3, "train/loss": "x", "val/accuracy": [1]}\n{"step": 1e400}\n'
    ),
    "markup": overwrite("metrics.jsonl", '{"step": 3, "val/[/red]": 1}\n'),
    "a huge number": overwrite("perf.jsonl", '{"step": 3, "perf/wall_seconds": 1' + "0" * 400 + "}\n"),
    "perf rows without a clock": overwrite("perf.jsonl", '{"step": 3}\n{"step": 4}\n'),
    "live a file": lambda run: ((run / "logs" / "live").rename(run / "live"), (run / "logs" / "live").touch()),
    "a start of no time": lambda run: (run / BEAT).parent.rename(run / "logs" / "live" / "yesterday"),
    "a beat of another kind": overwrite(BEAT, json.dumps({"rank": "1", "pid": None})),
}


def test_no_damaged_folder_hides_the_others(tmp_path, capsys):
    runs, gone = tmp_path / "runs", {"pid": gone_pid()}
    for index, damage in enumerate(DAMAGE.values()):
        damage(make_run(runs / f"run{index:03d}", rows=2, **(gone if index % 2 else {})))
    make_run(runs / "odd[" / "bold]")
    make_run(runs / "whole", rows=5)
    run(["--runs", str(runs)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["whole", "running", "5/100", "5.0000", "3m"] in rows
    listed = {row[0] for row in rows if row}
    assert {run.name for run in runs.iterdir()} - {"odd["} <= listed
    assert "odd[/bold]" in listed


def test_jobs_that_wait_for_slurm_are_pending(tmp_path):
    make_run(tmp_path / "slurm-12-3", rows=2, pid=gone_pid())
    make_run(tmp_path / "running", rows=2)
    waiting = tmp_path / "sweep" / "lr_1" / "logs"
    waiting.mkdir(parents=True)
    (waiting / "slurm_job.json").write_text('{"job": 14}')
    (tmp_path / "running" / "logs" / "slurm_job.json").write_text('{"job": 15}')
    read_all = {folder: read_status(folder, name) for folder, name in find_runs((), tmp_path).items()}
    jobs = {"12_3": ("BeginTime", "cloze"), "14": ("Priority", "x"), "15": ("None", "x"), "16": ("Resources", "cloze")}
    shown = with_pending(read_all, jobs | {"17": ("Priority", "somebody else's")})
    assert [(status.name, status.state, status.why) for status in shown] == [
        ("running", "running", None),
        ("slurm-12-3", "pending", "SLURM job 12_3: BeginTime"),
        ("sweep/lr_1", "pending", "SLURM job 14: Priority"),
        ("slurm-16", "pending", "SLURM job 16: Resources"),
    ]


def test_the_queue_is_read_in_the_format_of_squeue(tmp_path, capsys, monkeypatch):
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\n[ \"$4\" = --states=PENDING ] && echo '21_4|Resources|cloze'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    make_run(tmp_path / "runs" / "slurm-21-4", pid=gone_pid())
    run(["--runs", str(tmp_path / "runs")])
    out = capsys.readouterr().out
    assert "slurm-21-4: SLURM job 21_4: Resources" in out
    assert out.count("21-4") == 2
    run(["--runs", str(tmp_path / "none")])  # only the job, which has no folder yet
    assert "slurm-21_4: SLURM job 21_4: Resources" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no run yet"):
        run(["--runs", str(tmp_path / "none")])


def test_status_does_not_import_torch():
    program = (
        "import sys, framework.status; sys.exit(bool({'torch', 'lightning', 'hydra', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0


def test_a_run_that_does_not_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["status", "nix", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        status()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("ConfigError: there is no run nix")
