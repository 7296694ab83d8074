"""What every launcher does at the start of a sweep: what is refused, what is done already, who may run it."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from framework.config.assembly import AssembledRun, assemble_run
from framework.config.build import build_settings
from framework.config.identity import GROWING_KEYS, flatten
from framework.config.run_folder import CONFIG_FILE, read_config
from framework.config.schema import at_least
from framework.distributed.device import device_type
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError, FrameworkError
from framework.sweeps.outcome import DONE, Outcome
from framework.sweeps.plan import Job, Sweep
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

LOCK_FILE = "sweep.lock"

_LENGTH_KEYS = (*GROWING_KEYS, "trainer.early_stopping_patience", "trainer.early_stopping_min_delta")

_READ_NO_FILE = ("optimizer", "schedule", "seed", "run", "trial", "logger", "check")


def check_start(config: DictConfig) -> None:
    """Checks that this process may start a sweep.

    Args:
        config: Of the sweep.

    Raises:
        ConfigError: The process is one of torchrun's, or the sweep is cut into batches.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            "a sweep starts the processes of its jobs itself, but this process was started by torchrun; start one "
            "`python -m framework.train --multirun ...` without it, with hydra.launcher.processes=N for N processes a "
            "job."
        )
    if config.hydra.sweeper.get("max_batch_size") is not None:
        raise ConfigError(
            f"hydra.sweeper.max_batch_size is {config.hydra.sweeper.max_batch_size}, but batches would wait for each "
            "other's jobs; leave it out, and set hydra.launcher.jobs_at_once."
        )


def check_own_process() -> None:
    """Checks that a run of a sweep has a process of its own.

    Raises:
        ConfigError: Hydra's own launcher calls it inside the process that sweeps.
    """
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and hydra.runtime.choices.get("hydra/launcher") == "basic":
        raise ConfigError(
            "hydra/launcher=basic would train all jobs in one process and end with the first that fails; choose "
            "hydra/launcher=torchrun, which is the default."
        )


def check_jobs(jobs: Sequence[Job], processes: int) -> None:
    """Runs all checks that need no GPU for each job, before the first one starts or is queued.

    Keys and values were checked when the jobs were planned. Files are read once for jobs that differ only in other
    groups, such as the optimizer or the seed.

    Args:
        jobs: Jobs to run.
        processes: Number of processes of a job.

    Raises:
        ConfigError: A job cannot run; the message names it.
    """
    assembled: dict[str, AssembledRun] = {}
    for job in jobs:
        decisive = {key: value for key, value in flatten(job.config).items() if key.split(".")[0] not in _READ_NO_FILE}
        text, config = json.dumps(decisive, sort_keys=True, default=str), {**job.config, "check": True}
        try:
            if text in assembled:
                settings = build_settings(config, processes)
                settings.optimizer.build()
                settings.schedule.build(max_steps=assembled[text].parts.max_steps)
            else:
                assembled[text] = assemble_run(config, ProcessInfo(0, 0, processes, processes), device_type())
        except FrameworkError as error:
            raise ConfigError(f"the job {job} cannot run: {error}") from error


def check_whole(group: str, node: object, *names: str) -> None:
    """Raises ConfigError where an attribute is no whole number of at least 1."""
    for name in names:
        value = getattr(node, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"`{group}.{name}` is {value!r}, but it must be a whole number.")
    at_least(group, node, 1, *names)


def first_outcomes(sweep: Sweep) -> dict[str, Outcome]:
    """By run id: finished or pruned, where a run is at its end already, else waiting."""
    return {job.id: done_before(job) or Outcome("waiting") for job in sweep.jobs}


def done_before(job: Job) -> Outcome | None:
    """How the run came to its end, where it did and its config asks for no more steps than it had then.

    The run itself looks closer (`session.is_finished`); here no data is read and no process started.
    """
    config, summary = job.folder / CONFIG_FILE, read_summary(job.folder)
    state = next((state for state in DONE if summary is not None and summary["ended"] == state), None)
    if state is None or not config.is_file():
        return None
    # A start writes its config first: a summary that is older is of the start before.
    if (job.folder / SUMMARY_FILE).stat().st_mtime_ns < config.stat().st_mtime_ns:
        return None
    saved, wanted = flatten(read_config(job.folder)), flatten(job.config)
    if any(saved.get(key) != wanted.get(key) for key in _LENGTH_KEYS):
        return None
    return Outcome(state, None, summary)


def tracking(sweep: Sweep, job: Job) -> dict[str, str]:
    """Variables by which W&B groups the runs, for those who set none: the sweep, and in it the jobs alike but seeds."""
    kind = "-".join(f"{key}={value}" for key, value in job.combination.items())
    return {"WANDB_RUN_GROUP": sweep.name, "WANDB_JOB_TYPE": kind[:64] or "train"}


@contextmanager
def sole(folder: Path) -> Iterator[int]:
    """Makes the folder of a sweep and keeps other starts of it away; the lock goes with the last process that has it.

    Yields:
        The lock's file descriptor, for the jobs.

    Raises:
        ConfigError: Another start of the sweep, or a job of one, still runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"the sweep in {folder} is running, or a job of a start that was killed still is; wait for it or end "
                "it, or name another sweep with hydra.sweep.dir."
            ) from error
        except OSError:
            pass  # the file system knows no locks
        yield file.fileno()
