"""What a sweep reached: a table of its jobs, one with the seeds folded, and both as sweep.json and sweep.csv."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from rich.console import Console
from rich.table import Table

from framework.errors import SweepError
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import SEED, Job, Sweep, short_keys
from framework.tracking.metric_names import describe

JSON_FILE = "sweep.json"
CSV_FILE = "sweep.csv"
_LOSS = "train/loss"


def record(job: Job, outcome: Outcome) -> dict[str, Any]:
    """One job in plain values: what it is, how it ended, what it reached.

    `metric` is the task's own, by which its checkpoints are compared, or the training loss of a run that never
    validated; `last` and `best` are its values, None where there is none or it was not finite.
    """
    summary = outcome.summary or {}
    last, best = summary.get("last") or {}, summary.get("best") or {}
    metric = summary.get("best_metric")
    metric = metric if metric in last else _LOSS if _LOSS in last else None
    return {
        "run": job.id,
        "values": dict(job.values),
        "state": outcome.state,
        "why": outcome.why,
        "metric": metric,
        "last": last.get(metric),
        "best": best.get(metric),
        "best_step": best.get("step"),
        "steps": summary.get("steps"),
        "tokens_per_second": summary.get("tokens_per_second"),
        "wall_seconds": summary.get("wall_seconds"),
        "metrics": {key: value for key, value in last.items() if key.startswith("val/")},
    }


def fold_seeds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation (n - 1) over the finished jobs that differ in their seed only.

    Args:
        records: Of all jobs; see `record`.

    Returns:
        For each combination of the other values, in the order of the jobs: `values`, `metric`, and for `last` and
        `best` each `n`, `mean` (None where n is 0) and `deviation` (None where n is below 2).
    """
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for each in records:
        key = tuple((name, value) for name, value in each["values"].items() if name != SEED)
        groups.setdefault(key, []).append(each)
    folded = []
    for key, members in groups.items():
        finished = [each for each in members if each["state"] == "finished"]
        metric = next((each["metric"] for each in finished), None)
        row: dict[str, Any] = {"values": dict(key), "metric": metric, "jobs": len(members)}
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
        sweep: All jobs.
        outcomes: By run id.
        ended: "running" while jobs are, then "finished", "preempted" or "failed".

    Returns:
        The records of all jobs.
    """
    records = [record(job, outcomes[job.id]) for job in sweep.jobs]
    content = {
        "name": sweep.name,
        "ended": ended,
        "swept": list(sweep.keys),
        "jobs": records,
        "seeds": fold_seeds(records) if SEED in sweep.keys else [],
    }
    _replace(sweep.folder / JSON_FILE, json.dumps(content, indent=2) + "\n")
    _replace(sweep.folder / CSV_FILE, _as_csv(sweep, records))
    return records


def progress_line(job: Job, outcome: Outcome, seconds: float) -> str:
    """What is said of a job that has ended: how, what it reached, how long it took."""
    each = record(job, outcome)
    told = f"; {outcome.why}" if outcome.why else ""
    value = f"; {_label([each])} {each['last']:.4f}" if each["last"] is not None else ""
    return f"{outcome.state:9} {job} after {seconds:,.0f} s{value}{told}"


def say(console: Console, sweep: Sweep, text: str) -> None:
    """Prints one line of news of a sweep."""
    console.print(f"{sweep.name}: {text}", highlight=False, markup=False, soft_wrap=True)


def print_results(sweep: Sweep, records: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the table of all jobs, the one with the seeds folded, and where the results lie."""
    console.print(jobs_table(sweep, records))
    for each in records:
        if each["why"]:
            console.print(f"{each['run']}: {each['why']}", highlight=False, markup=False, soft_wrap=True)
    if SEED in sweep.keys:
        console.print(seeds_table(sweep, fold_seeds(records)))
    place = f"sweep folder  {sweep.folder}: {JSON_FILE}, {CSV_FILE}, and a run folder for each job"
    console.print(place, highlight=False, markup=False, soft_wrap=True)


