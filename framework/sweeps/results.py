"""Collects the results of a sweep: records, sweep.json, sweep.csv and progress lines. Tables are in closing.py."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from framework.files import write_atomic
from framework.sweeps.benchmark import benchmark_of, scores_of
from framework.sweeps.outcome import Outcome, output_file
from framework.sweeps.plan import SEED, Job, Sweep
from framework.tracking.console import print_line
from framework.tracking.metric_names import describe
from framework.tracking.run_files import BEST_METRIC, SWEEP_FILE

CSV_FILE = "sweep.csv"
_LOSS = "train/loss"


def record(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Returns a job, its outcome and its results as a dictionary of JSON values.

    `metric` is the name of the task's own metric, by which checkpoints are compared, or of the training loss if the run
    never validated. `better` is "lower" or "higher". `last` and `best` are values of the metric; None if there is no
    value or if it was not finite.
    """
    summary = outcome.summary or {}
    last, best = summary.get("last") or {}, summary.get("best") or {}
    metric = summary.get(BEST_METRIC)
    metric = metric if metric in last else _LOSS if _LOSS in last else None
    return {
        "run": job.id,
        "values": dict(job.values),
        "state": outcome.state,
        "why": outcome.why,
        "metric": metric,
        "better": "lower" if metric == _LOSS or job.best_mode == "min" else "higher",
        "last": last.get(metric),
        "best": best.get(metric),
        "best_step": best.get("step"),
        "steps": summary.get("steps"),
        "tokens_per_second": summary.get("tokens_per_second"),
        "wall_seconds": summary.get("wall_seconds"),
        "metrics": {key: value for key, value in last.items() if key.startswith(("val/", "test/"))},
    }


def fold_seeds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Computes mean and sample standard deviation (n - 1) over the finished jobs that differ only in their seed.

    Args:
        records: Records of all jobs; see `record`.

    Returns:
        One row for each combination of the other values, in the order of the jobs: `values`, `metric`, and for `last`
        and `best` each `n`, `mean` (None if n is 0) and `deviation` (None if n is below 2).
    """
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for each in records:
        key = tuple((name, value) for name, value in each["values"].items() if name != SEED)
        groups.setdefault(key, []).append(each)
    folded = []
    for key, members in groups.items():
        finished = [each for each in members if each["state"] == "finished"]
        first = next(iter(finished), members[0])
        metric = first["metric"] if finished else None
        row: dict[str, Any] = {"values": dict(key), "metric": metric, "better": first["better"], "jobs": len(members)}
        for name in ("last", "best"):
            numbers = [each[name] for each in finished if each[name] is not None]
            row[name] = {
                "n": len(numbers),
                "mean": fmean(numbers) if numbers else None,
                "deviation": stdev(numbers) if len(numbers) > 1 else None,
            }
        folded.append(row)
    return folded


def write_results(sweep: Sweep, outcomes: Mapping[str, Outcome], ended: str) -> list[dict[str, Any]]:
    """Replaces sweep.json and sweep.csv.

    Args:
        sweep: Sweep with all jobs.
        outcomes: Outcomes by run id.
        ended: "running" while jobs run, then "finished", "preempted" or "failed".

    Returns:
        Records of all jobs.
    """
    records = [record(job, outcomes[job.id]) for job in sweep.jobs]
    content: dict[str, Any] = {
        "name": sweep.name,
        "ended": ended,
        "swept": list(sweep.keys),
        "jobs": records,
        "seeds": fold_seeds(records) if SEED in sweep.keys else [],
    }
    if benchmark_of(sweep.jobs) is not None:
        content["tasks"], content["missing"] = scores_of(records, sweep.jobs), dict(sweep.missing)
    write_atomic(sweep.folder / SWEEP_FILE, json.dumps(content, indent=2) + "\n")
    write_atomic(sweep.folder / CSV_FILE, _as_csv(sweep, records))
    return records


def progress_line(job: Job, outcome: Outcome, seconds: float) -> str:
    """Describes a job that has ended: state, seconds, value of the metric."""
    each = record(job, outcome)
    # The final error of the sweep contains the reasons of all failures.
    note = f"; see {output_file(job)}" if outcome.state == "failed" else f"; {outcome.why}" if outcome.why else ""
    value = f"; {metric_label([each])} {each['last']:.4f}" if each["last"] is not None else ""
    return f"{outcome.state:9} {job} after {seconds:,.0f} s{value}{note}"


def print_progress(console: Console, sweep: Sweep, text: str) -> None:
    """Prints one progress line of a sweep."""
    print_line(f"{sweep.name}: {text}", console)


def objective(each: Mapping[str, Any]) -> float | None:
    """Returns the value by which a record is ranked: the best value of its metric, else the last."""
    return each["last"] if each["best"] is None else each["best"]


def metric_label(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the name of the metric, or "metric" if the records have different metrics (a swept task)."""
    metrics = {each["metric"] for each in records if each["metric"] is not None}
    if len(metrics) != 1:
        return "metric"
    (metric,) = metrics
    return f"{metric.partition('/')[0]} {describe(metric).label}"


def _as_csv(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> str:
    """Formats the records as CSV with one row per job: the swept values, then the fields that are single values."""
    names = ["run", "state", "metric", "last", "best", "best_step", "steps", "tokens_per_second", "wall_seconds", "why"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*sweep.keys, *names])
    for each in records:
        writer.writerow([*(each["values"][key] for key in sweep.keys), *(each[name] for name in names)])
    return stream.getvalue()
