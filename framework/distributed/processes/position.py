"""Position of this process in its run: the step, the current activity, and a count that shows progress.

Each process has one position, because one main thread trains. Log lines, failure reports and the watchdog read it. The
watchdog reads it from its own thread.
"""

from dataclasses import dataclass


@dataclass
class Position:
    """Newest mark of the main thread.

    Attributes:
        step: Current step, or the last one if none is running; counted from 1. None: training has not begun.
        point: Activity of the process since the mark.
        count: Number of marks since the process started. All ranks pass the same marks, so the counts of ranks of one
            start can be compared.
    """

    step: int | None = None
    point: str = "starts"
    count: int = 0


POSITION = Position()


def mark(point: str, step: int | None = None) -> None:
    """Records that the process passes a point. Every rank must pass the same points in the same order.

    Args:
        point: Activity that begins now, as a phrase that can follow "rank 3", for example "validates".
        step: Step that begins now; None: the step does not change.
    """
    POSITION.point = point
    POSITION.count += 1
    if step is not None:
        POSITION.step = step
