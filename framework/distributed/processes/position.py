"""Position of this process in its run: the step, the current activity, and a count that shows progress.

Each process has one position, because one main thread trains. Log lines, failure reports and the watchdog read it. The
watchdog reads it from its own thread.
"""

from dataclasses import dataclass


@dataclass
class Position:
    """Current activity of the main thread.

    Attributes:
        step: Current step, or the last one if none is running; counted from 1. None: training has not begun.
        activity: Current activity, for example "validates".
        count: Number of activities since the process started. All ranks begin the same activities, so the counts of
            ranks of one start can be compared.
    """

    step: int | None = None
    activity: str = "starts"
    count: int = 0


POSITION = Position()


def begin_activity(activity: str, step: int | None = None) -> None:
    """Records the activity that begins now. Every rank must begin the same activities in the same order.

    Args:
        activity: Phrase that can follow "rank 3", for example "validates".
        step: Step that begins now; None: the step does not change.
    """
    POSITION.activity = activity
    POSITION.count += 1
    if step is not None:
        POSITION.step = step
