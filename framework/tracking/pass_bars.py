"""Progress bars of long passes on standard error; without a terminal each pass prints one line instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from framework.tracking.console import open_console


class Advance(Protocol):
    """Function that updates the bar of a pass."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Updates the bar.

        Args:
            stage: Name of the pass.
            done: Amount that is done, in base units such as bytes.
            total: Amount of the whole pass.
        """


@contextmanager
def pass_bars(unit: str, size: float = 1.0, is_shown: bool = True) -> Iterator[Advance]:
    """Returns a context with the function that updates the bar of a pass; its first call begins the pass.

    Args:
        unit: Unit of the amounts that are shown.
        size: Number of base units in it.
        is_shown: False on all ranks but one: the function does nothing.
    """
    if not is_shown:
        yield _ignore
        return
    digits = 0 if size == 1 else 1
    screen = open_console(stderr=True)
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(unit, size, digits),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
    tasks: dict[str, TaskID] = {}

    def advance(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            # What an earlier start completed has no share in the rate.
            tasks[stage] = bars.add_task(stage, total=total, completed=done)
            if not screen.is_terminal:
                screen.print(f"{stage}: {total / size:,.{digits}f} {unit}", highlight=False)
        bars.update(tasks[stage], completed=done)

    with bars:
        yield advance


def _ignore(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


class _Rate(ProgressColumn):
    """Column with the amount of a pass, and the amount per second."""

    def __init__(self, unit: str, size: float, digits: int) -> None:
        super().__init__()
        self._unit, self._size, self._digits = unit, size, digits

    def render(self, task: Task) -> Text:
        """Draws the column."""
        text = f"{task.completed / self._size:,.{self._digits}f}"
        text += f"/{(task.total or 0) / self._size:,.{self._digits}f} {self._unit}"
        speed = task.finished_speed or task.speed
        return Text(text if speed is None else f"{text}, {speed / self._size:,.{self._digits}f}/s")
