"""Ends every command in the same way: an error becomes one message and an exit code.

Imports neither torch nor Hydra.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from framework.distributed.processes.failure_report import REPORT, report_once
from framework.errors import FrameworkError

UNEXPECTED = 1
"""Exit code after an error that was caused by Cloze or the machine, not by the input."""

INTERRUPTED = 130
"""Exit code after Ctrl-C outside of training, 128 + SIGINT as in shells."""


def guard(body: Callable[[], object]) -> None:
    """Runs the body of a command. Every error except SystemExit ends the process with one message and an exit code.

    Exit codes are 2 for a FrameworkError (1 for a ResourceError or an AuditError), 1 for an unexpected error, and 130
    after Ctrl-C.
    """
    try:
        body()
    except Exception as error:  # noqa: BLE001  no command may end in a traceback
        exit_with(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


def ignore_closed_pipe(body: Callable[[], object]) -> None:
    """Runs a body and ignores a closed output pipe, as in `--help | head`."""
    try:
        body()
    except BrokenPipeError:
        pass
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes again at exit and would report the same error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_with(error: Exception) -> NoReturn:
    """Ends the process with the exit code of its error; one rank reports the first failure of the run.

    The traceback of an unexpected error is written to the log of the run, or to a separate file if there is no log.
    """
    if isinstance(error, FrameworkError):
        report_once(error)
        sys.exit(error.exit_code)
    REPORT.keep_traceback(error)
    report_once(error)
    sys.exit(UNEXPECTED)
