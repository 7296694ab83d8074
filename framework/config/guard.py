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
"""Exit code after an error that is caused by Cloze or the machine rather than the input."""

INTERRUPTED = 130
"""Exit code after Ctrl-C outside of training, as shells write it: 128 + SIGINT."""


def guard(body: Callable[[], object]) -> None:
    """Runs the body of a command. Every error but SystemExit ends the process with one message and an exit code.

    Exit codes are 2 for a FrameworkError (1 for a ResourceError), 1 for an error that Cloze did not expect, and 130
    after Ctrl-C.
    """
    try:
        body()
    except Exception as error:  # noqa: BLE001  no command may end in a traceback
        leave(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


def until_the_reader_leaves(body: Callable[[], object]) -> None:
    """Runs a body whose output may go to a pipe that closes early, as in `--help | head`."""
    try:
        body()
    except BrokenPipeError:
        pass
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more at its end, and would report the same error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave(error: Exception) -> NoReturn:
    """Reports the first failure once, from one rank, and ends the process with the exit code of its own error.

    The traceback of an error that Cloze did not expect goes to the log of the run, or to a file of its own.
    """
    if isinstance(error, FrameworkError):
        report_once(error)
        sys.exit(error.exit_code)
    REPORT.keep_traceback(error)
    report_once(error)
    sys.exit(UNEXPECTED)
