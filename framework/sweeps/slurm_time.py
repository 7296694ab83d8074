"""Parses and checks time limits of SLURM."""

import re

from framework.errors import ConfigError

_UNLIMITED = {"0", "-1", "INFINITE", "UNLIMITED"}
_PLAIN = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?")
_WITH_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")


def limit_seconds(limit: str | int) -> int | None:
    """Returns a time limit in seconds; None if there is no limit.

    Args:
        limit: Limit in a format of sbatch: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
            days-hours:minutes, days-hours:minutes:seconds.

    Raises:
        ConfigError: The limit has another format.
    """
    text = str(limit).strip()
    if text.upper() in _UNLIMITED:
        return None
    if found := _WITH_DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    elif found := _PLAIN.fullmatch(text):
        parts = [int(each) for each in found.groups() if each is not None]
        # One or two numbers begin with minutes, three with hours.
        days, hours, minutes, seconds = 0, *([0] * (len(parts) < 3)), *parts, *([0] * (len(parts) < 2))
    else:
        raise ConfigError(
            f"hydra.launcher.time is {limit!r}, which is no time limit of SLURM. Write HH:MM:SS, D-HH:MM:SS or minutes."
        )
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_limit(limit: str | int | None, save_seconds: int) -> None:
    """Checks that a job has time to train before the signal to save.

    Args:
        limit: `hydra.launcher.time`; None: the limit of the partition, which each job checks at its start.
        save_seconds: Seconds before the limit at which a job gets the signal to save.

    Raises:
        ConfigError: The limit is not longer than `save_seconds`, or cannot be parsed.
    """
    seconds = None if limit is None else limit_seconds(limit)
    if seconds is not None and seconds <= save_seconds:
        raise ConfigError(
            f"hydra.launcher.time is {limit}, {seconds} seconds. It must be longer than hydra.launcher.save_seconds, "
            f"{save_seconds}: a job gets the signal to save that long before its limit and would never train. Raise "
            "hydra.launcher.time, or lower hydra.launcher.save_seconds."
        )
