"""Heartbeats: each rank keeps one small file in the run folder, which the other ranks read without a collective.

Files are used because a store ends with the rank that hosts it. The clocks of different hosts are never compared.
"""

import json
import os
import socket
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from framework.files import parse_json


@dataclass(frozen=True)
class Beat:
    """Latest heartbeat of one rank.

    Attributes:
        rank: Rank that wrote the beat.
        host: Host name of the rank.
        pid: Process id of the rank.
        number: Number of the beat; increases with every beat.
        count: Number of activities that the main thread has begun.
        step: Current step; None: training has not begun.
        point: Current activity, for example "validates".
        place: Current Python function of the main thread, with file and line.
        waits_for_others: True if the main thread is in a collective.
        log: Log file of the rank.
    """

    rank: int
    host: str
    pid: int
    number: int
    count: int
    step: int | None
    point: str
    place: str
    waits_for_others: bool
    log: str

    def __str__(self) -> str:
        where = f"in step {self.step}" if self.step is not None else "before the first step"
        waiting = ", waiting for other ranks" if self.waits_for_others else ""
        return f"rank {self.rank} (host {self.host}, pid {self.pid}) {where}: {self.point}{waiting}, in {self.place}"


_KINDS: dict[str, Any] = {each.name: each.type for each in fields(Beat)}
"""Type of each attribute. A file with other types counts as missing."""


class Beats:
    """Heartbeat files of one start of a run."""

    def __init__(self, folder: Path, interval_seconds: float) -> None:
        """Stores the folder and the interval.

        Args:
            folder: Folder of this start, shared by all ranks.
            interval_seconds: Time between two beats of a rank.
        """
        self.folder = folder
        self.interval_seconds = interval_seconds

    def write(self, beat: Beat) -> bool:
        """Replaces the file of a rank. Returns False if the write fails, because a failed write must not end a run."""
        path = self._path(beat.rank)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            return False
        return True

    def read(self) -> dict[int, Beat]:
        """Returns the newest beat of each rank that has written one, by rank."""
        beats = {}
        for path in self.folder.glob("beat_*.json"):
            try:
                beat = Beat(**parse_json(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
            if all(isinstance(getattr(beat, name), kind) for name, kind in _KINDS.items()):
                beats[beat.rank] = beat
        return beats

    def silent(self, except_ranks: Collection[int] = ()) -> list[Beat]:
        """Returns the last beats of the ranks that have stopped beating: their process has ended or is stopped.

        The call takes three intervals. It returns at once if processes of this host have ended.

        Args:
            except_ranks: Ranks that are known to be alive.
        """
        before = {rank: beat for rank, beat in self.read().items() if rank not in except_ranks}
        gone = [beat for beat in before.values() if is_gone(beat)]
        if gone or not before:
            return gone
        time.sleep(3 * self.interval_seconds)
        return [beat for rank, beat in self.read().items() if rank in before and beat.number == before[rank].number]

    def _path(self, rank: int) -> Path:
        return self.folder / f"beat_{rank:05d}.json"


def last_line(log: str) -> str:
    """Returns the newest line of a log file; an empty string if the file cannot be read."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def is_gone(beat: Beat) -> bool:
    """Returns True if the process of a rank ran on this host and has ended; False for processes of other hosts."""
    if beat.host != socket.gethostname():
        return False
    try:
        # The state follows the command's name, which may contain spaces and brackets. Z: a zombie, which has ended.
        return Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return Path("/proc/self/stat").exists()
