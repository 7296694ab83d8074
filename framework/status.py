"""Shows the progress of runs: `python -m framework.status [RUN ...]`, a table that refreshes itself in a terminal.

RUN is an id, a pattern of ids ('sst2-*'), a run folder or a folder of runs. Without RUN all runs in the folder `--runs`
and its sub-folders, such as sweeps, are shown. Only folders are read, so it works on any host that sees them, during
and after a run, and it imports no torch. Jobs that wait in the queue of SLURM are shown as pending.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from framework.config.option_command import OptionParser, option_command
from framework.errors import ConfigError
from framework.sweeps.slurm_queue import pending_jobs
from framework.tracking.console import open_console
from framework.tracking.metric_names import describe
from framework.tracking.run_files import JOB_FILE, read_object
from framework.tracking.run_status import (
    DAMAGED,
    LOST,
    RUNNING,
    SILENT,
    UNREADABLE,
    RunStatus,
    is_run,
    iterate_runs,
    read_status,
)

PENDING = "pending"

_COLOURS = {
    RUNNING: "green",
    "finished": "blue",
    "pruned": "blue",
    "failed": "red",
    LOST: "red",
    DAMAGED: "red",
    UNREADABLE: "red",
    SILENT: "yellow",
    PENDING: "cyan",
}
_MAX_RANKS = 8
_JOB_NAME = "cloze"
"""Name of jobs of slurm/train.sbatch, which have no run folder before they start."""

_QUEUE_SECONDS = 30.0
"""Interval between two queries of SLURM's queue."""


def find_runs(names: Sequence[str], runs: Path) -> dict[Path, str]:
    """Returns the selected run folders.

    Args:
        names: Ids, patterns or folders; empty: all runs. The folder may contain none.
        runs: Folder of the runs.

    Returns:
        Displayed name by folder: the path below the folder of the runs.

    Raises:
        ConfigError: No run matches a name.
    """
    if not names:
        return {each: _display_name(each, runs) for each in iterate_runs(runs)}
    selected: dict[Path, str] = {}
    for name in names:
        folder = Path(name)
        if folder.is_dir():
            folders = [folder] if is_run(folder) else list(iterate_runs(folder))
        elif folder.is_absolute():
            folders = []
        else:
            folders = _matching(name, runs)
        if not folders:
            raise ConfigError(f"there is no run {name} in {runs}. Give an id, a pattern or a run folder, or --runs.")
        selected |= {each: _display_name(each, runs) for each in folders}
    return selected


def _matching(pattern: str, runs: Path) -> list[Path]:
    """Returns the runs whose path, or else whose name, matches a pattern; for a matching folder, the runs in it."""
    try:
        matches = sorted(runs.glob(pattern)) or [run for run in iterate_runs(runs) if run.match(pattern)]
    except ValueError:
        return []  # not a valid pattern
    return [run for match in matches for run in ([match] if is_run(match) else iterate_runs(match))]


def _display_name(folder: Path, runs: Path) -> str:
    return str(folder.relative_to(runs)) if folder.is_relative_to(runs) else folder.name


class Queue:
    """Jobs that wait in SLURM's queue, refreshed at intervals."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[str, str]] = {}
        self._queried = -_QUEUE_SECONDS

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Returns the pending reason and the job name by job number."""
        if shutil.which("squeue") is not None and time.monotonic() - self._queried >= _QUEUE_SECONDS:
            self._jobs, self._queried = pending_jobs(seconds=5.0), time.monotonic()
        return self._jobs


def with_pending(statuses: Mapping[Path, RunStatus], jobs: Mapping[str, tuple[str, str]]) -> list[RunStatus]:
    """Marks runs whose job waits in the queue, and adds a row for each job without a run folder."""
    rest = dict(jobs)
    rows = []
    for folder, status in statuses.items():
        number = _job_of(folder)
        if number in rest and status.state != RUNNING:
            why = f"SLURM job {number}: {rest.pop(number)[0]}"
            status = replace(status, state=PENDING, why=why)
        rows.append(status)
    new = [(number, reason) for number, (reason, name) in rest.items() if name == _JOB_NAME]
    return rows + [RunStatus(f"slurm-{number}", PENDING, f"SLURM job {number}: {reason}") for number, reason in new]


def _job_of(folder: Path) -> str:
    """Returns the number of a run's SLURM job: from the sweep that submitted it, or from the run id."""
    number = read_object(folder / "logs" / JOB_FILE).get("job")
    if number is None and folder.name.startswith("slurm-"):
        number = folder.name.removeprefix("slurm-").replace("-", "_")
    return str(number)


