"""One voice at failure: of all ranks that fail, the one whose error says most prints it, the others stay silent."""

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from framework.distributed.environment import ProcessInfo, process_info
from framework.errors import FrameworkError

_GRACE_SECONDS = 1.0
"""How long failing ranks wait for each other's notes. torchrun stops the others only when this one has left."""

_STALE_SECONDS = 30.0
"""Older notes are of an earlier attempt: a change of membership restarts processes but does not count as a restart."""


def _board(info: ProcessInfo) -> Path:
    """A folder for the notes of this host's processes of this attempt, whether or not a process group was ever made."""
    parts = [
        str(os.getuid()),
        str(os.getppid()),
        *(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")),
        str(info.world_size),
    ]
    return Path(tempfile.gettempdir()) / f"cloze-failure-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"


def _priority(error: BaseException, rank: int) -> str:
    """Sorts notes: errors with a name before the collectives that broke because a peer has left; then by rank."""
    named = isinstance(error, FrameworkError)
    return f"{0 if named else 1}-{rank:08d}"


def speaks_for_all(error: BaseException) -> bool:
    """Says whether this rank is the one to print; waits a second for the others where there are several.

    Every failing rank must call it, once, with the error that it is about to leave with. Each host decides for itself.
    """
    info = process_info()
    if info.world_size == 1:
        return True
    board = _board(info)
    board.mkdir(mode=0o700, exist_ok=True)
    own = _priority(error, info.rank)
    (board / own).touch()
    time.sleep(_GRACE_SECONDS)
    oldest = time.time() - _STALE_SECONDS
    return min(note.name for note in board.iterdir() if note.stat().st_mtime > oldest) == own


def report_once(error: BaseException) -> None:
    """Prints an error to stderr from the rank that speaks for all, with the rank where there are several."""
    info = process_info()
    if speaks_for_all(error):
        where = f" (rank {info.rank})" if info.world_size > 1 else ""
        sys.stderr.write(f"{type(error).__name__}{where}: {error}\n")
        sys.stderr.flush()
