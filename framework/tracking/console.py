"""Opens consoles on standard output and standard error, and keeps errors of these streams from stopping a run.

Rich's console ends the process when the reader of a pipe exits. A full disk behind standard output raises an error
during a step. A pipe that nobody reads blocks. None of these may end a training run.
"""

import io
import logging
import os
import select
import stat
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from framework.tracking.rank_log import RUN_LOGGER

_FILE_WIDTH = 10_000
"""Width of a console that is not a terminal, so that no table is truncated."""

_PATIENCE_SECONDS = 1.0
"""Time that output waits for a reader before it is dropped. After the first drop, output no longer waits."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

logger = logging.getLogger(RUN_LOGGER)


class SafeConsole(Console):
    """Escapes control characters in texts. Labels and records may be untrusted and could control a terminal."""

    @override
    def render_str(
        self,
        text: str,
        *,
        style: Any = "",
        justify: Any = None,
        overflow: Any = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: Any = None,
    ) -> Text:
        """Returns Rich's rendering of the text with control characters escaped."""
        return super().render_str(
            text.translate(_CONTROLS),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=emoji,
            markup=markup,
            highlight=highlight,
            highlighter=highlighter,
        )


def open_console(stderr: bool = False) -> Console:
    """Opens a console on standard output or standard error. Only terminals limit the width of tables."""
    console = SafeConsole(stderr=stderr)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def print_line(text: str, console: Console | None = None) -> None:
    """Prints a line unchanged: without markup, highlighting or wrapping.

    Args:
        text: The line.
        console: Console to print to; None: standard output.
    """
    (console or open_console()).print(text, highlight=False, markup=False, soft_wrap=True)


class DispensableStream(io.RawIOBase):
    """Writes to a file descriptor and drops data that it does not accept within a second, without an error.

    Args:
        descriptor: File descriptor, left open and unchanged, because other processes share its flags.
        name: Name of the stream for the log message about dropped output.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self.name = name
        self._descriptor = descriptor
        self._nonblocking = _open_nonblocking(descriptor)
        self._patience_seconds = _PATIENCE_SECONDS

    def writable(self) -> bool:
        """Returns True."""
        return True

    def isatty(self) -> bool:
        """Returns True for a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Returns the descriptor, for child processes."""
        return self._descriptor

    def write(self, data: Any) -> int:
        """Writes the data or drops the rest of it; returns the full length in either case."""
        rest = memoryview(data).cast("B")
        length, deadline = len(rest), time.monotonic() + self._patience_seconds
        try:
            while rest:
                # A pipe that select reports as ready accepts PIPE_BUF bytes without blocking.
                _, is_ready, _ = select.select((), (self._nonblocking,), (), max(0.0, deadline - time.monotonic()))
                if not is_ready:
                    self._report_drop("nobody reads it")
                    break
                try:
                    rest = rest[os.write(self._nonblocking, rest[: select.PIPE_BUF]) :]
                except BlockingIOError:
                    continue  # another process was faster
            else:
                self._patience_seconds = _PATIENCE_SECONDS
        except OSError as error:
            self._report_drop(str(error))
        return length

    def _report_drop(self, why: str) -> None:
        """Logs the first drop to the rank's log file, if there is one."""
        is_first, self._patience_seconds = self._patience_seconds > 0, 0.0
        if is_first and logger.hasHandlers():
            logger.warning("%s accepts no output (%s). The run continues without it.", self.name, why)


def _open_nonblocking(descriptor: int) -> int:
    """Opens a pipe or terminal a second time, so that only this process's writes never block.

    Returns:
        The new descriptor; the given one for files, or if the system cannot open it again.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or os.isatty(descriptor)):
        return descriptor
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return descriptor


def make_console_dispensable() -> None:
    """Replaces standard output and standard error, also in log handlers, with streams that cannot fail."""
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        after = _dispensable(before, name)
        setattr(sys, name, after)
        for each in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(each, "handlers", ()):
                if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                    handler.setStream(after)


def _dispensable(stream: Any, name: str) -> io.TextIOWrapper:
    """Wraps the descriptor of a stream; a closed stream is replaced by the null device."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    raw = DispensableStream(stream.fileno(), f"standard {'output' if name == 'stdout' else 'error'}")
    # Unbuffered, because a log message about the stream may be written to the stream itself.
    return io.TextIOWrapper(raw, stream.encoding, errors="backslashreplace", write_through=True)  # type: ignore[arg-type]
