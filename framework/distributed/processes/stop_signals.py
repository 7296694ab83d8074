"""Signals that ask a run to leave. Their handlers only set a flag; the run looks at it between two steps.

A handler may do nothing else: it runs between any two lines of a step, where another rank may wait in a collective, so
that whatever it sends or saves can wait without end.
"""

import os
import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_INTERRUPTED = b"interrupted: the run finishes its step, saves and leaves; interrupt again to end it at once\n"


class StopSignals:
    """The first stop signal that this process got.

    Attributes:
        received: None: there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def install(self) -> None:
        """Takes over the handlers. Outside the main thread Python allows no handlers, and nothing is done."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._before.items():
            # None: the handler was not set from Python, and cannot be set from there either.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        if number == signal.SIGINT:
            # The next one ends the process even where it stands in a collective and Python gets no turn.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(2, _INTERRUPTED)


def ignore_stop_signals(_: int) -> None:
    """Lets a loader's process live on when all processes of a job are signalled: its run still needs batches.

    It ends when the training process tells it to, or is gone.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
