"""Failure reports: of all ranks that fail, one prints the first failure, once, with its rank, step and error.

Failing ranks exchange notes through files, because a process group does not work after a rank has ended. Each failing
rank writes a note to a shared folder, waits a moment and reads the notes of the others. Before a run has its folder,
the processes of one host share a temporary folder. Afterwards all ranks use the run folder.
"""

import hashlib
import json
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from framework.distributed.processes.beats import Beat, Beats, last_line
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.distributed.processes.failure_file import FAILURE_FILE
from framework.distributed.processes.launcher_note import write_note
from framework.distributed.processes.position import POSITION
from framework.distributed.processes.shortages import explain, is_kind
from framework.errors import DistributedError, FrameworkError
from framework.files import parse_json, write_atomic

_NOTES = "failure_*.json"

_GRACE_SECONDS = 1.0
"""Time for which a failing rank waits for notes of others. torchrun stops the other ranks only after it has exited."""

_STALE_SECONDS = 30.0
"""Age at which notes belong to an earlier attempt. A change of membership restarts processes but is not counted."""

_NAMED, _OTHER, _BROKEN = range(3)
"""Priority of errors: errors of this package, other errors, errors of collectives after another rank has ended."""


@dataclass(frozen=True)
class Failure:
    """Note of one rank about a failure.

    Attributes:
        reporter: Rank that wrote the note.
        rank: Rank that failed. It differs from the reporter if the failed rank cannot report.
        step: Step of the failure; None: before the first step.
        point: Activity of the rank at the failure, for example "validates".
        kind: Class name of the error.
        message: Error message in one line.
        order: Priority of the error, see `_NAMED`.
        seconds: Time of the note in seconds since the epoch, by the reporter's clock.
        host: Host name of the rank that failed.
        pid: Process id of the rank that failed.
        log: Log file of the rank that failed, or of the reporter, with the traceback. None: there is no log file.
    """

    reporter: int
    rank: int
    step: int | None
    point: str
    kind: str
    message: str
    order: int
    seconds: float
    host: str
    pid: int
    log: str | None = None

    def __str__(self) -> str:
        parts = [f"rank {self.rank}"] if _this_process().world_size > 1 else []
        parts += [f"step {self.step}"] if self.step is not None else []
        where = f" ({', '.join(parts)})" if parts else ""
        return f"{self.kind}{where}: {self.message}"


class FailureReport:
    """State of failure reporting in this process.

    Attributes:
        first: First failure of all ranks, known after the ranks have exchanged notes; None before.
        is_printed: True if this process has printed the failure.
    """

    def __init__(self) -> None:
        self.first: Failure | None = None
        self.is_printed = False
        # When the watchdog ends a rank, collectives of others break, so their main threads fail while their watchdogs
        # exchange notes. A second note would replace the first, which other ranks may have read.
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._logs: Path | None = None
        self._log: Path | None = None
        self._beats: Beats | None = None

    def open(self, folder: Path, logs: Path, log: Path, beats: Beats) -> None:
        """Starts reporting to the run folder.

        Args:
            folder: Folder for the notes of this start, empty.
            logs: Folder that receives failure.json.
            log: Log file of this rank.
            beats: Heartbeats of this start.
        """
        self._folder, self._logs, self._log, self._beats = folder, logs, log, beats
        self.first, self.is_printed = None, False

    def close(self) -> None:
        """Resets the report at the end of a run or the start of a command."""
        self.first, self.is_printed = None, False
        self._folder = self._logs = self._log = self._beats = None
        POSITION.step = None

    def keep_traceback(self, error: BaseException) -> None:
        """Writes the traceback of an error to a private file, unless this rank has a log file, which contains it."""
        if self._log is None:
            number, name = tempfile.mkstemp(prefix="cloze-traceback-", suffix=".txt")
            with open(number, "w", encoding="utf-8") as file:
                file.writelines(traceback.format_exception(error))
            self._log = Path(name)

    @property
    def is_open(self) -> bool:
        """True while the ranks report to a run folder."""
        return self._folder is not None

    def exchange(self, failure: Failure) -> Failure:
        """Writes a note, waits for the notes of other ranks and returns the first failure.

        Every failing rank must call it. Further calls, also of other threads, return the result of the first call.
        Launchers end the remaining ranks with SIGTERM. In a run this process ignores SIGTERM from now on, so that it
        can report before it exits.
        """
        with self._lock:
            if self.first is None:
                self.first = self._exchange(failure)
            return self.first

    def print_once(self) -> None:
        """Prints the first failure, unless this process has printed it."""
        with self._lock:
            if self.first is not None and not self.is_printed:
                print_failure(self.first)
                self.is_printed = True

    def _exchange(self, failure: Failure) -> Failure:
        first = failure
        if _this_process().world_size > 1:
            if self.is_open and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            first = self._first_of_all(failure)
        if self._logs is not None and first.reporter == _this_process().rank:
            _write_json(self._logs / FAILURE_FILE, _as_record(first))
        write_note(str(first), first.kind, first.step)
        return first

    def describe(self, error: BaseException) -> Failure:
        """Builds the note of this rank about its own error."""
        info, error = _this_process(), explain(error)
        order = _NAMED if isinstance(error, FrameworkError) else _BROKEN if _is_broken(error) else _OTHER
        rank = error.rank if isinstance(error, FrameworkError) and error.rank is not None else info.rank
        return Failure(
            reporter=info.rank,
            rank=rank,
            step=POSITION.step,
            point=POSITION.activity,
            kind=_kind(error),
            message=one_line(error),
            order=order,
            seconds=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            log=None if self._log is None else str(self._log),
        )

    def _first_of_all(self, failure: Failure) -> Failure:
        folder = self._folder or _host_folder()
        if folder is None:
            return failure
        self._post(folder, failure)
        time.sleep(_GRACE_SECONDS)
        first = first_of(_notes(folder))
        if first is None or first.order < _BROKEN or self._beats is None:
            return first or failure
        # All notes report broken connections, so a rank has ended without a note. Its heartbeat shows which one.
        reporters = [note.reporter for note in _notes(folder)]
        silent = self._beats.silent(reporters)
        if silent:
            last_beats = "; ".join(f'{beat}; its log ends with "{last_line(beat.log)}"' for beat in silent)
            message = f"ended without an error report (killed, or out of memory). Last heartbeat: {last_beats}"
            # A last beat may be old. All ranks are at the same step, so the note contains the step of this rank.
            self._post(folder, attribute_to_ranks(failure, silent, message, failure.step))
        time.sleep(_GRACE_SECONDS)
        return first_of(_notes(folder)) or failure

    def _post(self, folder: Path, failure: Failure) -> None:
        _write_json(folder / f"failure_{failure.reporter:05d}.json", asdict(failure))


