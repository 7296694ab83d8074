"""Tests of the output of sweeps: order of tables, failure reasons, jobs interrupted at their start, groups."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from framework.sweeps.closing import jobs_table, print_results, seeds_table
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Job, Sweep
from framework.sweeps.results import fold_seeds, record
from tests.support.sweeps.sweeping import NAMES, results, starts, states


def job(folder: Path, rate: str, seed: int, mode: str, metric: str, value: float | None) -> tuple[Job, Outcome]:
    values = {"optimizer.lr": rate, "seed": str(seed)}
    made = Job(folder / f"lr_{rate}-seed_{seed}", values, (), {}, mode)
    if value is None:
        return made, Outcome("failed", "exit code 1")
    summary = {"best_metric": metric, "last": {metric: value}, "best": {metric: value, "step": 3}, "steps": 1234567}
    return made, Outcome("finished", None, summary)


def printed_tables(tmp_path: Path, mode: str, metric: str, width: int) -> list[str]:
    """Prints the tables of jobs with two seeds per learning rate, one of which failed, and returns the lines."""
    given = [
        ("1e-4", 0, 0.5),
        ("1e-4", 1, 0.7),
        ("1e-3", 0, 0.1),
        ("1e-3", 1, 0.2),
        ("1e-2", 0, None),
        ("1e-2", 1, 0.9),
    ]
    jobs = [job(tmp_path, rate, seed, mode, metric, value) for rate, seed, value in given]
    sweep_record = Sweep(tmp_path, ("optimizer.lr", "seed"), tuple(each for each, _ in jobs))
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_results(sweep_record, [record(each, outcome) for each, outcome in jobs], console)
    return console.export_text().splitlines()


def cells(lines: list[str], title: str) -> list[list[str]]:
    begin = next(number for number, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[begin:]:
        if line.startswith("└"):
            break
        if line.startswith("│"):
            rows.append([cell.strip() for cell in line.strip("│").split("│")])
    return rows


@pytest.mark.parametrize(
    ("mode", "metric", "order"),
    [
        ("min", "val/loss", ["0.1000", "0.2000", "0.5000", "0.7000", "0.9000", ""]),
        ("max", "val/accuracy", ["0.9000", "0.7000", "0.5000", "0.2000", "0.1000", ""]),
        ("max", "train/loss", ["0.1000", "0.2000", "0.5000", "0.7000", "0.9000", ""]),
    ],
)
def test_tables_are_sorted_and_the_best_is_marked(tmp_path, mode, metric, order):
    lines = printed_tables(tmp_path, mode, metric, 200)
    rows = cells(lines, tmp_path.name + ": 6 jobs")
    assert [row[4] for row in rows] == order
    assert [row[0] for row in rows] == ["*", "", "", "", "", ""]
    means = cells(lines, "mean ±")
    # Means: 0.6 for 1e-4, 0.15 for 1e-3, and 0.9 for the one remaining job of 1e-2.
    best_first = ["1e-2", "1e-4", "1e-3"] if order[0] == "0.9000" else ["1e-3", "1e-4", "1e-2"]
    assert [row[1] for row in means] == best_first and [row[0] for row in means] == ["*", "", ""]


def test_numbers_are_whole_in_a_narrow_terminal(tmp_path):
    text = "\n".join(printed_tables(tmp_path, "min", "val/loss", 40))
    assert "…" not in text and text.count("1,234,567") == 5 and "0.6000 ± 0.1414" in text


def test_jobs_of_different_metrics_keep_their_order(tmp_path):
    jobs = [job(tmp_path, "1", 0, "min", "val/loss", 3.0), job(tmp_path, "2", 0, "max", "val/accuracy", 0.5)]
    records = [record(each, outcome) for each, outcome in jobs]
    sweep_record = Sweep(tmp_path, ("optimizer.lr", "seed"), tuple(each for each, _ in jobs))
    for table in (jobs_table(sweep_record, records), seeds_table(sweep_record, fold_seeds(records))):
        assert list(table.columns[0].cells) == ["", ""]


def test_a_reason_of_failures_is_told_once(sweep):
    sweep.roles = dict(zip(NAMES, ("finish", "refuse", "refuse", "die"), strict=True))
    ended = sweep()
    assert (ended.out + ended.err).count("rows.csv, row 7: no label") == 1
    assert (ended.out + ended.err).count("SIGKILL") == 1
    both = "optimizer.lr=0.001, seed=1 and optimizer.lr=0.002, seed=0 (exit code 2; DataError: the file rows.csv"
    assert both in ended.err and "3 of 4 jobs failed" in ended.err
    assert f"see runs/mine/{NAMES[1]}/logs/output.log" in ended.out


def test_jobs_that_were_interrupted_at_their_start_are_waiting(sweep):
    sweep.roles = {NAMES[0]: "begin"}

    def interrupt() -> None:
        while not (Path("runs/mine") / NAMES[0] / "waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    ended = sweep()
    assert (ended.code, results()["ended"]) == (0, "preempted")
    assert set(states().values()) == {"waiting"} and "The sweep stopped before its end" in ended.out
    sweep.roles = {}
    assert sweep().code == 0 and len(starts(NAMES[0])) == 2


def test_experiments_are_swept_with_keys_that_only_they_have(sweep):
    experiments = "experiment=finetune_sst2,finetune_pairs"
    sweep.line = ["--multirun", experiments, "init_from=null", "tokenizer=folder", "logger=none"]
    ended = sweep("tokenizer.path=x", "data.train=a.tsv", "data.validation=b.tsv")
    assert (ended.code, ended.err) == (0, "")
    assert [each["values"] for each in results()["jobs"]] == [
        {"experiment": "finetune_sst2"},
        {"experiment": "finetune_pairs"},
    ]
    ended = sweep("data.trian=a.tsv")
    assert ended.code == 2 and "unknown config key `data.trian`. Did you mean `train`?" in ended.err
