"""How a job ended, as its run folder and its exit code tell."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.config.supervision import LOGS_FOLDER
from framework.distributed.processes.failure_file import FAILURE_FILE, read_failure
from framework.errors import DistributedError
from framework.sweeps.plan import Job
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

OUTPUT_FILE = "output.log"

State = Literal["waiting", "pending", "running", "finished", "pruned", "preempted", "failed"]
DONE: tuple[State, ...] = ("finished", "pruned")
"""At its end: started again, nothing would be left to do."""

_OWN_ERROR = re.compile(r"^(Config|Data|Checkpoint|Distributed|Resource|Framework)Error\b.*: ")


@dataclass(frozen=True)
class Outcome:
    """Where a job stands.

    Attributes:
        state: "waiting": the job was not started. "pending": it waits in SLURM's queue. "preempted": it left before its
            end, by a signal or its time limit, and resumes when the sweep is started again. "pruned": a search ended it
            early.
        why: Of what was preempted or failed.
        summary: Of the run; None: there is none.
    """

    state: State
    why: str | None = None
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class Before:
    """What lay in the run folder before a start, so that it is not taken for news.

    Attributes:
        summary: When summary.json was written.
        failure: When failure.json was written.
        output: Bytes of the output.
    """

    summary: int
    failure: int
    output: int


def output_file(job: Job) -> Path:
    """Where everything goes that the processes of a job print."""
    return job.folder / LOGS_FOLDER / OUTPUT_FILE


def look(job: Job) -> Before:
    """Notes what lies in the run folder before a start."""
    output = output_file(job)
    return Before(
        _written(job.folder / SUMMARY_FILE),
        _written(job.folder / LOGS_FOLDER / FAILURE_FILE),
        output.stat().st_size if output.is_file() else 0,
    )


def judge(job: Job, is_success: bool, how: str, before: Before, is_told: bool = False) -> Outcome:
    """Returns how a start of a job ended.

    Args:
        job: A job that has no process any more.
        is_success: True where its first process left with 0.
        how: How that process left, in words.
        before: Files of the run folder before that start.
        is_told: True if the job was signalled to save and exit. A job that could not react yet waits again.
    """
    summary = read_summary(job.folder)
    is_new = _written(job.folder / SUMMARY_FILE) != before.summary
    ended = None if summary is None else summary["ended"]
    for state in DONE:
        if is_success and ended == state:
            return Outcome(state, None, summary)
    # torchrun itself leaves with 1 after a signal, although its ranks left as planned.
    if ended == "preempted" and (is_new or is_success):
        assert summary is not None
        return Outcome("preempted", str(summary["why"]), summary)
    named, last_line = _reason(job, before)
    if is_told and (named is None or named.startswith(DistributedError.__name__)):  # ranks that were gone before others
        return Outcome("waiting", None, summary)
    reason = named or last_line
    return Outcome("failed", f"{how}; {reason}" if reason else how, summary)


def _reason(job: Job, before: Before) -> tuple[str | None, str | None]:
    """Returns the error that the run itself reported, or None, and the last line that it printed."""
    failure = read_failure(job.folder / LOGS_FOLDER)
    if failure is not None and _written(job.folder / LOGS_FOLDER / FAILURE_FILE) != before.failure:
        return failure.why, None
    output = output_file(job)
    if not output.is_file():
        return None, None
    with output.open("rb") as stream:
        stream.seek(before.output)
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if _OWN_ERROR.match(line)), None), lines[-1] if lines else None


def words(exit_code: int) -> str:
    """An exit code as Python's subprocess gives it: minus the signal's number where one ended the process."""
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