REPORT = FailureReport()


def first_of(notes: Sequence[Failure]) -> Failure | None:
    """Returns the first failure, by priority and then by time; None if there are no notes.

    Notes with the same message are one failure, which the lowest of their ranks reports. Such notes have about the same
    time on all ranks, and the clocks of hosts differ slightly.
    """
    if not notes:
        return None
    earliest: dict[tuple[int, str], float] = {}
    for note in notes:
        key = (note.order, note.message)
        earliest[key] = min(note.seconds, earliest.get(key, note.seconds))
    return min(notes, key=lambda note: (note.order, earliest[note.order, note.message], note.message, note.reporter))


def first_failure(error: BaseException) -> Failure:
    """Returns the first failure of all ranks after an error of this rank. See `FailureReport.exchange`."""
    return REPORT.exchange(REPORT.describe(error))


def report_once(error: BaseException) -> Failure | None:
    """Prints the first failure to stderr in one line, once, from one rank. Every failing rank must call it.

    Returns:
        The failure on the rank that prints it; None on the other ranks.
    """
    first = first_failure(error)
    if first.reporter != _this_process().rank:
        return None
    REPORT.print_once()
    return first


def print_failure(failure: Failure) -> None:
    """Prints a failure and the path of its log file to stderr."""
    prefix = "details are in" if failure.order == _NAMED else "the full traceback is in"
    file = f"\n{prefix} {failure.log}" if failure.log is not None else ""
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(failure))
    sys.stderr.write(f"{text}{file}\n")
    sys.stderr.flush()


def one_line(error: BaseException) -> str:
    """Returns an error message without line breaks; for an error of a loader process, only the original message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught ") and lines[1].startswith("Original Traceback"):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(lines) or "no message"


def _kind(error: BaseException) -> str:
    """Returns the class name of an error; for a subclass of an error in framework.errors, the name of that error."""
    classes = type(error).__mro__
    return next((each for each in classes if each.__module__ == FrameworkError.__module__), classes[0]).__name__


def _is_broken(error: BaseException) -> bool:
    """Returns True for errors of a collective or a store whose peer has ended or does not answer."""
    text = str(error).lower()
    is_of_library = isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
    return is_of_library or is_kind(error, "torch.distributed", "DistError")


def attribute_to_ranks(failure: Failure, beats: Sequence[Beat], message: str, step: int | None) -> Failure:
    """Builds a note about ranks that cannot report their failure, or that hang.

    Args:
        failure: Note of the reporter about itself.
        beats: Last beats of the failed ranks. The note names the lowest rank.
        message: Description of the failure.
        step: Step of the failure; None: before the first step.
    """
    first = min(beats, key=lambda beat: beat.rank)
    return replace(
        failure,
        rank=first.rank,
        step=step,
        point=first.point,
        host=first.host,
        pid=first.pid,
        kind=DistributedError.__name__,
        message=message,
        log=first.log,
    )


def _this_process() -> ProcessInfo:
    """Returns the ranks of this process; those of a single process if the launcher variables are not valid."""
    try:
        return process_info()
    except DistributedError:
        return ProcessInfo()


def _host_folder() -> Path | None:
    """Returns a folder for the notes of this host's processes in this attempt; None if it is not private.

    It needs no process group. Its name can be guessed, and all users of the host can write to the temporary folder, so
    a folder, link or file of another user is not used.
    """
    parts = [
        str(os.getuid()),
        str(os.getppid()),
        *(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")),
        str(process_info().world_size),
    ]
    folder = Path(tempfile.gettempdir()) / f"cloze-failure-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_private(folder):
        return None
    oldest = time.time() - _STALE_SECONDS
    for note in folder.glob(_NOTES):
        with suppress(OSError):
            if note.lstat().st_mtime < oldest:
                note.unlink()
    return folder


def _is_private(folder: Path) -> bool:
    """Returns whether a path is a folder, not a link, that this user owns and that no other user can change."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _notes(folder: Path) -> list[Failure]:
    notes = []
    for path in folder.glob(_NOTES):
        try:
            notes.append(Failure(**parse_json(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            continue
    return notes


def _as_record(failure: Failure) -> dict[str, object]:
    record = {name: value for name, value in asdict(failure).items() if name not in ("order", "seconds")}
    moment = datetime.fromtimestamp(failure.seconds, UTC).isoformat(timespec="milliseconds")
    return {"time": moment, "why": str(failure), **record}


def _write_json(path: Path, content: dict[str, object]) -> None:
    """Replaces a file. A failed write is only printed, because it must not hide the error to be reported."""
    try:
        write_atomic(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        sys.stderr.write(f"{path} could not be written ({error}).\n")
