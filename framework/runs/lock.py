"""Prevents two starts from training in one run folder at a time: rank 0 locks the folder until the run ends."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from framework.errors import ConfigError
from framework.files import holder_of, locked

LOCK_FILE = "run.lock"

_LOOK_EVERY_SECONDS = 0.5
_RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


@contextmanager
def lock_run_folder(run_folder: Path, rank: int, wait_seconds: float) -> Iterator[None]:
    """Locks a run folder against other starts. Rank 0 holds the lock; other ranks enter immediately.

    The lock ends with this process, even after `kill -9`. On a shared file system with locks, it is valid on all hosts.
    A file system without locks is reported, and the run continues.

    Args:
        run_folder: Run folder; created if missing.
        rank: Rank of this process.
        wait_seconds: Seconds to wait for another process to end, such as the predecessor of a requeued job.

    Raises:
        ConfigError: Another process still trains in the folder after this time.
    """
    if rank > 0:
        yield
        return
    path = run_folder / LOCK_FILE
    deadline = time.monotonic() + wait_seconds
    with ExitStack() as stack:
        is_waiting = False
        while not _enter(stack, path):
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"the run folder {run_folder} is in use by {holder_of(path)}. Only one start of a run.id may train "
                    "at a time. Wait until that process ends or stop it, choose another `run.id`, or raise "
                    "`run.wait_seconds`."
                )
            if not is_waiting:
                sys.stderr.write(
                    f"The run folder {run_folder} is in use by {holder_of(path)}. This start waits up to "
                    f"{wait_seconds:g} s for that process to end.\n"
                )
                is_waiting = True
            time.sleep(_LOOK_EVERY_SECONDS)
        yield


def _enter(stack: ExitStack, path: Path) -> bool:
    """Acquires the lock; returns False if another process holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return stack.enter_context(locked(path, wait=False))
    except OSError as error:
        sys.stderr.write(
            f"{path} cannot be locked ({error.strerror}). A second start of this run cannot be prevented. Do not start "
            "the run twice.\n"
        )
        return True


def wait_limit(
    wait_seconds: float, timeout_seconds: float, world_size: int, environ: Mapping[str, str] = os.environ
) -> float:
    """Returns the seconds that a start waits for the lock.

    A requeued or restarted job waits until the watchdog has ended its predecessor. In runs with several processes, the
    wait is at most `timeout_seconds`, because the other ranks wait no longer for rank 0.

    Args:
        wait_seconds: `run.wait_seconds`.
        timeout_seconds: `trainer.timeout_seconds`.
        world_size: Number of processes.
        environ: Environment variables.
    """
    is_restart = any(environ.get(name, "0") not in ("", "0") for name in _RESTART_COUNTS)
    limit = max(wait_seconds, timeout_seconds) if is_restart else wait_seconds
    return min(limit, timeout_seconds) if world_size > 1 else limit
