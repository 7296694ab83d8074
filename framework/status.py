"""Where runs stand: `python -m framework.status [RUN ...]`, a table that renews itself in a terminal.

RUN is an id, a pattern of ids ('sst2-*') or a run folder; none: all runs of the folder `--runs`. Only their folders are
read, so it works from any host that sees them, during and after a run.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from framework.config.run_folder import saved_checkpoints_folder
from framework.errors import ConfigError
from framework.tracking.console import open_console
from framework.tracking.metric_names import describe
from framework.tracking.run_status import LOST, RUNNING, SILENT, RunStatus, is_run, read_status

_COLOURS = {RUNNING: "green", "finished": "blue", "pruned": "blue", "failed": "red", LOST: "red", SILENT: "yellow"}
_MAX_RANKS = 8


def find_runs(names: Sequence[str], runs: Path) -> list[Path]:
    """The run folders that are meant.

    Args:
        names: Ids, patterns or folders; empty: all runs.
        runs: Folder of the runs.

    Raises:
        ConfigError: A name is that of no run.
    """
    found: list[Path] = []
    for name in names or ["*"]:
        folder = Path(name)
        if is_run(folder):
            folders = [folder]
        elif folder.is_dir():
            folders = sorted(filter(is_run, folder.iterdir()))
        else:
            folders = [] if folder.is_absolute() else sorted(filter(is_run, runs.glob(name)))
        if not folders:
            raise ConfigError(f"there is no run {name} in {runs}; give an id, a pattern or a run folder, or --runs.")
        found += (each for each in folders if each not in found)
    return found


def status_table(statuses: Sequence[RunStatus]) -> Table:
    """One row a run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    for name in ("run", "state", "step", "loss", "tokens/s", "left", "checkpoint", "validation"):
        is_text = name in ("run", "state", "validation")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "validation")
    for status in statuses:
        table.add_row(
            status.name,
            Text(status.state, style=_COLOURS.get(status.state, "default")),
            _of(status.step, status.max_steps),
            _number(status.loss, ".4f"),
            _number(status.tokens_per_second, ",.0f"),
            _duration(status.seconds_left),
            _checkpoint(status),
            _validation(status),
        )
    return table


def troubles(statuses: Sequence[RunStatus]) -> list[Text]:
    """For each run that ended badly why, and what its ranks wrote last."""
    lines = []
    for status in statuses:
        if status.ended_badly:
            lines.append(Text(f"{status.name}: {status.state}, {status.why}", style="bold"))
            shown = list(status.last_lines.items())[:_MAX_RANKS]
            lines += (Text(f"  {line}" if line else f"  rank {rank} wrote nothing") for rank, line in shown)
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
    """In the two largest units: 42s, 7m, 3h05m, 2d04h."""
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
    """The first metric that is no loss, or the loss."""
    shown = [key for key in status.validation if not key.endswith("loss")] or list(status.validation)
    return f"{describe(shown[0]).label} {status.validation[shown[0]]:.4f}" if shown else ""


def view(folders: Sequence[Path]) -> RenderableType:
    """The table and the troubles, as they are now."""
    statuses = [read_status(folder, saved_checkpoints_folder(folder)) for folder in folders]
    return Group(status_table(statuses), *troubles(statuses))


def main(arguments: Sequence[str] | None = None) -> int:
    """Shows the table once, or renews it where the output is a terminal; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m framework.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", help="id, pattern or folder; none: all runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--once", action="store_true", help="show it once, also in a terminal")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks")
    given = parser.parse_args(arguments)
    console = open_console()
    try:
        folders = find_runs(given.run, given.runs)
        if given.once or not console.is_terminal:
            console.print(view(folders))
            return 0
        with Live(view(folders), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(given.every)
                # Runs that began since are shown too.
                live.update(view(find_runs(given.run, given.runs)), refresh=True)
    except ConfigError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
