"""Reports for `check=true` what a command would do."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from framework.tracking.console import open_console


def print_check(rows: Sequence[tuple[str, str]]) -> None:
    """Prints that the checks passed, followed by the rows."""
    console = open_console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(name, Text(text))
    console.print("check passed; nothing was written")
    console.print(table)
