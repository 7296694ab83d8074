"""Writes one log file per rank. Each line has time, rank and step, and is written at once, so that none is lost.

This adds one handler to Python's logging. `RUN_LOGGER` logs to the file only. Warnings of the rest of the package, of
Lightning and of Python go to the console as usual and also to the file.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from framework.distributed.processes.position import POSITION

RUN_LOGGER = "framework.run"

_PREFIX = "%(asctime)s rank %(rank)s step %(step)s %(levelname)s "
_DATE = "%Y-%m-%d %H:%M:%S"
_NOT_FOR_CONSOLE = (RUN_LOGGER, "py.warnings")
_CLOSED_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
"""Loggers that do not propagate to the root logger if Lightning was imported before logging was configured."""


class RankLogHandler(logging.Handler):
    """Appends each record in one write, so that a killed process loses none. A write error does not end the run."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._has_failed = False
        self._prefix = logging.Formatter(_PREFIX, _DATE)
        self._prefix.converter = time.gmtime  # UTC, because hosts may be in different time zones
        self._body = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record with rank and step before each line. The first write error is reported on stderr."""
        body = self._body.format(record)
        head = logging.makeLogRecord(record.__dict__ | {"exc_info": None, "exc_text": None, "stack_info": None})
        head.rank = self.rank
        head.step = "-" if POSITION.step is None else POSITION.step
        prefix = self._prefix.format(head)
        text = "".join(f"{prefix}{line}\n" for line in body.splitlines() or [""])
        try:
            os.write(self._descriptor, text.encode())
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                sys.stderr.write(
                    f"rank {self.rank}: its log cannot be written ({error}). The run continues without it.\n"
                )

    def close(self) -> None:
        """Closes the file."""
        super().close()
        os.close(self._descriptor)


def log_path(folder: Path, rank: int) -> Path:
    """Returns the path of a rank's log file."""
    return folder / f"rank_{rank:05d}.log"


@contextmanager
def rank_log(folder: Path, rank: int) -> Iterator[None]:
    """Also writes log records and warnings of this process to its log file while the block runs.

    Args:
        folder: Folder `logs/` of the run. If it is not writable, the run has no log, which is reported on stderr.
        rank: Rank of this process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = RankLogHandler(log_path(folder, rank), rank)
    except OSError as error:
        sys.stderr.write(f"rank {rank}: its log cannot be opened ({error}). The run continues without it.\n")
        yield
        return
    root, package = logging.getLogger(), logging.getLogger("framework")
    closed = [logger for name in _CLOSED_LOGGERS if not (logger := logging.getLogger(name)).propagate]
    console = logging.StreamHandler()  # once any handler exists, Python no longer shows warnings on the console
    console.setLevel(logging.WARNING)
    console.addFilter(lambda record: record.name not in _NOT_FOR_CONSOLE)
    level, show = package.level, warnings.showwarning
    package.setLevel(logging.INFO)
    root.addHandler(console)
    for logger in (root, *closed):
        logger.addHandler(handler)
    warnings.showwarning = _show_and_log(show)
    try:
        yield
    finally:
        warnings.showwarning = show
        for logger in (root, *closed):
            logger.removeHandler(handler)
        root.removeHandler(console)
        package.setLevel(level)
        handler.close()


def _show_and_log(show: Any) -> Any:
    """Returns a `showwarning` function that shows each warning and logs it the first time."""
    seen: set[tuple[str, str, int]] = set()

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(message, category, filename, lineno, file, line)
        if (str(message), filename, lineno) not in seen:
            seen.add((str(message), filename, lineno))
            text = " ".join(str(message).split())
            logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, text, filename, lineno)

    return show_warning
