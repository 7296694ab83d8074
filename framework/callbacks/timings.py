"""A lap timer shared by the callbacks that know what the time went to and the one that reports it."""

import time
from collections import defaultdict


class Timings:
    """Seconds by name since the last `take`; every moment belongs to exactly one name.

    Attributes:
        longest: The longest lap of each name since `restart`; 0 where there was none.
    """

    def __init__(self) -> None:
        self.longest: dict[str, float] = defaultdict(float)
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def restart(self) -> None:
        """Forgets everything, the time since the last lap too."""
        self.longest.clear()
        self._seconds.clear()
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Gives the time since the last lap to a name."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self.longest[name] = max(self.longest[name], now - self._last)
        self._last = now

    def take(self) -> dict[str, float]:
        """Returns the seconds by name and starts again from nothing."""
        taken = defaultdict(float, self._seconds)
        self._seconds.clear()
        return taken
