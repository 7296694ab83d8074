"""Checks of processes that a test did not start itself."""

import time
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Returns False for a process that has ended, also if nobody has read its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int, seconds: float) -> bool:
    """Waits for the end of a process, at most this long; returns whether it ended."""
    limit = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < limit:
        time.sleep(0.1)
    return not is_alive(pid)
