"""A run with a fault: starts it, kills it, resumes it, and compares it with an undisturbed run."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes.ranks import Ranks
from tests.support.training.tiny_run import arguments, rows, summary

WAIT_SECONDS = 240.0


@dataclass(frozen=True)
class Setup:
    """Settings of a strategy in the matrix.

    Attributes:
        num_ranks: Number of processes.
        other_sizes: Numbers of processes with which the run resumes, in this order.
        overrides: Overrides that the strategy needs.
    """

    num_ranks: int
    other_sizes: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()


STRATEGIES = {
    "single": Setup(1),
    "ddp": Setup(2, (4, 1)),
    "fsdp2": Setup(2, (4, 1)),
    "hsdp": Setup(4, overrides=("strategy.replicate_size=2",)),
    "tp": Setup(2, (4, 1)),
    "fsdp2_tp": Setup(4, (2,), ("strategy.tensor_parallel_size=2",)),
}

SAME_BITS = "same bits"


@dataclass
class Trial:
    """One fault under one strategy.

    Attributes:
        store: Token store.
        folder: Folder of run folders and outputs of this trial.
        strategy: Name of the strategy.
        draw: Random generator of moments and ranks.
        expected: Content of metrics.jsonl of an undisturbed run under the same strategy.
    """

    store: Path
    folder: Path
    strategy: str
    draw: random.Random
    expected: bytes
    _starts: int = 0

    @property
    def run(self) -> Path:
        """Returns the run folder."""
        return self.folder / "run"

    @property
    def metrics(self) -> bytes:
        """Returns the content of metrics.jsonl, empty if it does not exist."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes() if path.exists() else b""

    @property
    def num_ranks(self) -> int:
        """Returns the number of processes of the strategy."""
        return STRATEGIES[self.strategy].num_ranks

    def start(
        self,
        *overrides: str,
        strategy: str | None = None,
        num_ranks: int | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> Ranks:
        """Starts or resumes the run."""
        self._starts += 1
        name = strategy or self.strategy
        setup = STRATEGIES[name]
        command_arguments = arguments(self.store, self.folder, "run", name, *setup.overrides, *overrides)
        return Ranks(
            command_arguments, num_ranks or setup.num_ranks, self.folder / f"start_{self._starts}.txt", prepare
        )

    def kill_after_row(self, row: int, rank: int | None = None, *overrides: str, **start: Any) -> Ranks:
        """Starts the run and kills all ranks, or one, with SIGKILL after a row was written."""
        ranks = self.start(*overrides, **start)
        assert ranks.wait_until(lambda: len(rows(self.run)) >= row, WAIT_SECONDS), ranks.read_output()
        time.sleep(self.draw.random() * 0.05)
        ranks.send(signal.SIGKILL, rank)
        ranks.wait(WAIT_SECONDS)
        assert self.metrics != self.expected, "the run ended before it was killed"
        return ranks

    def finish(self, *overrides: str, **start: Any) -> str:
        """Resumes the run until its end, and returns its output."""
        ranks = self.start(*overrides, **start)
        codes = ranks.wait(WAIT_SECONDS)
        assert not any(codes), f"exit codes {codes}:\n{ranks.read_output()}"
        ended = summary(self.run)
        assert (ended["ended"], ended["steps"]) == ("finished", ended["max_steps"]), ended
        assert (self.run / "report.html").is_file()
        return ranks.read_output()

    def check_same_bits(self) -> str:
        """Checks that the rows are bitwise equal."""
        assert self.metrics == self.expected, difference(self.metrics, self.expected)
        return SAME_BITS

    def check_close(self, tolerance: float = 1e-5) -> str:
        """Checks that rows are equal up to a relative tolerance, and returns the largest difference."""
        (self.folder / "metrics.jsonl").write_bytes(self.expected)
        largest = largest_difference(rows(self.run), rows(self.folder))
        assert largest <= tolerance, f"rows differ by {largest:g}"
        return f"within {largest:.0e}"


def largest_difference(own: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Returns the largest relative difference of rows with the same steps and keys; below 1 it is absolute."""
    assert [(row["step"], set(row)) for row in own] == [(row["step"], set(row)) for row in expected]
    pairs = [(value, other[key]) for row, other in zip(own, expected, strict=True) for key, value in row.items()]
    return max(abs(one - two) / max(1.0, abs(two)) for one, two in pairs)


def difference(own: bytes, expected: bytes) -> str:
    """Describes the first line that differs."""
    lines = zip(own.splitlines(), expected.splitlines(), strict=False)
    first = next(((one, two) for one, two in lines if one != two), (b"(end)", b"(end)"))
    return f"{len(own.splitlines())} rows for {len(expected.splitlines())}; {first[0]!r} for {first[1]!r}"
