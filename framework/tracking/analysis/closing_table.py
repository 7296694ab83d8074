"""Prints the table at the end of a training command, from the files of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from framework.tracking.analysis.report import REPORT_FILE
from framework.tracking.console import open_console, print_line
from framework.tracking.metric_names import label_in_run
from framework.tracking.summary_file import read_summary

_SHOWN_PREFIXES = ("train/", "val/", "test/", "probe/")


def print_closing_table(run_folder: Path, console: Console | None = None) -> None:
    """Prints final and best metrics, speed, and the paths of the results.

    Args:
        run_folder: Run folder. summary.json may be missing if the run was killed at its very end.
        console: Console for the table; None: standard output.
    """
    console = console or open_console()
    summary = read_summary(run_folder)
    if summary is not None:
        console.print(closing_table(run_folder.name, summary))
        if summary["why"] is not None:
            print_line(f"ended       {summary['why']}", console)
    # Paths are not wrapped, so that they can be copied.
    print_line(f"run folder  {run_folder}", console)
    plots = sorted(path.name for path in (run_folder / "plots").glob("*.png"))
    if plots:
        print_line(f"plots       {run_folder / 'plots'}: {', '.join(plots)}", console)
    report = run_folder / REPORT_FILE
    if report.is_file():
        print_line(f"report      {report}", console)


def closing_table(name: str, summary: dict[str, Any]) -> Table:
    """Builds the table of one run from its name and its summary."""
    table = Table(title=f"{name}: {summary['ended']}", title_justify="left", title_style="bold", show_header=True)
    table.add_column("metric")
    table.add_column("last", justify="right")
    best = summary["best"] or {}
    if best:
        table.add_column(f"best (step {best['step']:,})", justify="right")
    for key in summary["last"]:
        if key.startswith(_SHOWN_PREFIXES) and key != "train/tokens":
            columns = [summary["last"], best] if best else [summary["last"]]
            table.add_row(label_in_run(key), *(_number(values, key) for values in columns))
    table.add_section()
    facts = {
        "steps": f"{summary['steps']:,}",
        **({"skipped steps": f"{summary['skipped_steps']:,}"} if summary.get("skipped_steps") else {}),
        "tokens": f"{summary['tokens']:,}",
        "tokens per second": f"{summary['tokens_per_second']:,.0f}" if summary["tokens_per_second"] else "",
        "seconds": f"{summary['wall_seconds']:,.1f}",
        **{
            f"{name}, measured by planned": f"{ratio:.0%}"
            for name, ratio in (
                ("step time", summary["last"].get("plan/step_ratio")),
                ("memory", summary["last"].get("plan/memory_ratio")),
            )
            if ratio is not None
        },
    }
    for name, text in facts.items():
        table.add_row(name, text)
    return table


def _number(values: Mapping[str, float | None], key: str) -> str:
    """Formats a value. The files contain null for values that are not finite."""
    value = values.get(key)
    if value is None:
        return "not finite" if key in values else ""
    return f"{value:.4f}"
