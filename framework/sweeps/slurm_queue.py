"""Submits jobs to SLURM and queries their states, without accounting, which many clusters lack."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from framework.errors import ConfigError

UNKNOWN = "UNKNOWN"
"""Of a job that SLURM has forgotten: it ended some time ago, and the run folder alone tells how."""

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT", UNKNOWN),
}

_SECONDS = 60.0


def submit(arguments: Sequence[str], variables: Mapping[str, str]) -> int:
    """Submits a batch script.

    Args:
        arguments: Options of sbatch, then the script.
        variables: Of the job's environment, where this process has not set them.

    Returns:
        The job's number.

    Raises:
        ConfigError: SLURM refused it; the message has its answer.
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
            f"sbatch refused {arguments[-1]}: {' '.join(error.stderr.split())}; change hydra.launcher. What was "
            "submitted before stays, and the same line collects it."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"sbatch gave no answer within {_SECONDS:.0f} s; start again when SLURM does.") from error
    return int(answer.stdout.strip().partition(";")[0])


def job_states(numbers: Sequence[int]) -> dict[int, str]:
    """The state of each job, such as PENDING or FAILED; `UNKNOWN` where SLURM answers but has forgotten it.

    Args:
        numbers: Of the jobs. Where SLURM does not answer, the state of all is NO ANSWER.
    """
    states = dict.fromkeys(numbers, "NO ANSWER")
    listed = _lines("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T")
    if listed is None:
        return states
    seen = dict(line.split("|") for line in listed)
    for number in numbers:
        states[number] = seen.get(str(number)) or _accounted(number)
    return states


def pending_jobs(seconds: float) -> dict[str, tuple[str, str]]:
    """Returns the user's jobs that wait in the queue; empty if SLURM is missing or does not answer.

    Args:
        seconds: Seconds to wait for the answer.

    Returns:
        Reason and name by job number; a task of an array has a number such as 12_3.
    """
    lines = _lines(
        *("squeue", "--noheader", "--me", "--array", "--states=PENDING", "--format=%i|%r|%j"), seconds=seconds
    )
    jobs = (line.split("|", 2) for line in lines or () if line.count("|") >= 2)
    return {number.strip(): (reason, name) for number, reason, name in jobs}


def _accounted(number: int) -> str:
    """What the accounting knows of a job that left the queue; clusters without accounting know nothing."""
    lines = _lines("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}")
    # "CANCELLED by 1000"
    return lines[-1].split()[0] if lines else UNKNOWN


def _lines(*command: str, seconds: float = _SECONDS) -> list[str] | None:
    """The lines that a command prints; None where it fails, is not there, or does not answer."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line for line in answer.stdout.splitlines() if line.strip()]
