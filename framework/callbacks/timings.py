"""A lap timer shared by the callbacks that know what the time went to and the one that reports it."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator


class Timings:
    """Seconds by name since the last `take`: laps, where every moment belongs to one name, and spans beside them.

    A span is what goes on while laps are counted; it may end in another thread than the main one. An interruption is
    taken out of the lap into which it falls.

    Attributes:
        longest: The longest lap, span or interruption of each name since `restart`; 0 where there was none.
    """

    def __init__(self) -> None:
        self.longest: dict[str, float] = defaultdict(float)
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()
        self._began: dict[str, float] = {}
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Forgets everything, the time since the last lap too."""
        self.longest.clear()
        self._seconds.clear()
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Gives the time since the last lap to a name."""
        now = time.perf_counter()
        self._add(name, now - self._last)
        self._last = now

    @contextlib.contextmanager
    def interruption(self, name: str) -> Iterator[None]:
        """Gives the time of the block to a name; the lap into which it falls goes on after it, without that time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._add(name, seconds)
            self._last += seconds

    def begin(self, name: str) -> None:
        """Begins a span."""
        self._began[name] = time.perf_counter()

    def end(self, name: str) -> None:
        """Ends the span of a name; from any thread."""
        self._add(name, time.perf_counter() - self._began.pop(name))

    def running(self, name: str) -> float:
        """Seconds since the span of a name began; 0 where none is running."""
        began = self._began.get(name)
        return 0.0 if began is None else time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Returns the seconds by name and starts again from nothing."""
        with self._lock:
            taken = defaultdict(float, self._seconds)
            self._seconds.clear()
        return taken

    def _add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds
            self.longest[name] = max(self.longest[name], seconds)
