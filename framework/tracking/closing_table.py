"""The table that a training command ends with, read from what the run wrote."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from framework.tracking.metric_names import describe

_SHOWN_PREFIXES = ("train/", "val/")


def print_closing_table(run_folder: Path, console: Console | None = None) -> None:
    """Prints final and best metrics, speed and where things are.

    Args:
        run_folder: Holds summary.json.
        console: Where to write; None: standard output.
    """
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    (console or Console()).print(closing_table(run_folder, summary))


def closing_table(run_folder: Path, summary: dict[str, Any]) -> Table:
    """Lays out the table of one run."""
    table = Table(
        title=f"{run_folder.name}: {summary['ended']}", title_justify="left", title_style="bold", show_header=True
    )
    table.add_column("metric")
    table.add_column("last", justify="right")
    best = summary["best"] or {}
    if best:
        table.add_column(f"best (step {best['step']:,})", justify="right")
    for key, value in summary["last"].items():
        if key.startswith(_SHOWN_PREFIXES) and key != "train/tokens":
            split, _, _ = key.partition("/")
            table.add_row(f"{split} {describe(key).label}", _number(value), *([_number(best.get(key))] if best else []))
    table.add_section()
    facts = {
        "steps": f"{summary['steps']:,}",
        "tokens": f"{summary['tokens']:,}",
        "tokens a second": f"{summary['tokens_per_second']:,.0f}" if summary["tokens_per_second"] else "",
        "seconds": f"{summary['wall_seconds']:,.1f}",
    }
    for name, text in facts.items():
        table.add_row(name, text)
    plots = sorted(path.name for path in (run_folder / "plots").glob("*.png"))
    table.caption = f"run folder {run_folder}" + (
        f"\nplots      {run_folder / 'plots'} ({', '.join(plots)})" if plots else ""
    )
    table.caption_justify = "left"
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
