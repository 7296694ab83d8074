"""Kills one run many times at random moments, some of them in the middle of a save."""

import time
from contextlib import suppress
from signal import SIGKILL

from tests.support.faults.trial import WAIT_SECONDS, Trial
from tests.support.training.tiny_run import rows

EVERY_NTH_IN_A_SAVE = 3


def kill_many_times(trial: Trial, num_kills: int, *overrides: str) -> int:
    """Kills the run `num_kills` times with SIGKILL, then finishes it and checks that its rows are bitwise equal.

    Each start lives for two to six rows, or until it has begun a save, and a few random milliseconds longer.

    Args:
        trial: Trial whose `expected` comes from a run with the same overrides.
        num_kills: Number of kills. The run must be long enough for them.
        overrides: Overrides of every start.

    Returns:
        Number of kills after which a checkpoint was incomplete.
    """
    torn = 0
    for number in range(num_kills):
        ranks = trial.start(*overrides)
        first = len(rows(trial.run))
        before = _unfinished(trial)
        if number % EVERY_NTH_IN_A_SAVE == 2:
            reached = ranks.wait_until(lambda before=before: bool(_unfinished(trial) - before), WAIT_SECONDS)
            time.sleep(trial.draw.random() * 0.01)
        else:
            goal = first + trial.draw.randint(2, 6)
            reached = ranks.wait_until(lambda goal=goal: len(rows(trial.run)) >= goal, WAIT_SECONDS)
            time.sleep(trial.draw.random() * 0.05)
        ranks.send(SIGKILL)
        ranks.wait(WAIT_SECONDS)
        assert reached, f"kill {number}: {ranks.read_output()}"
        torn += bool(_unfinished(trial))
    trial.finish(*overrides)
    trial.check_same_bits()
    return torn


def _unfinished(trial: Trial) -> set[tuple[str, int]]:
    """Returns names and modification times of checkpoints that are being written or are incomplete after a kill."""
    found = set()
    for path in (trial.run / "checkpoints").glob("step_*.tmp"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found
