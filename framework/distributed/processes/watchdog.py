"""Finds the rank that hangs: a thread of each rank tells where its main thread stands and notices when it stands still.

The main thread passes marks (`position`) at every micro-batch and phase, the same on all ranks. Where one hangs, the
others soon wait for it in a collective, so that all stand still; the one that hangs is silent (its whole process is
stopped), or has passed fewer marks than the others, or as many but does not stand in a collective.
"""

import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from framework.distributed.processes.beats import Beat, Beats, last_line
from framework.distributed.processes.failure_report import REPORT, blame, show
from framework.distributed.processes.position import POSITION
from framework.errors import DistributedError

logger = logging.getLogger("framework.run")

_COLLECTIVES = str(Path("torch", "distributed"))
_NO_COLLECTIVES = str(Path("torch", "distributed", "checkpoint"))


def beat_interval(timeout_seconds: float) -> float:
    """Seconds between two beats, for a time after which a rank that stands still counts as hanging."""
    return min(max(timeout_seconds / 20, 0.25), 2.0)


class Watchdog:
    """Lives while a run trains; where the run hangs, names the rank and ends this process."""

    def __init__(self, beats: Beats, rank: int, log: Path, timeout_seconds: float) -> None:
        """Takes what it watches.

        Args:
            beats: Of this start.
            rank: This process's.
            log: Its log file.
            timeout_seconds: The longest time that the main thread may spend between two marks. Time in which the whole
                process was stopped does not count.
        """
        self.beats = beats
        self.rank = rank
        self.log = log
        self.timeout_seconds = timeout_seconds
        # A notebook may train outside of the main thread.
        self._main = threading.current_thread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._number = 0

    def start(self) -> None:
        """Gives the first beat and begins to watch."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; the last beat stays where it is."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        interval = self.beats.interval_seconds
        count, still_seconds, last = POSITION.count, 0.0, time.monotonic()
        while not self._stop.wait(interval):
            self._beat()
            now = time.monotonic()
            # No step of the clock counts as more than two intervals: a process that was stopped has not hung.
            still_seconds += min(now - last, 2 * interval)
            last = now
            if POSITION.count != count:
                count, still_seconds = POSITION.count, 0.0
            elif still_seconds >= self.timeout_seconds:
                self._end_where_hung(count)
                still_seconds = 0.0

    def _beat(self) -> bool:
        frame = sys._current_frames().get(self._main.ident or 0)
        self._number += 1
        return self.beats.write(
            Beat(
                rank=self.rank,
                host=socket.gethostname(),
                pid=os.getpid(),
                number=self._number,
                count=POSITION.count,
                step=POSITION.step,
                point=POSITION.point,
                place=_place(frame),
                waits_for_others=_waits_for_others(frame),
                log=str(self.log),
            )
        )

    def _end_where_hung(self, count: int) -> None:
        """Looks at all ranks once more, and ends the process unless it got on meanwhile."""
        before = self.beats.read()
        for _ in range(3):
            if self._stop.wait(self.beats.interval_seconds):
                return
            can_write = self._beat()
        now = self.beats.read()
        if POSITION.count != count:
            return
        silent = [beat for rank, beat in now.items() if rank in before and beat.number == before[rank].number]
        if not can_write:
            silent = []  # the folder is to blame, not those who write to it
        hung = hung_ranks(now, silent)
        told = "; ".join(_told(beat, beat in silent) for beat in hung)
        message = f"hangs: no progress within trainer.timeout_seconds={self.timeout_seconds:g}. {told}"
        logger.error("%s\n%s", message, _stack(self._main.ident))
        step = POSITION.step if silent else hung[0].step  # what a silent rank said last may be old
        failure = REPORT.settle(blame(REPORT.own(DistributedError(message)), hung, message, step))
        if failure.reporter == self.rank:
            show(failure)
        # A loader's process that hangs would outlive this one, which cannot tidy up: its main thread hangs.
        for child in multiprocessing.active_children():
            logger.error("ends its loader's process %s (pid %s)", child.name, child.pid)
            child.kill()
        os._exit(DistributedError.exit_code)


def hung_ranks(beats: Mapping[int, Beat], silent: Sequence[Beat]) -> list[Beat]:
    """The ranks for which the others wait, where no rank gets on.

    Args:
        beats: The newest of each rank, at least one.
        silent: Those of ranks that give none any more.
    """
    if silent:
        return sorted(silent, key=lambda beat: beat.rank)
    fewest = min(beat.count for beat in beats.values())
    behind = sorted((beat for beat in beats.values() if beat.count == fewest), key=lambda beat: beat.rank)
    return [beat for beat in behind if not beat.waits_for_others] or behind


def _told(beat: Beat, is_silent: bool) -> str:
    if not is_silent:
        return str(beat)
    words = f'its log ends with "{last_line(beat.log)}"'
    return f"No sign of life (its process is stopped, or its host gone) since {beat}; {words}"


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "nothing"
    file = Path(frame.f_code.co_filename)
    return f"{file.parent.name}/{file.name}:{frame.f_lineno} {frame.f_code.co_name}"


def _waits_for_others(frame: FrameType | None) -> bool:
    name = frame.f_code.co_filename if frame is not None else ""
    return _COLLECTIVES in name and _NO_COLLECTIVES not in name


def _stack(thread: int | None) -> str:
    frame = sys._current_frames().get(thread or 0)
    return "" if frame is None else "Stack of the main thread:\n" + "".join(traceback.format_stack(frame))
