"""What a sweep runs: its jobs, each with a name, a run folder and a config that was checked before anything starts."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from framework.config.build import build_settings
from framework.config.command import plain
from framework.config.identity import check_same_run
from framework.config.run_folder import CONFIG_FILE, read_config
from framework.config.schema import TrainConfig
from framework.config.secrets import masked
from framework.errors import ConfigError

SEED = "seed"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_NAME_LENGTH = 64
"""W&B takes no longer ids."""

_OWN_GROUPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep", "hydra.mode")


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: Its run folder; the last part is the run id.
        values: What the sweep gives the swept keys, by key, as it was written.
        overrides: The command line of the run.
        config: The resolved config.
        best_mode: "min" or "max": which values of the task's own metric are better.
    """

    folder: Path
    values: Mapping[str, str]
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    best_mode: str = "min"

    @property
    def id(self) -> str:
        """The run id."""
        return self.folder.name

    @property
    def combination(self) -> dict[str, str]:
        """The swept values without the seed: jobs that share them are repetitions of one experiment."""
        return {key: value for key, value in self.values.items() if key != SEED}

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or self.id


@dataclass(frozen=True)
class Sweep:
    """All runs of one sweep.

    Attributes:
        folder: Holds the run folders and the results; its name is that of the sweep.
        keys: The swept keys.
        jobs: In the order of Hydra's sweeper.
    """

    folder: Path
    keys: tuple[str, ...]
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """The name of the sweep, and of its W&B group."""
        return self.folder.name


def plan_sweep(
    config: DictConfig, context: HydraContext, job_overrides: Sequence[Sequence[str]], world_size: int
) -> Sweep:
    """Plans the jobs and checks the config of each, before any of them starts.

    Args:
        config: Of the sweep.
        context: Composes the configs of the jobs.
        job_overrides: By job, as Hydra's sweeper gives them.
        world_size: Processes of each job, over all nodes.

    Raises:
        ConfigError: The sweep's folder cannot name runs; a job sets `run.id`; two jobs are the same; the config of a
            job cannot be run; or its run folder belongs to another config.
    """
    folder = Path(config.hydra.sweep.dir)
    if not _NAME.fullmatch(folder.name):
        raise ConfigError(
            f"hydra.sweep.dir={str(folder)!r} ends with a name that cannot begin those of run folders; use at "
            "most 128 letters, digits and . _ + - only, beginning with a letter or digit."
        )
    keys = swept_keys(config, context)
    jobs = [_plan_job(config, context, folder, keys, list(overrides), world_size) for overrides in job_overrides]
    (most, count), *_ = Counter(job.id for job in jobs).most_common(1)
    if count > 1:
        raise ConfigError(f"{count} jobs would share the run folder {folder / most}; give each swept value once.")
    return Sweep(folder, keys, tuple(jobs))


def swept_keys(config: DictConfig, context: HydraContext) -> tuple[str, ...]:
    """The keys that the command line, or `hydra.sweeper.params`, gives several values."""
    params = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create(context.config_loader).parse_overrides(lines)
    last = {each.get_key_element(): each for each in parsed}
    return tuple(key for key, each in last.items() if each.is_sweep_override())


def _plan_job(
    config: DictConfig,
    context: HydraContext,
    folder: Path,
    keys: Sequence[str],
    overrides: list[str],
    world_size: int,
) -> Job:
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if "run.id" in given:
        raise ConfigError(
            f"run.id={given['run.id']} would name every job's run folder, but each has its own; leave it out, and name "
            "the sweep with hydra.sweep.dir=runs/NAME."
        )
    values = {key: given[key] for key in keys}
    run = folder / job_id(folder.name, values)
    kept = [override for override in overrides if not override.startswith("run.dir=")]
    own = [*kept, f"run.dir={quoted(str(folder))}", f"run.id={quoted(run.name)}"]
    composed = context.config_loader.load_sweep_config(config, own)
    with open_dict(composed):
        del composed["hydra"]
    resolved = plain(composed, TrainConfig, own)
    job = Job(run, values, (*own, *_hydra_overrides(config)), masked(composed, resolved))
    try:
        settings = build_settings(resolved, world_size)
        if (run / CONFIG_FILE).is_file():
            _check_folder(job)
        return replace(job, best_mode=settings.task.build().best_mode)
    except ConfigError as error:
        raise ConfigError(f"the job {job} cannot run: {error}") from error


def job_id(sweep: str, values: Mapping[str, str]) -> str:
    """The run id of a job, which does not depend on the other jobs: `SWEEP-lr_1e-05-seed_0`.

    A hash is added if the name is too long, if characters were replaced, or if a value reads like several
    (`1-seed_2`), so that no two jobs share a name.

    Args:
        sweep: Name of the sweep.
        values: By swept key.
    """
    names = short_keys(tuple(values))
    words = [f"{name}_{values[key]}" for key, name in names.items()]
    is_plain = not any(f"-{name}_" in value for name in names.values() for value in values.values())
    text = "-".join([sweep, *(words or ["job"])])
    safe = _UNSAFE.sub("_", text)
    if safe == text and is_plain and len(safe) <= _MAX_NAME_LENGTH:
        return safe
    digest = hashlib.sha256("\n".join(f"{key}={value}" for key, value in values.items()).encode()).hexdigest()[:8]
    return f"{safe[: _MAX_NAME_LENGTH - len(digest) - 1]}-{digest}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Keys by their last part, where that is unique among them: `lr` for `optimizer.lr`."""
    last = {key: key.lstrip("+").rpartition(".")[2] for key in keys}
    times = Counter(last.values())
    return {key: name if times[name] == 1 else key for key, name in last.items()}


def quoted(text: str) -> str:
    """A value that Hydra reads as exactly this text."""
    return "'" + text.replace("'", "\\'") + "'"


def _hydra_overrides(config: DictConfig) -> Iterator[str]:
    """What of the command line says where configs are found; each job needs it too."""
    for override in config.hydra.overrides.hydra:
        if not override.lstrip("+~").startswith(_OWN_GROUPS):
            yield override


def command_flags(config: DictConfig) -> list[str]:
    """The options of the command line, beside overrides, that each job needs too."""
    sources = config.hydra.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    flags = [word for folder in folders for word in ("--config-dir", folder)]
    name = config.hydra.job.config_name
    return flags if name == "train" else [*flags, "--config-name", name]


def _check_folder(job: Job) -> None:
    """Raises ConfigError where the run folder holds a run of another config."""
    saved = read_config(job.folder)
    # What the run itself fills in of its model is not known yet.
    given = {name: value for name, value in dict(job.config["model"]).items() if value is not None}
    check_same_run(str(job.folder), saved, {**job.config, "model": {**saved["model"], **given}})
