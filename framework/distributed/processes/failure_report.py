"""One voice at failure: of all ranks that fail, the first is named, once, with its step and its error.

Failing ranks leave notes in a folder that the others see, wait a moment and read them: a process group is of no use to
ranks of which one is gone. Before a run has its folder the notes are this host's; from then on they are the run's.
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
from framework.distributed.processes.launcher_note import leave_note
from framework.distributed.processes.position import POSITION
from framework.distributed.processes.shortages import explain, is_kind
from framework.errors import DistributedError, FrameworkError
from framework.files import parse_json

_NOTES = "failure_*.json"

_GRACE_SECONDS = 1.0
"""How long failing ranks wait for each other's notes. torchrun stops the others only when this one has left."""

_STALE_SECONDS = 30.0
"""Older notes are of an earlier attempt: a change of membership restarts processes but does not count as a restart."""

_NAMED, _OTHER, _BROKEN = range(3)
"""Errors with a name come before others, and those before the collectives that broke because a peer has left."""


@dataclass(frozen=True)
class Failure:
    """What one rank says of a failure.

    Attributes:
        reporter: The rank that says it.
        rank: The rank that failed; another than the reporter where that one cannot speak.
        step: The step at which it failed; None: before the first.
        point: What it was doing.
        kind: Class of the error.
        message: In one line.
        order: See `_NAMED`.
        seconds: Since the epoch, by the reporter's clock.
        host: Of the rank that failed.
        pid: Of the rank that failed.
        log: The log file of the rank that failed, or of the reporter, with the traceback; None: there is none.
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
    """What this process knows of the failure of its start.

    Attributes:
        first: The failure that came first, once the ranks have looked; None before.
        is_shown: This process has printed it.
    """

    def __init__(self) -> None:
        self.first: Failure | None = None
        self.is_shown = False
        self._folder: Path | None = None
        self._logs: Path | None = None
        self._log: Path | None = None
        self._beats: Beats | None = None

    def open(self, folder: Path, logs: Path, log: Path, beats: Beats) -> None:
        """Lets notes go to the run folder.

        Args:
            folder: For the notes of this start, empty.
            logs: Gets failure.json.
            log: This rank's log file.
            beats: Of this start.
        """
        self._folder, self._logs, self._log, self._beats = folder, logs, log, beats
        self.first, self.is_shown = None, False

    def close(self) -> None:
        """Forgets everything: a run came to its end, or a command begins."""
        self.first, self.is_shown = None, False
        self._folder = self._logs = self._log = self._beats = None
        POSITION.step = None

    def keep_traceback(self, error: BaseException) -> None:
        """Writes the traceback of an error to a private file, unless the log of this rank contains it."""
        if self._log is None:
            number, name = tempfile.mkstemp(prefix="cloze-traceback-", suffix=".txt")
            with open(number, "w", encoding="utf-8") as file:
                file.writelines(traceback.format_exception(error))
            self._log = Path(name)

    @property
    def is_open(self) -> bool:
        """True while notes go to a run folder."""
        return self._folder is not None

    def settle(self, failure: Failure) -> Failure:
        """Leaves a note, waits for those of others and returns the failure that came first.

        Every failing rank must call it. A second call returns what the first one found. In a run, SIGTERM, by which
        launchers end the ranks that are left, is ignored from here on: the process leaves, and what it knows is wanted.
        """
        if self.first is not None:
            return self.first
        if _this_process().world_size == 1:
            self.first = failure
        else:
            if self.is_open and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.first = self._first_of_all(failure)
        if self._logs is not None and self.first.reporter == _this_process().rank:
            _write_json(self._logs / FAILURE_FILE, _as_record(self.first))
        leave_note(str(self.first), self.first.kind, self.first.step)
        return self.first

    def own(self, error: BaseException) -> Failure:
        """What this rank says of an error that it is about to leave with."""
        info, error = _this_process(), explain(error)
        order = _NAMED if isinstance(error, FrameworkError) else _BROKEN if _is_broken(error) else _OTHER
        rank = error.rank if isinstance(error, FrameworkError) and error.rank is not None else info.rank
        return Failure(
            reporter=info.rank,
            rank=rank,
            step=POSITION.step,
            point=POSITION.point,
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
        # Only broken connections: somebody has left without a word, perhaps still to be seen by all.
        reporters = [note.reporter for note in _notes(folder)]
        silent = self._beats.silent(reporters)
        if silent:
            told = "; ".join(f'{beat}; its log ends with "{last_line(beat.log)}"' for beat in silent)
            message = f"gone without a word (killed, or out of memory). Last seen: {told}"
            # Ranks are never a step apart, but a last beat may be old: the step is that of who misses the others.
            self._post(folder, blame(failure, silent, message, failure.step))
        time.sleep(_GRACE_SECONDS)
        return first_of(_notes(folder)) or failure

    def _post(self, folder: Path, failure: Failure) -> None:
        _write_json(folder / f"failure_{failure.reporter:05d}.json", asdict(failure))


REPORT = FailureReport()


def first_of(notes: Sequence[Failure]) -> Failure | None:
    """The failure that came first: by order, then by time; None without one.

    The same words from several ranks are one failure, told by the lowest of them: clocks of hosts differ a little, and
    what all ranks find they find at about the same moment.
    """
    if not notes:
        return None
    earliest: dict[tuple[int, str], float] = {}
    for note in notes:
        words = (note.order, note.message)
        earliest[words] = min(note.seconds, earliest.get(words, note.seconds))
    return min(notes, key=lambda note: (note.order, earliest[note.order, note.message], note.message, note.reporter))


def settle(error: BaseException) -> Failure:
    """The failure that came first, where this rank is about to leave with an error. See `FailureReport.settle`."""
    return REPORT.settle(REPORT.own(error))


def report_once(error: BaseException) -> Failure | None:
    """Prints the first failure to stderr in one line, once, from one rank; every failing rank must call it.

    Returns:
        The failure where it is this rank that prints it; None on the others.
    """
    first = settle(error)
    if first.reporter != _this_process().rank:
        return None
    if not REPORT.is_shown:
        show(first)
        REPORT.is_shown = True
    return first


def show(failure: Failure) -> None:
    """Prints a failure, and the file with details."""
    what = "more in" if failure.order == _NAMED else "the full traceback is in"
    file = f"\n{what} {failure.log}" if failure.log is not None else ""
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(failure))
    sys.stderr.write(f"{text}{file}\n")
    sys.stderr.flush()


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; of one that came out of a loader's process, what was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught ") and lines[1].startswith("Original Traceback"):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(lines) or "no message"


def _kind(error: BaseException) -> str:
    """The name of an error's class; of ours, of the kind that users know it by."""
    classes = type(error).__mro__
    return next((each for each in classes if each.__module__ == FrameworkError.__module__), classes[0]).__name__


def _is_broken(error: BaseException) -> bool:
    """True for what a collective or a store raises when a peer is gone or does not answer."""
    text = str(error).lower()
    is_of_library = isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
    return is_of_library or is_kind(error, "torch.distributed", "DistError")


def blame(failure: Failure, beats: Sequence[Beat], message: str, step: int | None) -> Failure:
    """A note about ranks that cannot speak for themselves, or do not get on.

    Args:
        failure: What the reporter would say of itself.
        beats: The last ones of those ranks.
        message: What became of them.
        step: At which it happened.
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
    """Returns this process; without valid launcher variables, a single process."""
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
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


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
    """Replaces a file; a disk that refuses must not hide the error that is to be told."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        sys.stderr.write(f"{path} could not be written ({error}).\n")
