"""Derives the outcome of a job from its run folder and exit code."""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.distributed.processes.failure_file import FAILURE_FILE, read_failure
from framework.errors import DistributedError
from framework.runs.supervision import LOGS_FOLDER
from framework.sweeps.plan import Job
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

OUTPUT_FILE = "output.log"

State = Literal["waiting", "pending", "running", "finished", "pruned", "preempted", "failed"]
DONE: tuple[State, ...] = ("finished", "pruned")
"""States of jobs that have nothing left to do: a new start skips them."""

_OWN_ERROR = re.compile(r"^(Config|Data|Checkpoint|Distributed|Resource|Framework)Error\b.*: ")


@dataclass(frozen=True)
class Outcome:
    """State of a job.

    Attributes:
        state: "waiting": the job was not started. "pending": it is in SLURM's queue. "preempted": it stopped before its
            end, after a signal or at its time limit, and resumes when the sweep is started again. "pruned": a search
            stopped it early.
        why: Reason of a preemption or failure, else None.
        summary: Content of summary.json; None if the file does not exist.
    """

    state: State
    why: str | None = None
    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class FolderState:
    """State of a run folder before a start. It separates old results from those of the start.

    Attributes:
        summary: Modification time of summary.json in nanoseconds; 0 if it does not exist.
        failure: Modification time of failure.json in nanoseconds; 0 if it does not exist.
        output: Size of the output file in bytes.
    """

    summary: int
    failure: int
    output: int


def output_file(job: Job) -> Path:
    """Returns the path of the file that receives all output of a job."""
    return job.folder / LOGS_FOLDER / OUTPUT_FILE


def folder_state(job: Job) -> FolderState:
    """Returns the current state of a job's run folder."""
    output = output_file(job)
    return FolderState(
        _written(job.folder / SUMMARY_FILE),
        _written(job.folder / LOGS_FOLDER / FAILURE_FILE),
        output.stat().st_size if output.is_file() else 0,
    )


def classify_exit(
    job: Job, is_success: bool, exit_text: str, before: FolderState, is_signalled: bool = False
) -> Outcome:
    """Returns the outcome of one start of a job.

    Args:
        job: Job without running processes.
        is_success: True if its first process exited with code 0.
        exit_text: Description of that exit, such as "exit code 1".
        before: State of the run folder before the start.
        is_signalled: True if the job was signalled to save and exit. A job that could not react yet is "waiting" again.
    """
    summary = read_summary(job.folder)
    is_new = _written(job.folder / SUMMARY_FILE) != before.summary
    ended = None if summary is None else summary["ended"]
    for state in DONE:
        if is_success and ended == state:
            return Outcome(state, None, summary)
    # torchrun itself exits with 1 after a signal, although its ranks exited as planned.
    if ended == "preempted" and (is_new or is_success):
        assert summary is not None
        return Outcome("preempted", str(summary["why"]), summary)
    named, last_line = _reason(job, before)
    # After a signal some ranks exit earlier, and the others report a DistributedError.
    if is_signalled and (named is None or named.startswith(DistributedError.__name__)):
        return Outcome("waiting", None, summary)
    reason = named or last_line
    return Outcome("failed", f"{exit_text}; {reason}" if reason else exit_text, summary)


def _reason(job: Job, before: FolderState) -> tuple[str | None, str | None]:
    """Returns the error that the run reported, or None, and the last line of its output, or None."""
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


def failed_start(job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Returns the outcome of a job that cannot start because the run from which it starts failed; None if it can."""
    if job.starts_from is None or outcomes[job.starts_from].state != "failed":
        return None
    return Outcome("failed", f"it starts from {job.starts_from}, which failed")


def may_start(job: Job, outcomes: Mapping[str, Outcome]) -> bool:
    """Returns True if the job from whose run this one starts has finished, or if it waits for no job."""
    return job.starts_from is None or outcomes[job.starts_from].state in DONE


def describe_exit(exit_code: int) -> str:
    """Describes a return code of Python's subprocess, in which a negative number is a signal."""
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
