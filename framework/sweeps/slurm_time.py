"""Parses and checks time limits of SLURM.

slurm/submit.sh calls it: `python -m framework.sweeps.slurm_time LIMIT SAVE_SECONDS`.
"""

import re
import sys
from collections.abc import Sequence

from framework.errors import ConfigError

_UNLIMITED = {"0", "-1", "INFINITE", "UNLIMITED"}
_PLAIN = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?")
_WITH_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")


def limit_seconds(limit: str | int, name: str = "hydra.launcher.time") -> int | None:
    """Returns a time limit in seconds; None if there is no limit.

    Args:
        limit: Limit in a format of sbatch: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
            days-hours:minutes, days-hours:minutes:seconds.
        name: Name of the limit in errors.

    Raises:
        ConfigError: The limit has another format.
    """
    text = str(limit).strip()
    if text.upper() in _UNLIMITED:
        return None
    if match := _WITH_DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(each or 0) for each in match.groups())
    elif match := _PLAIN.fullmatch(text):
        parts = [int(each) for each in match.groups() if each is not None]
        # One or two numbers begin with minutes, three with hours.
        days, hours, minutes, seconds = 0, *([0] * (len(parts) < 3)), *parts, *([0] * (len(parts) < 2))
    else:
        raise ConfigError(
            f"{name} is {limit!r}, which is no time limit of SLURM. Write HH:MM:SS, D-HH:MM:SS or minutes."
        )
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_limit(
    limit: str | int | None,
    save_seconds: int,
    name: str = "hydra.launcher.time",
    save_name: str = "hydra.launcher.save_seconds",
) -> None:
    """Checks that a job has time to train before the signal to save.

    Args:
        limit: Time limit of a job; None: the limit of the partition, which each job checks at its start.
        save_seconds: Seconds before the limit at which a job gets the signal to save.
        name: Name of the limit in errors.
        save_name: Name of `save_seconds` in errors.

    Raises:
        ConfigError: The limit is not longer than `save_seconds`, or cannot be parsed.
    """
    seconds = None if limit is None else limit_seconds(limit, name)
    if seconds is not None and seconds <= save_seconds:
        raise ConfigError(
            f"{name} is {limit}, {seconds} seconds. It must be longer than {save_name}, {save_seconds}: a job gets the "
            f"signal to save that long before its limit and would never train. Raise {name}, or lower {save_name}."
        )


def main(arguments: Sequence[str]) -> int:
    """Checks the time limit given to sbatch; returns the exit code."""
    limit, save_seconds = arguments
    try:
        check_limit(limit, int(save_seconds), "--time", "--save-seconds")
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
