"""Plans a sweep: gives each job a name and a run folder, and checks its config before any job starts."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from framework.config.command import resolve_config
from framework.config.identity import check_same_run
from framework.config.schema import TrainConfig
from framework.config.secrets import masked
from framework.errors import ConfigError
from framework.runs.build import build_settings
from framework.runs.folder import read_config
from framework.tracking.run_files import CONFIG_FILE
from framework.tracking.run_status import named_run

SEED = "seed"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_NAME_LENGTH = 64
"""Maximum length of a W&B id."""

_OWN_GROUPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep", "hydra.mode")


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: Run folder, whose name is the run id.
        values: Values of the swept keys, by key, as written on the command line.
        overrides: Overrides on the command line of the run.
        config: Resolved config with its secrets; not to be saved.
        best_mode: "min" or "max": direction in which the task's own metric improves.
        composed: Config before interpolations were resolved, which masks what is saved; None: nothing is saved.
        starts_from: Id of the job from whose run this one starts, after it has finished; None: it waits for no job.
        checked_init: Value of `init_from` with which a job with `starts_from` is checked before that run exists.
    """

    folder: Path
    values: Mapping[str, str]
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    best_mode: str = "min"
    composed: DictConfig | None = None
    starts_from: str | None = None
    checked_init: str | None = None

    @property
    def id(self) -> str:
        """Run id."""
        return self.folder.name

    @property
    def combination(self) -> dict[str, str]:
        """Swept values without the seed. Jobs with the same combination repeat one experiment."""
        return {key: value for key, value in self.values.items() if key != SEED}

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or self.id


