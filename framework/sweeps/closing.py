"""Ends a sweep: prints tables of its jobs and of means over seeds, best first, and raises if jobs failed."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from framework.errors import SweepError
from framework.sweeps.benchmark import benchmark_of, benchmark_table, published_lines, scores_of
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import SEED, Sweep, short_keys
from framework.sweeps.results import CSV_FILE, fold_seeds, metric_label, objective, write_results
from framework.tracking.console import print_line
from framework.tracking.run_files import SWEEP_FILE

_MARK = "*"
"""Marks the best row."""


def close_sweep(sweep: Sweep, outcomes: Mapping[str, Outcome], console: Console) -> list[JobReturn]:
    """Writes the results of a sweep and prints its tables.

    Args:
        sweep: Sweep without running jobs of this start: each job has ended, is in a queue, or was not started.
        outcomes: Outcomes by run id.
        console: Console for the tables.

    Returns:
        One value per job for Hydra's sweepers: the best value of its metric, else the last, else None.

    Raises:
        SweepError: Jobs failed; the message names them.
    """
    states = [outcomes[job.id].state for job in sweep.jobs]
    order = {"failed": "failed", "running": "running", "pending": "running"}
    order |= {"preempted": "preempted", "waiting": "preempted"}
    ended = next((result for state, result in order.items() if state in states), "finished")
    records = write_results(sweep, outcomes, ended)
    print_results(sweep, records, console)
    failed: dict[str | None, list[str]] = {}
    for job in sweep.jobs:
        if outcomes[job.id].state == "failed":
            failed.setdefault(outcomes[job.id].why, []).append(str(job))
    again = "Start the same command again: it runs only the missing jobs, from their newest checkpoints"
    if failed:
        reasons = "; ".join(f"{' and '.join(jobs)} ({why})" for why, jobs in failed.items())
        raise SweepError(
            f"{states.count('failed')} of {len(states)} jobs failed: {reasons}. "
            f"The results of the other jobs are kept. {again}."
        )
    if ended == "preempted":
        print_line(f"The sweep stopped before its end. {again}.", console)
    return [
        JobReturn(overrides=list(job.overrides), status=JobStatus.COMPLETED, _return_value=objective(each))
        for job, each in zip(sweep.jobs, records, strict=True)
    ]


def print_results(sweep: Sweep, records: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the table of all jobs, that of means over seeds, that of a benchmark, and the path of the results."""
    _print_untruncated(console, jobs_table(sweep, records))
    if SEED in sweep.keys:
        _print_untruncated(console, seeds_table(sweep, fold_seeds(records)))
    benchmark = benchmark_of(sweep.jobs)
    if benchmark is not None:
        rows = scores_of(records, sweep.jobs)
        _print_untruncated(console, benchmark_table(benchmark["name"], rows, sweep.missing))
        for line in published_lines(benchmark, rows):
            print_line(line, console)
    results = f"sweep folder  {sweep.folder}: {SWEEP_FILE}, {CSV_FILE}, and a run folder for each job"
    print_line(results, console)


def _print_untruncated(console: Console, table: Table) -> None:
    """Prints a table without truncation; a narrow terminal wraps its lines."""
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    width, console.width = console.width, max(console.width, needed)
    console.print(table)
    console.width = width


def jobs_table(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> Table:
    """Builds a table with one row per job: finished jobs first, the best one on top and marked."""
    name = metric_label(records)
    values = [objective(each) if each["state"] == "finished" else None for each in records]
    table = _table(f"{sweep.name}: {len(records)} jobs", [*short_keys(sweep.keys).values(), "state"])
    _add_numbers(table, name, f"best {name}", "at step", "steps", "tokens/s")
    for mark, each in _best_first(records, values):
        speed = each["tokens_per_second"]
        table.add_row(
            mark,
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
    """Builds a table with one row per combination, best mean first: mean ± sample standard deviation over seeds."""
    keys = [key for key in sweep.keys if key != SEED]
    name = metric_label(folded)
    means = [objective({each: row[each]["mean"] for each in ("last", "best")}) for row in folded]
    table = _table("mean ± standard deviation over seeds", [*short_keys(keys).values()])
    _add_numbers(table, "seeds", name, f"best {name}")
    for mark, row in _best_first(folded, means):
        missing = row["jobs"] - row["last"]["n"]
        table.add_row(
            mark,
            *(row["values"][key] for key in keys),
            f"{row['last']['n']}" + (f" of {row['jobs']}" if missing else ""),
            *(_spread(row[name]) for name in ("last", "best")),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    """Builds a table with one column for the mark and one for each text."""
    table = Table(title=f"{title}, {_MARK} the best", title_justify="left", title_style="bold")
    for name in ("", *columns):
        table.add_column(name)
    return table


def _add_numbers(table: Table, *titles: str) -> None:
    """Adds columns of numbers; each title has one word per line to save width."""
    for title in titles:
        table.add_column(title.replace(" ", "\n"), justify="right")


def _best_first(
    rows: Sequence[Mapping[str, Any]], values: Sequence[float | None]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Sorts rows by value, rows without a value last, and marks the best.

    Rows with different metrics cannot be compared and keep their order, without a mark.
    """
    if len({each["metric"] for each, value in zip(rows, values, strict=True) if value is not None}) != 1:
        return [("", each) for each in rows]
    sign = 1 if next(e["better"] for e, value in zip(rows, values, strict=True) if value is not None) == "lower" else -1
    order = sorted(range(len(rows)), key=lambda index: (values[index] is None, sign * (values[index] or 0.0)))
    return [(_MARK if rank == 0 else "", rows[index]) for rank, index in enumerate(order)]


def _spread(values: Mapping[str, Any]) -> str:
    if values["deviation"] is None:
        return _number(values["mean"])
    return f"{_number(values['mean'])} ± {_number(values['deviation'])}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3e}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