def close_sweep(sweep: Sweep, outcomes: Mapping[str, Outcome], console: Console) -> list[JobReturn]:
    """Writes and prints what the sweep reached.

    Args:
        sweep: Whose jobs all ended, were left in a queue, or were not started because the sweep was asked to leave.
        outcomes: By run id.
        console: Where to print.

    Returns:
        For each job what Hydra's sweepers want of it: the best value of its metric, else the last, None without one.

    Raises:
        SweepError: Jobs failed; it names them.
    """
    states = [outcomes[job.id].state for job in sweep.jobs]
    order = (("failed", "failed"), ("running", "running"), ("preempted", "preempted"), ("waiting", "preempted"))
    ended = next((result for state, result in order if state in states), "finished")
    records = write_results(sweep, outcomes, ended)
    print_results(sweep, records, console)
    failed = [f"{job} ({outcomes[job.id].why})" for job in sweep.jobs if outcomes[job.id].state == "failed"]
    again = "start the same line again: it runs only what is missing, from the newest checkpoints"
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(states)} jobs failed: {'; '.join(failed)}. What the others reached is kept; "
            f"{again}."
        )
    if ended == "preempted":
        console.print(f"the sweep left before its end; {again}.", highlight=False, soft_wrap=True)
    return [
        JobReturn(overrides=list(job.overrides), status=JobStatus.COMPLETED, _return_value=_objective(each))
        for job, each in zip(sweep.jobs, records, strict=True)
    ]


def _objective(each: Mapping[str, Any]) -> float | None:
    return each["last"] if each["best"] is None else each["best"]


def jobs_table(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> Table:
    """Lays out one row a job."""
    table = Table(title=f"{sweep.name}: {len(records)} jobs", title_justify="left", title_style="bold")
    for name in short_keys(sweep.keys).values():
        table.add_column(name)
    table.add_column("state")
    name = _label(records)
    for title in (name, f"best {name}", "at step", "steps", "tokens/s"):
        table.add_column(title, justify="right")
    for each in records:
        speed = each["tokens_per_second"]
        table.add_row(
            *(each["values"][key] for key in sweep.keys),
            each["state"],
            _number(each["last"]),
            _number(each["best"]),
            _count(each["best_step"]),
            _count(each["steps"]),
            f"{speed:,.0f}" if speed else "",
        )
    return table


def seeds_table(sweep: Sweep, folded: Sequence[Mapping[str, Any]]) -> Table:
    """Lays out one row a combination: mean ± sample standard deviation over its seeds."""
    table = Table(title="mean ± standard deviation over seeds", title_justify="left", title_style="bold")
    keys = [key for key in sweep.keys if key != SEED]
    for title in short_keys(keys).values():
        table.add_column(title)
    name = _label(folded)
    for title in ("seeds", name, f"best {name}"):
        table.add_column(title, justify="right")
    for row in folded:
        missing = row["jobs"] - row["last"]["n"]
        table.add_row(
            *(row["values"][key] for key in keys),
            f"{row['last']['n']}" + (f" of {row['jobs']}" if missing else ""),
            *(_spread(row[name]) for name in ("last", "best")),
        )
    return table


def _label(records: Sequence[Mapping[str, Any]]) -> str:
    """The metric in words; of different ones (a swept task) nothing but that."""
    metrics = {each["metric"] for each in records if each["metric"] is not None}
    if len(metrics) != 1:
        return "metric"
    (metric,) = metrics
    return f"{metric.partition('/')[0]} {describe(metric).label}"


def _spread(values: Mapping[str, Any]) -> str:
    if values["deviation"] is None:
        return _number(values["mean"])
    return f"{values['mean']:.4f} ± {values['deviation']:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _as_csv(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> str:
    """One row a job: swept values, then what the record has beside its groups of values."""
    plain = ["run", "state", "metric", "last", "best", "best_step", "steps", "tokens_per_second", "wall_seconds", "why"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*sweep.keys, *plain])
    for each in records:
        writer.writerow([*(each["values"][key] for key in sweep.keys), *(each[name] for name in plain)])
    return stream.getvalue()


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
