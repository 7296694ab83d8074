"""Start of a sweep, for all launchers: checks, lock of the folder, outcomes of earlier starts, W&B variables."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from framework.config.identity import GROWING_KEYS, flatten
from framework.config.shared_schema import at_least
from framework.distributed.device import device_type
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError, FrameworkError
from framework.runs.assembled_run import AssembledRun
from framework.runs.assembly import assemble_run
from framework.runs.build import build_settings
from framework.runs.folder import read_config
from framework.sweeps.outcome import DONE, Outcome
from framework.sweeps.plan import Job, Sweep
from framework.tracking.run_files import CONFIG_FILE
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

LOCK_FILE = "sweep.lock"

_LENGTH_KEYS = (*GROWING_KEYS, "trainer.early_stopping_patience", "trainer.early_stopping_min_delta")

_READ_NO_FILE = ("optimizer", "schedule", "seed", "run", "trial", "logger", "check")


def check_start(config: DictConfig) -> None:
    """Checks that this process may start a sweep.

    Args:
        config: Config of the sweep.

    Raises:
        ConfigError: The process was started by torchrun, or the sweep is split into batches.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            "The sweep runs under torchrun. A sweep starts the processes of its jobs itself. Call "
            "`python -m framework.train --multirun ...` without torchrun, and add hydra.launcher.processes=N for N "
            "processes per job."
        )
    if config.hydra.sweeper.get("max_batch_size") is not None:
        raise ConfigError(
            f"hydra.sweeper.max_batch_size is {config.hydra.sweeper.max_batch_size}. A batch would wait for the one "
            "before. Remove it, and set hydra.launcher.jobs_at_once."
        )


def check_own_process() -> None:
    """Checks that a run of a sweep has its own process.

    Raises:
        ConfigError: Hydra's launcher `basic` runs the job inside the process of the sweep.
    """
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and hydra.runtime.choices.get("hydra/launcher") == "basic":
        raise ConfigError(
            "hydra/launcher is basic, which trains all jobs in one process and stops at the first failure. A job needs "
            "its own process. Choose hydra/launcher=torchrun, the default."
        )


def check_jobs(jobs: Sequence[Job], processes: int) -> None:
    """Runs all checks that need no GPU for each job, before the first one starts or is queued.

    Keys and values are checked when the jobs are planned. Jobs that differ only in groups that read no files, such as
    the optimizer or the seed, share one check of the files.

    Args:
        jobs: Jobs to run.
        processes: Number of processes of a job.

    Raises:
        ConfigError: A job cannot run; the message names it.
    """
    assembled: dict[str, AssembledRun] = {}
    for job in jobs:
        config = {**job.config, "check": True}
        if job.starts_from is not None:  # the run may not exist yet
            config["init_from"] = job.checked_init
        reading = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in _READ_NO_FILE}
        text = json.dumps(reading, sort_keys=True, default=str)
        try:
            if text in assembled:
                settings = build_settings(config, processes)
                settings.optimizer.build()
                last = assembled[text].phases[-1].parts
                settings.schedule.build(max_steps=last.max_steps - last.first_step, token_steps=last.token_steps)
            else:
                assembled[text] = assemble_run(
                    config, ProcessInfo(0, 0, processes, processes), device_type(), job.composed
                )
        except FrameworkError as error:
            raise ConfigError(f"The job {job} cannot run: {error}") from error


def check_positive_integers(group: str, node: object, *names: str) -> None:
    """Raises ConfigError if an attribute is not an integer of at least 1."""
    for name in names:
        value = getattr(node, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{group}.{name} is {value!r}. It must be an integer of at least 1.")
    at_least(group, node, 1, *names)


def first_outcomes(sweep: Sweep) -> dict[str, Outcome]:
    """Returns the outcome of each job by run id: finished or pruned by an earlier start, else waiting."""
    return {job.id: earlier_outcome(job) or Outcome("waiting") for job in sweep.jobs}


def earlier_outcome(job: Job) -> Outcome | None:
    """Returns the outcome of a run that has ended; None if it has not ended or the config now has another length.

    This reads no data and starts no process. The run itself checks more (`session.is_finished`).
    """
    config, summary = job.folder / CONFIG_FILE, read_summary(job.folder)
    state = next((state for state in DONE if summary is not None and summary["ended"] == state), None)
    if state is None or not config.is_file():
        return None
    # Each start writes its config first, so an older summary belongs to the previous start.
    if (job.folder / SUMMARY_FILE).stat().st_mtime_ns < config.stat().st_mtime_ns:
        return None
    saved, current = flatten(read_config(job.folder)), flatten(job.config)
    if any(saved.get(key) != current.get(key) for key in _LENGTH_KEYS):
        return None
    return Outcome(state, None, summary)


def tracking_variables(sweep: Sweep, job: Job) -> dict[str, str]:
    """Returns the variables by which W&B groups runs: by sweep, then by combination. The user's own variables win."""
    kind = "-".join(f"{key}={value}" for key, value in job.combination.items())
    return {"WANDB_RUN_GROUP": sweep.name, "WANDB_JOB_TYPE": kind[:64] or "train"}


@contextmanager
def sweep_lock(folder: Path) -> Iterator[int]:
    """Creates the folder of a sweep and locks it. The lock ends with the last process that inherited it.

    Yields:
        File descriptor of the lock, which jobs inherit.

    Raises:
        ConfigError: Another start of the sweep, or one of its jobs, still runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"The sweep in {folder} is running, or a job of a killed start still runs. A sweep folder allows one "
                "start at a time. Wait for it, end it, or choose another folder with hydra.sweep.dir."
            ) from error
        except OSError:
            pass  # the file system does not support locks
        yield file.fileno()
