"""Signals that stop a run. The handlers only set a flag, which the run checks between two steps.

A handler must do nothing else. It runs between any two lines of a step, while other ranks may wait in a collective.
Anything that it sends or saves could therefore block forever.
"""

import os
import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_INTERRUPTED = (
    b"interrupted: the run finishes its step, saves a checkpoint and exits. Interrupt again to end it immediately.\n"
)


class StopSignals:
    """Handlers that record the first stop signal of this process.

    Attributes:
        received: First stop signal; None: no signal has arrived.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def install(self) -> None:
        """Installs the handlers. Outside the main thread Python allows no handlers, and the call does nothing."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._record)

    def restore(self) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            # None: the handler was not set from Python, and Python cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous = {}

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        if number == signal.SIGINT:
            # The next interrupt ends the process even if it waits in a collective, where no Python handler can run.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(2, _INTERRUPTED)


def ignore_stop_signals(_: int) -> None:
    """Makes a loader process ignore stop signals, because its run still needs batches after the job is signalled.

    The loader process exits when the training process stops it or has ended.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
