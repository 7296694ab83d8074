"""A lap timer. Some callbacks record how the time was spent; another one reports it."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator


class Timings:
    """Seconds by name since the last `take`, as laps and spans.

    Laps follow each other without gaps, so every moment belongs to exactly one name. A span runs in parallel with the
    laps and may end in another thread. The time of an interruption is subtracted from the lap in which it happens.

    Attributes:
        total: Seconds of each name since `restart`.
        longest: Longest lap, span or interruption of each name since `restart`; 0 if there was none.
    """

    def __init__(self) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self.longest: dict[str, float] = defaultdict(float)
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()
        self._span_starts: dict[str, float] = {}
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Clears all records and starts a new lap."""
        self.total.clear()
        self.longest.clear()
        self._seconds.clear()
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to a name."""
        now = time.perf_counter()
        self._add(name, now - self._last)
        self._last = now

    @contextlib.contextmanager
    def interruption(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a name. The current lap continues after it, without that time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._add(name, seconds)
            self._last += seconds

    def begin(self, name: str) -> None:
        """Starts the span of a name."""
        self._span_starts[name] = time.perf_counter()

    def end(self, name: str) -> None:
        """Ends the span of a name. May be called from any thread."""
        self._add(name, time.perf_counter() - self._span_starts.pop(name))

    def running(self, name: str) -> float:
        """Returns the seconds since the span of a name began; 0 if none is running."""
        start = self._span_starts.get(name)
        return 0.0 if start is None else time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Returns the seconds by name and resets them to 0."""
        with self._lock:
            taken = defaultdict(float, self._seconds)
            self._seconds.clear()
        return taken

    def _add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds
            self.total[name] += seconds
            self.longest[name] = max(self.longest[name], seconds)
