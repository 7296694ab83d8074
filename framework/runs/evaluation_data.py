"""Data that framework.evaluate and framework.audit read: a split of the run, or a new file in the same format."""

from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig

from framework.config.command import resolve_config
from framework.config.command_schema import AuditConfig, EvaluateConfig, TrainedConfig
from framework.config.nodes import TARGET_KEY, Component, check_arguments, check_component
from framework.data.examples.splits import SplitFiles
from framework.data.planning.plan import SequenceSource
from framework.errors import ConfigError
from framework.runs.task_parts import build_data_component
from framework.runs.trained import Trained

_Settings = TypeVar("_Settings", EvaluateConfig, AuditConfig)

_SPLITS = ("train", "validation", "test")
_TRAINING_ONLY = {
    "validation_fraction": 0.0,
    "test_fraction": 0.0,
    "deduplicate": False,
    "max_train_rows": None,
    "canaries": 0,
    "more": None,
}


def named_split(split: str | None, changes: Mapping[str, Any]) -> str:
    """Returns the split to evaluate: `split`, else the split whose file `changes` names, else "validation"."""
    if split is not None:
        return split
    return next((name for name in reversed(_SPLITS) if changes.get(name) is not None), "validation")


def read_data_settings(composed: DictConfig, schema: type[_Settings]) -> tuple[_Settings, str, dict[str, Any]]:
    """Reads the settings of a command that reads a split.

    Args:
        composed: Composed config. Its `data` is a choice of data, or values of the run's data.
        schema: Dataclass of the command's settings.

    Returns:
        Settings, whose `data` is None unless other data is chosen; name of the split; and the values of the run's data.
    """
    config = resolve_config(composed, schema)
    given: Any = config["data"] or {}
    is_whole = TARGET_KEY in given
    changes = {} if is_whole else {key: value for key, value in given.items() if value is not None}
    settings = schema(**check_arguments("", config | {"data": given if is_whole else None}, schema))
    return settings, named_split(settings.split, changes), changes


def changed_data(trained: Trained, run: str, split: str, changes: Mapping[str, Any]) -> Component:
    """Returns the data of the run with the values from the command line.

    If the values name the file of the split, no file of the run is read.

    Args:
        trained: Run or export.
        run: Name of the run, for messages.
        split: Split to evaluate.
        changes: Changed values of the data, by key.

    Raises:
        ConfigError: The run or export does not record the format of its files, or has no files per split; a key is
            unknown, or its value has the wrong type.
    """
    recorded = trained.data_layout
    if recorded is None:
        raise ConfigError(
            f"run={run} is an export that does not record the format of its data files. Evaluation needs the format. "
            "Export the run again, or choose data, for example data=table data.train=FILE."
        )
    component = recorded.component(object)
    if not (isinstance(component.target, type) and issubclass(component.target, SplitFiles)):
        raise ConfigError(
            f"run={run} was trained on {component.target.__name__}, which has no file per split. A new file requires "
            "such data. Remove data.* and choose a split of the run."
        )
    node = {**dict(recorded.node), **changes}
    if split in changes:
        targets = {f"{name}_targets": changes.get(f"{split}_targets") for name in _SPLITS}
        node |= {key: value for key, value in targets.items() if key in component.arguments}
        node |= dict.fromkeys(_SPLITS) | component.target.alone(split, changes[split])
        node |= {key: value for key, value in _TRAINING_ONLY.items() if key in component.arguments}
        if split != "validation" and "validation_targets" in node:
            node["validation_targets"] = None
        if split != "test" and "test_targets" in node:
            node["test_targets"] = None
    return check_component("data", node)


def open_split(
    trained: Trained, run: str, data: Component | None, split: str, changes: Mapping[str, Any]
) -> SequenceSource:
    """Reads a split of the data of a run or of other data.

    Args:
        trained: Run or export.
        run: Name of the run, for messages.
        data: Data that replaces the data of the run; None: the data of the run.
        split: Name of the split.
        changes: Values of the run's data from the command line.

    Raises:
        ConfigError: The split does not exist, or no data is given.
    """
    chosen = changed_data(trained, run, split, changes) if changes else data or trained.data
    if chosen is None:
        raise ConfigError(
            f"run={run} is an export, which contains no data. Give a file, for example data.test=FILE, or "
            "choose other data, for example data=table data.train=FILE."
        )
    sources = trained.task.build_sources(build_data_component(trained.task, chosen), trained.tokenizer, seed=0)
    if split not in sources:
        raise ConfigError(f"split={split} does not exist. The data has {', '.join(sources)}. Choose one of these.")
    return sources[split]


def open_training(trained: Trained, run: str, data: Component | None, changes: Mapping[str, Any]) -> SequenceSource:
    """Reads the rows that a model was trained on: the split `train` of its run, of other data, or of a given file.

    Args:
        trained: Run or export.
        run: Name of the run, for messages.
        data: Data that replaces the data of the run; None: the data of the run.
        changes: Values of the run's data from the command line. Only a file for `train` changes the training rows.

    Raises:
        ConfigError: The training rows of an export are not given.
    """
    given = {key: value for key, value in changes.items() if key in ("train", "train_targets")}
    if not given and data is None and trained.data is None:
        raise ConfigError(
            f"run={run} is an export, which contains no data. Its training rows are needed. Give data.train=FILE in "
            "addition to data.test=FILE, or give the run."
        )
    return open_split(trained, run, data, "train", given)


def describe_weights(settings: TrainedConfig, trained: Trained) -> str:
    """Describes the weights that a command uses, for example `step_00000012, auto`; for an export, returns its path."""
    if trained.folder is None:
        return trained.weights.source
    mean = f", mean of {settings.average_last} checkpoints" if settings.average_last > 1 else ""
    return f"{trained.weights.source.rstrip('/').rpartition('/')[2]}, {settings.weights}{mean}"


def portable_data(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the part of a run's data that an export keeps: the file format without paths.

    Returns None for data without a file per split.

    Args:
        node: Value of `data` in the run's config.
    """
    if TARGET_KEY not in node or not {"train", "test"} <= node.keys():
        return None
    paths = {*_SPLITS, *(f"{name}_targets" for name in _SPLITS), "personal_data_names", "more"}
    kept = {key: value for key, value in node.items() if key not in paths}
    has_targets = node.get("train_targets") is not None
    return kept | {"train": ""} | ({"train_targets": ""} if has_targets else {})
