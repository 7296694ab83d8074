"""Supervision of one start of a run: a log file per rank, the failure report, and the watchdog."""

import logging
import os
import shutil
import socket
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from framework.distributed.processes.agreement import gather, on_first_rank
from framework.distributed.processes.beats import Beats
from framework.distributed.processes.environment import ProcessInfo
from framework.distributed.processes.failure_report import REPORT, first_failure
from framework.distributed.processes.watchdog import Watchdog, beat_interval
from framework.tracking.rank_log import RUN_LOGGER, log_path, rank_log

logger = logging.getLogger(RUN_LOGGER)

LOGS_FOLDER = "logs"
_LIVE = "live"


class Supervision:
    """Context that supervises training. All ranks enter it after the process group and the run folder exist.

    The folder `logs/` of the run contains rank_00000.log and so on, to which each start appends, and failure.json with
    the newest failure. Ranks exchange messages in a new folder in logs/live/ for each start, so that files of an
    earlier start are never read.
    """

    def __init__(self, run_folder: Path, info: ProcessInfo, timeout_seconds: float) -> None:
        """Stores the arguments. Supervision begins on entry.

        Args:
            run_folder: Run folder, shared by all ranks.
            info: This process.
            timeout_seconds: Longest time in seconds that a rank may make no progress.
        """
        self.logs = run_folder / LOGS_FOLDER
        self.info = info
        self.timeout_seconds = timeout_seconds
        self._exits = ExitStack()

    def __enter__(self) -> None:
        """Opens the log, the failure report and the watchdog. Collective: all ranks must call."""
        name = gather(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{socket.gethostname()}-{os.getpid()}")[0]
        live = self.logs / _LIVE / name
        on_first_rank(lambda: _recreate(live))
        self._exits.enter_context(rank_log(self.logs, self.info.rank))
        logger.info(
            "start at %s UTC: host %s, pid %d, rank %d of %d, attempt %s",
            f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            socket.gethostname(),
            os.getpid(),
            self.info.rank,
            self.info.world_size,
            os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )
        beats = Beats(live, beat_interval(self.timeout_seconds))
        log = log_path(self.logs, self.info.rank)
        REPORT.open(live, self.logs, log, beats)
        watchdog = Watchdog(beats, self.info.rank, log, self.timeout_seconds)
        watchdog.start()
        self._exits.callback(watchdog.stop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the supervision. After an error, waits until the ranks have determined which failure came first."""
        with self._exits:
            if error is None:
                logger.info("end")
                REPORT.close()
            elif not isinstance(error, KeyboardInterrupt):
                logger.error("first failure: %s", first_failure(error))
                logger.error("this rank failed", exc_info=error)


def _recreate(live: Path) -> None:
    """Creates the folder of a start and removes the folders of earlier starts."""
    shutil.rmtree(live.parent, ignore_errors=True)
    live.mkdir(parents=True)
