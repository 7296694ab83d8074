"""Data that framework.evaluate reads: a file of the run, or a new file in the same format."""

from collections.abc import Mapping
from typing import Any

from framework.config.nodes import TARGET_KEY, Component, check_component
from framework.config.trained import Trained
from framework.data.examples.splits import SplitFiles
from framework.errors import ConfigError

_SPLITS = ("train", "validation", "test")
_TRAINING_ONLY = {"validation_fraction": 0.0, "test_fraction": 0.0, "deduplicate": False, "max_train_rows": None}


def named_split(split: str | None, changes: Mapping[str, Any]) -> str:
    """Returns the split to evaluate: `split`, else the split whose file `changes` names, else "validation"."""
    if split is not None:
        return split
    return next((name for name in reversed(_SPLITS) if changes.get(name) is not None), "validation")


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
        node |= dict.fromkeys(_SPLITS) | {"train": changes[split], split: changes[split]}
        node |= {key: value for key, value in _TRAINING_ONLY.items() if key in component.arguments}
        if split != "validation" and "validation_targets" in node:
            node["validation_targets"] = None
        if split != "test" and "test_targets" in node:
            node["test_targets"] = None
    return check_component("data", node)


def portable_data(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the part of a run's data that an export keeps: the file format without paths.

    Returns None for data without a file per split.

    Args:
        node: Value of `data` in the run's config.
    """
    if TARGET_KEY not in node or not {"train", "test"} <= node.keys():
        return None
    paths = {*_SPLITS, *(f"{name}_targets" for name in _SPLITS)}
    kept = {key: value for key, value in node.items() if key not in paths}
    has_targets = node.get("train_targets") is not None
    return kept | {"train": ""} | ({"train_targets": ""} if has_targets else {})
