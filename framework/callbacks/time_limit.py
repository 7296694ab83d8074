"""Time limit of one start of a run, written in the format of SLURM."""

import functools
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_SECONDS = re.compile(r"()()()(\d+)")
_IMPORT_TIME = time.monotonic()


@dataclass(frozen=True)
class TimeLimit:
    """A duration, written as `HH:MM:SS`, or as `D-HH:MM:SS` from one day on."""

    seconds: int

    @classmethod
    def parse(cls, text: str | int) -> "TimeLimit":
        """Reads `HH:MM:SS`, `D-HH:MM:SS` or plain seconds.

        Args:
            text: Value of the config. YAML reads an unquoted 10:00:00 as 36000 seconds, which is the same duration.

        Raises:
            ValueError: The text has another format, or the duration is 0.
        """
        match = _CLOCK.fullmatch(str(text)) or _SECONDS.fullmatch(str(text))
        if match is None:
            raise ValueError(f"{text!r} is not HH:MM:SS, D-HH:MM:SS or a number of seconds")
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        limit = cls(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
        if limit.seconds == 0:
            raise ValueError(f"{text!r} is not longer than 0 seconds")
        return limit

    def __str__(self) -> str:
        minutes, seconds = divmod(self.seconds, 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        clock = f"{hours:02}:{minutes:02}:{seconds:02}"
        return f"{days}-{clock}" if days else clock


def process_age_seconds() -> float:
    """Returns the seconds since this process started; without /proc, the seconds since this module was imported."""
    return time.monotonic() - _start_time()


@functools.cache
def _start_time() -> float:
    """Returns the value of `time.monotonic` at which this process started."""
    try:
        # The second field, the name of the command, may hold spaces and brackets, so fields are counted after it.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_seconds = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return _IMPORT_TIME
    start_ticks = int(fields[19])  # field 22 of proc(5), counted from 1; `fields` begins with field 3
    return time.monotonic() - (uptime_seconds - start_ticks / os.sysconf("SC_CLK_TCK"))
