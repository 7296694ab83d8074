"""What watches over one start of a run: a log file for each rank, the report of a failure, the watchdog."""

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
    """Entered by all ranks, after they met and the run folder is there; around everything that trains.

    `logs/` in the run folder gets rank_00000.log and so on, to which each start adds, and failure.json, which tells of
    the newest failure. What ranks tell each other lies in logs/live/, in a folder of its own for each start: nothing
    that an earlier start left can be taken for news.
    """

    def __init__(self, run_folder: Path, info: ProcessInfo, timeout_seconds: float) -> None:
        """Takes what is watched.

        Args:
            run_folder: Shared by all ranks.
            info: This process.
            timeout_seconds: The longest time a rank may go without progress.
        """
        self.logs = run_folder / LOGS_FOLDER
        self.info = info
        self.timeout_seconds = timeout_seconds
        self._leaving = ExitStack()

    def __enter__(self) -> None:
        """Begins. Collective: all ranks must call."""
        name = gather(f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{socket.gethostname()}-{os.getpid()}")[0]
        live = self.logs / _LIVE / name
        on_first_rank(lambda: _make_anew(live))
        self._leaving.enter_context(rank_log(self.logs, self.info.rank))
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
        self._leaving.callback(watchdog.stop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends; after an error, only when the ranks have found out which failure came first."""
        with self._leaving:
            if error is None:
                logger.info("end")
                REPORT.close()
            elif not isinstance(error, KeyboardInterrupt):
                logger.error("first failure: %s", first_failure(error))
                logger.error("this rank failed", exc_info=error)


def _make_anew(live: Path) -> None:
    """Makes the folder of a start and removes those of earlier ones."""
    shutil.rmtree(live.parent, ignore_errors=True)
    live.mkdir(parents=True)
