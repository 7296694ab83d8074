"""Sweeps over the tasks of a benchmark such as GLUE: missing files, the order of jobs, and the table of scores.

A job belongs to a benchmark if its config has `benchmark` (`framework.config.schema.BenchmarkConfig`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import open_dict
from rich.table import Table

from framework.errors import ConfigError
from framework.sweeps.plan import Job, quoted

_SPLITS = ("train", "validation", "test")
_INIT_FROM = "init_from"
_PERCENT = 100.0


def without_missing_files(jobs: Sequence[Job]) -> tuple[list[Job], dict[str, str]]:
    """Separates the tasks of a benchmark whose files are missing.

    Returns:
        Jobs that have their files or belong to no benchmark, and the first missing file of each other task.

    Raises:
        ConfigError: No job has its files.
    """
    kept, missing = [], {}
    for job in jobs:
        benchmark = job.config.get("benchmark")
        file = None if not benchmark else _missing_file(job.config["data"])
        if benchmark and file is not None:
            missing[str(benchmark["task"])] = file
        else:
            kept.append(job)
    if missing and not kept:
        raise ConfigError(
            f"no task has its files; {', '.join(missing.values())} do not exist. At least one task needs them. Correct "
            "data.folder."
        )
    return kept, missing


def _missing_file(data: Mapping[str, Any]) -> str | None:
    files = (data.get(split) for split in _SPLITS)
    return next((str(file) for file in files if file is not None and not Path(file).exists()), None)


def with_starts(jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """Lets jobs with `benchmark.starts_from` start from the run of that task, and moves them behind it.

    That job has the same values of all swept keys but one, the key of the task. A job without such a job in the sweep
    starts from `init_from`.

    Returns:
        The jobs, and one line about each task that starts from another one or lacks it.
    """
    independent, dependent, lines = [], [], dict[str, None]()
    for job in jobs:
        benchmark = job.config.get("benchmark") or {}
        first = benchmark.get("starts_from")
        if first is None:
            independent.append(job)
            continue
        parent = next((each for each in jobs if _task(each) == first and _differ_in_task(job, each)), None)
        if parent is None:
            independent.append(job)
            lines[f"{benchmark['task']} starts from init_from, because this sweep does not train {first}"] = None
        else:
            dependent.append(_started_from(job, parent))
            lines[f"{benchmark['task']} starts from the runs of {first}"] = None
    return [*independent, *dependent], list(lines)


def _task(job: Job) -> str | None:
    benchmark = job.config.get("benchmark")
    return str(benchmark["task"]) if benchmark else None


def _differ_in_task(one: Job, other: Job) -> bool:
    return sum(one.values[key] != other.values[key] for key in one.values) == 1


def _started_from(job: Job, parent: Job) -> Job:
    """Returns a job that starts from the run of another one; its own `init_from` serves for its check."""
    folder = str(parent.folder)
    composed = job.composed
    if composed is not None:
        composed = composed.copy()
        with open_dict(composed):
            composed[_INIT_FROM] = folder
    return replace(
        job,
        overrides=(*job.overrides, f"{_INIT_FROM}={quoted(folder)}"),
        config={**job.config, _INIT_FROM: folder},
        composed=composed,
        starts_from=parent.id,
        checked_init=job.config[_INIT_FROM],
    )


def scores_of(records: Sequence[Mapping[str, Any]], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Computes the scores of each task over its finished jobs, in the order of the tasks.

    Args:
        records: Records of all jobs (`framework.sweeps.results.record`).
        jobs: The jobs.

    Returns:
        For each task `task`, `in_average`, `jobs`, `finished`, and `metrics`: for each name in the table the `mean` and
        the sample `deviation` of the last value, times 100; None without values, or with one. `score` is the mean of
        the means of the metrics.
    """
    by_task: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for each, job in zip(records, jobs, strict=True):
        benchmark = job.config.get("benchmark")
        if benchmark:
            by_task.setdefault(str(benchmark["task"]), []).append((benchmark, each))
    rows = []
    for task, members in by_task.items():
        benchmark = members[0][0]
        finished = [each["metrics"] for _, each in members if each["state"] == "finished"]
        metrics = {name: _spread([last.get(key) for last in finished]) for name, key in benchmark["metrics"].items()}
        means = [each["mean"] for each in metrics.values() if each["mean"] is not None]
        rows.append(
            {
                "task": task,
                "in_average": benchmark.get("in_average", True),
                "jobs": len(members),
                "finished": len(finished),
                "metrics": metrics,
                "score": fmean(means) if len(means) == len(metrics) else None,
            }
        )
    return rows


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    numbers = [_PERCENT * value for value in values if value is not None]
    return {
        "mean": fmean(numbers) if numbers else None,
        "deviation": stdev(numbers) if len(numbers) > 1 else None,
    }


def benchmark_of(jobs: Sequence[Job]) -> Mapping[str, Any] | None:
    """Returns the config of the benchmark to which the jobs belong; None if they belong to none, or to several."""
    found = [job.config.get("benchmark") for job in jobs]
    names = {each["name"] if each else None for each in found}
    return found[0] if len(names) == 1 else None


def benchmark_table(name: str, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> Table:
    """Builds a table with the scores of each task, and the average.

    Args:
        name: Name of the benchmark.
        rows: Result of `scores_of`.
        missing: Missing file of each task that was not run.
    """
    table = Table(title=f"{name}: scores of the last step, times 100", title_justify="left", title_style="bold")
    for title in ("task", "metric", "seeds", "mean ± standard deviation"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right")
    for row in rows:
        title, seeds = row["task"], str(row["finished"])
        seeds += f" of {row['jobs']}" if row["finished"] < row["jobs"] else ""
        for metric, each in row["metrics"].items():
            table.add_row(title, metric, seeds, _text(each))
            title = seeds = ""
    for task, file in missing.items():
        table.add_row(task, "", "", f"no {file}")
    table.add_section()
    included = [row for row in rows if row["in_average"] and row["score"] is not None]
    if included:
        average = fmean(row["score"] for row in included)
        table.add_row("average", f"of {len(included)} tasks", "", f"{average:.1f}")
    return table


def published_lines(benchmark: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a line with the published averages, if there are any, and one about what the average here leaves out."""
    published = benchmark.get("published") or {}
    if not published:
        return
    yield "published   " + "; ".join(f"{name} {value:.1f}" for name, value in published.items())
    excluded = [row["task"] for row in rows if not row["in_average"]]
    text = "published averages are of all tasks of the benchmark, most of them tuned for each task"
    yield f"            {text}" + (f"; the average leaves out {', '.join(excluded)}" if excluded else "")


def _text(values: Mapping[str, float | None]) -> str:
    if values["mean"] is None:
        return ""
    return f"{values['mean']:.1f}" + ("" if values["deviation"] is None else f" ± {values['deviation']:.1f}")
