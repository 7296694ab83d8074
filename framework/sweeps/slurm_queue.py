"""Submits jobs to SLURM and queries their states. Accounting, which many clusters lack, is optional."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from framework.errors import ConfigError

UNKNOWN = "UNKNOWN"
"""State of a job that SLURM no longer lists. It ended some time ago, and only its run folder contains the outcome."""

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT", UNKNOWN),
}

_SECONDS = 60.0


def submit(arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Submits a batch script.

    Args:
        arguments: Options of sbatch, then the script.
        variables: Variables for the environment of the job. Variables of this process take precedence.

    Returns:
        Job number.

    Raises:
        ConfigError: sbatch rejected the script, or did not answer in time.
    """
    environment = {**variables, **os.environ}
    try:
        answer = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"sbatch rejected {arguments[-1]}: {' '.join(error.stderr.split())}. Change hydra.launcher and start the "
            "same command again. Jobs that were submitted before stay in the queue, and it collects them."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"sbatch did not answer within {_SECONDS:.0f} s. SLURM must answer to accept a job. Start the same command "
            "again later."
        ) from error
    return int(answer.stdout.strip().partition(";")[0])


def job_states(numbers: Sequence[int]) -> dict[int, str]:
    """Returns the state of each job by number, such as PENDING or FAILED.

    The state is `UNKNOWN` if SLURM answers but no longer lists the job, and NO ANSWER if SLURM does not answer.

    Args:
        numbers: Job numbers.
    """
    states = dict.fromkeys(numbers, "NO ANSWER")
    listed = _lines("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T")
    if listed is None:
        return states
    queued = dict(line.split("|") for line in listed)
    for number in numbers:
        states[number] = queued.get(str(number)) or _accounted_state(number)
    return states


def pending_jobs(seconds: float) -> dict[str, tuple[str, str]]:
    """Returns the user's pending jobs; empty if SLURM is missing or does not answer.

    Args:
        seconds: Seconds to wait for the answer.

    Returns:
        Reason and name by job number. The number of an array task is a text such as 12_3.
    """
    lines = _lines(
        *("squeue", "--noheader", "--me", "--array", "--states=PENDING", "--format=%i|%r|%j"), seconds=seconds
    )
    jobs = (line.split("|", 2) for line in lines or () if line.count("|") >= 2)
    return {number.strip(): (reason, name) for number, reason, name in jobs}


def _accounted_state(number: int) -> str:
    """Returns the state of a job in SLURM's accounting; `UNKNOWN` without accounting."""
    lines = _lines("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}")
    # "CANCELLED by 1000"
    return lines[-1].split()[0] if lines else UNKNOWN


def _lines(*command: str, seconds: float = _SECONDS) -> list[str] | None:
    """Returns the lines that a command prints; None if it fails, is not installed or does not answer in time."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line for line in answer.stdout.splitlines() if line.strip()]
