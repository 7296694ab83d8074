"""One run that is killed over and over at random moments, some of them in the middle of a save."""

import time
from contextlib import suppress
from signal import SIGKILL

from tests.support.faults.trial import WAIT_SECONDS, Trial
from tests.support.training.tiny_run import rows

EVERY_NTH_IN_A_SAVE = 3


def kill_many_times(trial: Trial, num_kills: int, *overrides: str) -> int:
    """Kills the run with -9 as often as asked, then lets it end and checks that not one bit of its rows differs.

    Each start lives for two to six rows, or until it has begun a save; a few milliseconds more are drawn.

    Args:
        trial: Its `whole` must come from a run with the same overrides.
        num_kills: Kills; the run must be long enough for them.
        overrides: Of every start.

    Returns:
        How many kills left a checkpoint half-written.
    """
    torn = 0
    for number in range(num_kills):
        ranks = trial.start(*overrides)
        first = len(rows(trial.run))
        before = _unfinished(trial)
        if number % EVERY_NTH_IN_A_SAVE == 2:
            wanted = ranks.wait_until(lambda before=before: bool(_unfinished(trial) - before), WAIT_SECONDS)
            time.sleep(trial.draw.random() * 0.01)
        else:
            goal = first + trial.draw.randint(2, 6)
            wanted = ranks.wait_until(lambda goal=goal: len(rows(trial.run)) >= goal, WAIT_SECONDS)
            time.sleep(trial.draw.random() * 0.05)
        ranks.send(SIGKILL)
        ranks.wait(WAIT_SECONDS)
        assert wanted, f"kill {number}: {ranks.told()}"
        torn += bool(_unfinished(trial))
    trial.finish(*overrides)
    trial.check_same_bits()
    return torn


def _unfinished(trial: Trial) -> set[tuple[str, int]]:
    """Checkpoints that are being written or that a kill left half-written, with the time of their last change."""
    found = set()
    for path in (trial.run / "checkpoints").glob("step_*.tmp"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found