def status_table(statuses: Sequence[RunStatus]) -> Table:
    """Builds a table with one row per run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    is_private = any(status.epsilon is not None for status in statuses)
    epsilon = ("epsilon",) if is_private else ()
    for name in ("run", "state", "step", "loss", *epsilon, "tokens/s", "left", "checkpoint", "validation"):
        is_text = name in ("run", "state", "validation")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "validation")
    for status in statuses:
        table.add_row(
            Text(status.name),
            Text(status.state, style=_COLOURS.get(status.state, "default")),
            _of(status.step, status.max_steps),
            _number(status.loss, ".4f"),
            *([_number(status.epsilon, ".2f")] if is_private else []),
            _number(status.tokens_per_second, ",.0f"),
            _duration(status.seconds_left),
            _checkpoint(status),
            Text(_validation(status)),
        )
    return table


def troubles(statuses: Sequence[RunStatus]) -> list[Text]:
    """Describes why runs failed, with the last log lines of their ranks, and why pending ones wait."""
    lines = []
    for status in statuses:
        if status.state == PENDING:
            lines.append(Text(f"{status.name}: {status.why}"))
        elif status.ended_badly:
            lines.append(Text(f"{status.name}: {status.state}, {status.why}", style="bold"))
            by_rank = list(status.last_lines.items())[:_MAX_RANKS]
            lines += (Text(f"  {line}" if line else f"  rank {rank} wrote nothing") for rank, line in by_rank)
            if len(status.last_lines) > _MAX_RANKS:
                lines.append(Text(f"  and {len(status.last_lines) - _MAX_RANKS} more ranks, see logs/"))
    return lines


def _of(step: int | None, max_steps: int | None) -> str:
    if step is None:
        return ""
    return f"{step:,}/{max_steps:,}" if max_steps is not None else f"{step:,}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    """Formats a duration in its two largest units: 42s, 7m, 3h05m, 2d04h."""
    if seconds is None:
        return ""
    hours, minutes = divmod(int(seconds) // 60, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"


def _checkpoint(status: RunStatus) -> str:
    if status.checkpoint_step is None:
        return ""
    age = f" {_duration(status.checkpoint_age)} ago" if status.checkpoint_age is not None else ""
    return f"{status.checkpoint_step:,}{age}"


def _validation(status: RunStatus) -> str:
    """Shows the metric that ranks the checkpoints; if it is unknown, the first that is not a loss, else the loss."""
    values = status.validation
    first = [key for key in values if not key.endswith("loss")] or list(values)
    metric = status.best_metric if status.best_metric in values else next(iter(first), None)
    return "" if metric is None else f"{describe(metric).label} {values[metric]:.4f}"


def view(folders: Mapping[Path, str], queue: Queue, is_everything: bool) -> RenderableType:
    """Returns the current table and problems.

    Args:
        folders: Displayed name by run folder.
        queue: Jobs that wait in SLURM's queue.
        is_everything: True shows all runs, and also jobs without a run folder.

    Raises:
        ConfigError: There is no run and no pending job.
    """
    jobs = queue.jobs()
    read = {folder: read_status(folder, name) for folder, name in folders.items()}
    statuses = with_pending(read, jobs)
    selected = statuses if is_everything else statuses[: len(read)]
    if not selected:
        raise ConfigError(
            "there is no run yet. The table needs at least one. Start one, or give the folder of the runs with --runs."
        )
    return Group(status_table(selected), *troubles(selected))


def _options() -> OptionParser:
    parser = OptionParser("python -m framework.status [RUN ...] [OPTION ...]", "show the progress of runs")
    parser.add_argument("run", nargs="*", metavar="RUN", help="id, pattern of ids, run folder or folder of runs (all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of the runs (runs)")
    parser.add_argument("--once", action="store_true", help="show the table once, also in a terminal")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="time between two updates (2)")
    return parser


@option_command(_options)
def status(given: argparse.Namespace) -> None:
    """Shows the table once; in a terminal updates it until Ctrl-C."""
    console = open_console()
    queue = Queue()

    def now() -> RenderableType:
        return view(find_runs(given.run, given.runs), queue, not given.run)

    if given.once or not console.is_terminal:
        console.print(now())
        return
    try:
        with Live(now(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(given.every)
                live.update(now(), refresh=True)  # includes runs that started in the meantime
    except KeyboardInterrupt:
        return


run = status.run


if __name__ == "__main__":
    status()
