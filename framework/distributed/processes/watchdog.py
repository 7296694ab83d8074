"""Watchdog that detects hangs and names the rank: a thread of each rank reports the position of its main thread.

The main thread begins an activity (`position`) at every micro-batch and phase, the same on all ranks. If one rank
hangs, the others soon wait for it in a collective, so that no rank makes progress. The hanging rank is silent (its
whole process is stopped), has begun fewer activities than the others, or has begun as many but is not in a collective.
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
from framework.distributed.processes.failure_report import REPORT, attribute_to_ranks
from framework.distributed.processes.position import POSITION
from framework.errors import DistributedError

logger = logging.getLogger("framework.run")

_COLLECTIVES = str(Path("torch", "distributed"))
_NO_COLLECTIVES = str(Path("torch", "distributed", "checkpoint"))


def beat_interval(timeout_seconds: float) -> float:
    """Returns the seconds between two beats.

    Args:
        timeout_seconds: Time without progress after which a rank counts as hanging.
    """
    return min(max(timeout_seconds / 20, 0.25), 2.0)


class Watchdog:
    """Thread that runs during training. If the run hangs, it reports the hanging rank and ends this process."""

    def __init__(self, beats: Beats, rank: int, log: Path, timeout_seconds: float) -> None:
        """Creates the thread without starting it.

        Args:
            beats: Heartbeats of this start.
            rank: Rank of this process.
            log: Log file of this process.
            timeout_seconds: Longest time that the main thread may spend in one activity. Time in which the whole
                process was stopped does not count.
        """
        self.beats = beats
        self.rank = rank
        self.log = log
        self.timeout_seconds = timeout_seconds
        # A notebook may train outside Python's main thread.
        self._main = threading.current_thread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._number = 0

    def start(self) -> None:
        """Writes the first beat and starts the thread."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. The last beat remains in the folder."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        interval = self.beats.interval_seconds
        count, stalled_seconds, last = POSITION.count, 0.0, time.monotonic()
        while not self._stop.wait(interval):
            self._beat()
            now = time.monotonic()
            # At most two intervals count per iteration: a process that was stopped for longer does not hang.
            stalled_seconds += min(now - last, 2 * interval)
            last = now
            if POSITION.count != count:
                count, stalled_seconds = POSITION.count, 0.0
            elif stalled_seconds >= self.timeout_seconds:
                self._end_if_hung(count)
                stalled_seconds = 0.0

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
                point=POSITION.activity,
                place=_current_function(frame),
                waits_for_others=_waits_for_others(frame),
                log=str(self.log),
            )
        )

    def _end_if_hung(self, count: int) -> None:
        """Checks the heartbeats of all ranks, and ends the process unless it has made progress in the meantime."""
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
            silent = []  # the folder is not writable, so old beats do not mean silent ranks
        hung = hung_ranks(now, silent)
        positions = "; ".join(_describe(beat, beat in silent) for beat in hung)
        message = f"hangs: no progress within trainer.timeout_seconds={self.timeout_seconds:g}. {positions}"
        logger.error("%s\n%s", message, _stack(self._main.ident))
        step = POSITION.step if silent else hung[0].step  # the last beat of a silent rank may be old
        failure = REPORT.exchange(attribute_to_ranks(REPORT.describe(DistributedError(message)), hung, message, step))
        if failure.reporter == self.rank:
            REPORT.print_once()
        # A loader process that hangs would outlive this process, whose main thread hangs and cannot end it.
        for child in multiprocessing.active_children():
            logger.error("kills the loader process %s (pid %s)", child.name, child.pid)
            child.kill()
        os._exit(DistributedError.exit_code)


def hung_ranks(beats: Mapping[int, Beat], silent: Sequence[Beat]) -> list[Beat]:
    """Returns the last beats of the ranks for which the others wait, given that no rank makes progress.

    Args:
        beats: Newest beat of each rank, at least one.
        silent: Last beats of the ranks that have stopped beating.
    """
    if silent:
        return sorted(silent, key=lambda beat: beat.rank)
    fewest = min(beat.count for beat in beats.values())
    behind = sorted((beat for beat in beats.values() if beat.count == fewest), key=lambda beat: beat.rank)
    return [beat for beat in behind if not beat.waits_for_others] or behind


def _describe(beat: Beat, is_silent: bool) -> str:
    if not is_silent:
        return str(beat)
    cause = "its process is stopped, or its host is down"
    return f'Last heartbeat: {beat} ({cause}); its log ends with "{last_line(beat.log)}"'


def _current_function(frame: FrameType | None) -> str:
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
