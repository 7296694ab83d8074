"""Where this process stands in its run: a step, what it is doing there, and a count that shows whether it gets on.

There is one position a process, as there is one main thread that trains. Log lines, the report of a failure and the
watchdog read it, the watchdog from a thread of its own.
"""

from dataclasses import dataclass


@dataclass
class Position:
    """The newest mark of the main thread.

    Attributes:
        step: The step that is being made, counted from 1, or that was made last; None: training has not begun.
        point: What the process is doing since the mark.
        count: Marks since the process began. Ranks pass the same marks, so counts of one start can be compared.
    """

    step: int | None = None
    point: str = "starts"
    count: int = 0


POSITION = Position()


def mark(point: str, step: int | None = None) -> None:
    """Says that the process got to a point which every rank passes, in the same order.

    Args:
        point: What it does from now on, in words that follow "rank 3".
        step: The step that begins; None: still the same.
    """
    POSITION.point = point
    POSITION.count += 1
    if step is not None:
        POSITION.step = step
