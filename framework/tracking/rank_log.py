"""Each rank's own log file: what a night shift reads. Time, rank and step in every line; nothing logged is lost.

Python's logging with one handler more. What is meant for the file only goes to `RUN_LOGGER`; warnings of the rest of
the package, of Lightning and of Python go to the console as ever, and to the file.
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
"""Where Lightning was imported before anything took log records, it hands none on to Python's root logger."""


class RankLogHandler(logging.Handler):
    """Appends each record in one write, so that a killed process loses nothing; a disk that refuses ends no run."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._refused = False
        self._prefix = logging.Formatter(_PREFIX, _DATE)
        self._prefix.converter = time.gmtime  # hosts and the hours of a night shift may have other zones
        self._body = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, rank and step before each of its lines; says once on stderr where it cannot."""
        body = self._body.format(record)
        head = logging.makeLogRecord(record.__dict__ | {"exc_info": None, "exc_text": None, "stack_info": None})
        head.rank = self.rank
        head.step = "-" if POSITION.step is None else POSITION.step
        prefix = self._prefix.format(head)
        text = "".join(f"{prefix}{line}\n" for line in body.splitlines() or [""])
        try:
            os.write(self._descriptor, text.encode())
        except OSError as error:
            if not self._refused:
                self._refused = True
                sys.stderr.write(f"rank {self.rank}: its log cannot be written ({error}); the run goes on without.\n")

    def close(self) -> None:
        """Closes the file."""
        super().close()
        os.close(self._descriptor)


def log_path(folder: Path, rank: int) -> Path:
    """The log file of a rank."""
    return folder / f"rank_{rank:05d}.log"


@contextmanager
def rank_log(folder: Path, rank: int) -> Iterator[None]:
    """Sends log records and warnings of this process to its file too while the block runs.

    Args:
        folder: The run's `logs/`; where it cannot be written, the run has no log and says so.
        rank: This process's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = RankLogHandler(log_path(folder, rank), rank)
    except OSError as error:
        sys.stderr.write(f"rank {rank}: there is no log file ({error}); the run goes on without.\n")
        yield
        return
    root, package = logging.getLogger(), logging.getLogger("framework")
    closed = [logger for name in _CLOSED_LOGGERS if not (logger := logging.getLogger(name)).propagate]
    console = logging.StreamHandler()  # with any handler in place Python no longer brings warnings to the console
    console.setLevel(logging.WARNING)
    console.addFilter(lambda record: record.name not in _NOT_FOR_CONSOLE)
    level, show = package.level, warnings.showwarning
    package.setLevel(logging.INFO)
    root.addHandler(console)
    for logger in (root, *closed):
        logger.addHandler(handler)
    warnings.showwarning = _also_logged(show)
    try:
        yield
    finally:
        warnings.showwarning = show
        for logger in (root, *closed):
            logger.removeHandler(handler)
        root.removeHandler(console)
        package.setLevel(level)
        handler.close()


def _also_logged(show: Any) -> Any:
    """Python's way to show a warning, with a line in the log for each the first time."""
    seen: set[tuple[str, str, int]] = set()

    def show_and_log(
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

    return show_and_log