@dataclass(frozen=True)
class Sweep:
    """All runs of one sweep.

    Attributes:
        folder: Folder of the run folders and the results, named like the sweep.
        keys: Swept keys.
        jobs: Jobs in the order of Hydra's sweeper; those that start from the run of another one come after it.
        missing: Missing file of each task of a benchmark that is left out.
        notes: Lines about the plan.
    """

    folder: Path
    keys: tuple[str, ...]
    jobs: tuple[Job, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the sweep and of its W&B group."""
        return self.folder.name


def plan_sweep(
    config: DictConfig, context: HydraContext, job_overrides: Sequence[Sequence[str]], world_size: int
) -> Sweep:
    """Plans the jobs and checks the config of each before any of them starts. `check_folders` checks their folders.

    Args:
        config: Config of the sweep.
        context: Hydra's context, which composes the configs of the jobs.
        job_overrides: Overrides of each job, from Hydra's sweeper.
        world_size: Number of processes of each job, over all nodes.

    Raises:
        ConfigError: The name of the sweep folder is no valid prefix of run ids; a job sets `run.id`; two jobs are the
            same; or the config of a job is invalid.
    """
    folder = Path(config.hydra.sweep.dir)
    if not _NAME.fullmatch(folder.name):
        raise ConfigError(
            f"hydra.sweep.dir is {str(folder)!r}, whose last part is no valid prefix of run ids. Use at most 128 "
            "letters, digits and . _ + -, and begin with a letter or digit."
        )
    keys = swept_keys(config, context)
    jobs = [_plan_job(config, context, folder, keys, list(overrides), world_size) for overrides in job_overrides]
    (most, count), *_ = Counter(job.id for job in jobs).most_common(1)
    if count > 1:
        raise ConfigError(f"{count} jobs have the same run folder {folder / most}. Give each swept value once.")
    return Sweep(folder, keys, tuple(jobs))


def swept_keys(config: DictConfig, context: HydraContext) -> tuple[str, ...]:
    """Returns the keys that have several values on the command line or in `hydra.sweeper.params`."""
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
            f"run.id is {given['run.id']} for every job. Each job of a sweep needs its own run folder. Remove run.id, "
            "and name the sweep with hydra.sweep.dir=runs/NAME."
        )
    values = {key: given[key] for key in keys}
    run = folder / job_id(folder.name, values)
    kept = [override for override in overrides if not override.startswith("run.dir=")]
    own = [*kept, f"run.dir={quoted(str(folder))}", f"run.id={quoted(run.name)}"]
    composed = context.config_loader.load_sweep_config(config, own)
    with open_dict(composed):
        del composed["hydra"]
    resolved = resolve_config(composed, TrainConfig, own)
    start = named_start(resolved["init_from"], config.run.dir)
    if start is not None:
        own.append(f"init_from={quoted(start)}")
        with open_dict(composed):
            composed["init_from"] = resolved["init_from"] = start
    job = Job(run, values, (*own, *_hydra_overrides(config)), resolved, composed=composed)
    try:
        settings = build_settings(resolved, world_size)
        return replace(job, best_mode=settings.task.build().best_mode)
    except ConfigError as error:
        raise ConfigError(f"The job {job} cannot run: {error}") from error


def named_start(source: object, runs: str) -> str | None:
    """Returns the folder of the run that `init_from` names by its id; None if it names something else.

    Jobs would not find the id, because they look for it in their own `run.dir`, the folder of the sweep.

    Args:
        source: Value of `init_from`.
        runs: Value of `run.dir` of the sweep.
    """
    found = None if source is None else named_run(str(source), Path(runs))
    return None if found is None or Path(str(source)).exists() else str(found)


def job_id(sweep: str, values: Mapping[str, str]) -> str:
    """Returns the run id of a job, such as `SWEEP-lr_1e-05-seed_0`. It does not depend on the other jobs.

    The id ends with a hash if it would be too long, if characters were replaced, or if a value looks like several
    values (`1-seed_2`), so that no two jobs share an id.

    Args:
        sweep: Name of the sweep.
        values: Values by swept key.
    """
    names = short_keys(tuple(values))
    parts = [f"{name}_{values[key]}" for key, name in names.items()]
    is_unambiguous = not any(f"-{name}_" in value for name in names.values() for value in values.values())
    text = "-".join([sweep, *(parts or ["job"])])
    safe = _UNSAFE.sub("_", text)
    if safe == text and is_unambiguous and len(safe) <= _MAX_NAME_LENGTH:
        return safe
    digest = hashlib.sha256("\n".join(f"{key}={value}" for key, value in values.items()).encode()).hexdigest()[:8]
    return f"{safe[: _MAX_NAME_LENGTH - len(digest) - 1]}-{digest}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Returns a short name for each key: its last part (`lr` for `optimizer.lr`) if that is unique, else the key."""
    last = {key: key.lstrip("+").rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: name if counts[name] == 1 else key for key, name in last.items()}


def quoted(text: str) -> str:
    """Quotes a text so that Hydra parses it as exactly this text."""
    return "'" + text.replace("'", "\\'") + "'"


def _hydra_overrides(config: DictConfig) -> Iterator[str]:
    """Yields the overrides of `hydra` that each job needs too, such as search paths of configs."""
    for override in config.hydra.overrides.hydra:
        if not override.lstrip("+~").startswith(_OWN_GROUPS):
            yield override


def command_flags(config: DictConfig) -> list[str]:
    """Returns the options of the command line that each job needs too: --config-dir and --config-name."""
    sources = config.hydra.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    flags = [word for folder in folders for word in ("--config-dir", folder)]
    name = config.hydra.job.config_name
    return flags if name == "train" else [*flags, "--config-name", name]


def check_folders(jobs: Sequence[Job]) -> None:
    """Checks that the run folders that exist belong to the jobs.

    Raises:
        ConfigError: A run folder belongs to a run with another config.
    """
    for job in jobs:
        if (job.folder / CONFIG_FILE).is_file():
            try:
                _check_folder(job)
            except ConfigError as error:
                raise ConfigError(f"The job {job} cannot run: {error}") from error


def _check_folder(job: Job) -> None:
    saved = read_config(job.folder)
    assert job.composed is not None
    config = masked(job.composed, job.config)
    # What the run itself fills in of its model is not known yet.
    given = {name: value for name, value in dict(config["model"]).items() if value is not None}
    check_same_run(str(job.folder), saved, {**config, "model": {**saved["model"], **given}})
