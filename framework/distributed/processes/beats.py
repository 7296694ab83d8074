"""Signs of life: each rank keeps one small file in the run folder, which the others read without any collective.

A file and not a store: the store dies with the rank that holds it. Clocks of hosts are never compared.
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
    """What one rank last said of itself.

    Attributes:
        rank: Who says it.
        host: Its host's name.
        pid: Its process.
        number: Grows with every beat.
        count: Marks that its main thread has passed.
        step: The step it is at; None: training has not begun.
        point: What it is doing.
        place: Python function in which its main thread stands.
        waits_for_others: Its main thread stands in a collective.
        log: Its log file.
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
"""Types by attribute; a file with other types counts as missing."""


class Beats:
    """The files of one start of a run."""

    def __init__(self, folder: Path, interval_seconds: float) -> None:
        """Takes the place.

        Args:
            folder: Of this start, shared by all ranks.
            interval_seconds: Between two beats of a rank.
        """
        self.folder = folder
        self.interval_seconds = interval_seconds

    def write(self, beat: Beat) -> bool:
        """Replaces a rank's file; False where the disk refuses, which must not end a run."""
        path = self._path(beat.rank)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            return False
        return True

    def read(self) -> dict[int, Beat]:
        """The newest beat of each rank that ever gave one."""
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
        """Last beats of the ranks that give none any more: their process is gone, or stands still as a whole.

        Takes three intervals, unless the processes are of this host and gone.

        Args:
            except_ranks: Who is known to live.
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
    """The newest line of a log file; empty where it cannot be read."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def is_gone(beat: Beat) -> bool:
    """True where a rank's process was of this host and has ended; of other hosts nothing is known."""
    if beat.host != socket.gethostname():
        return False
    try:
        # The state comes after the command's name, which may hold spaces and brackets. Z: ended, not yet buried.
        return Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return Path("/proc/self/stat").exists()
