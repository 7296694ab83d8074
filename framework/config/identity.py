"""What makes two configs the same run: the keys that decide the numbers; all others are free."""

import json
from collections.abc import Mapping
from typing import Any

from framework.config.moved_classes import former_name
from framework.config.secrets import MASK, without_typed_secrets
from framework.data.reading.credentials import HIDDEN
from framework.errors import ConfigError

IDENTITY_KEYS = (
    "model",
    "tokenizer",
    "data",
    "task",
    "augmentation",
    "adapter",
    "optimizer",
    "regularization",
    "schedule",
    "seed",
    "init_from",
    "init_weights",
    "init_average_last",
    "trainer.global_batch_size",
    "trainer.global_batch_tokens",
    "trainer.batch_warmup_start",
    "trainer.batch_warmup_steps",
    "trainer.gradient_clip",
    "trainer.ema_decay",
    "trainer.freeze",
)
GROWING_KEYS = ("trainer.max_steps", "trainer.max_epochs")
"""Free to grow, not to shrink: the steps that were done stay done."""

_CHANGED_DEFAULTS = {"data.format.quote": ('"', "auto")}
"""Defaults of an earlier version and of this one. Whether they read the same rows is seen by the data's fingerprint."""

_SHOWN_DIFFERENCES = 4


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """A tree of plain containers as one dict by dotted key; lists and empty groups count as values."""
    if not isinstance(node, Mapping) or not node:
        return {path: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat.update(flatten(value, f"{path}.{name}" if path else str(name)))
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The identity keys of a resolved config with their values, by dotted key.

    Empty lists and groups are left out: a run of an earlier version, which did not know the key, is the same run.
    """
    return {
        name: former_name(value)
        for name, value in flatten(config).items()
        if value not in ([], {}) and any(name == key or name.startswith(key + ".") for key in IDENTITY_KEYS)
    }


def identity_text(config: Mapping[str, Any]) -> str:
    """The identity in one canonical text, from which a run without a name gets its id."""
    return json.dumps(identity(config), sort_keys=True, default=str)


def check_same_run(folder: str, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Compares the config of a run folder with the one that is to be run in it.

    Args:
        folder: Shown in the message.
        saved: The resolved config that the folder holds. Earlier versions did not mask typed secrets.
        config: The resolved config that is to be run there, secrets masked.

    Raises:
        ConfigError: An identity key differs, or the run's length has shrunk; the message names the keys and both
            values.
    """
    before, now = identity(without_typed_secrets(saved)), identity(config)
    # A secret may change, and an earlier version masked more than secrets; the original value is lost.
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) not in (MASK, HIDDEN)]
    changed = [
        name
        for name in names
        if before.get(name) != now.get(name) and (before.get(name), now.get(name)) != _CHANGED_DEFAULTS.get(name)
    ]
    if changed:
        shown = "; ".join(
            f"`{name}` is {before.get(name)!r} there and {now.get(name)!r} here"
            for name in changed[:_SHOWN_DIFFERENCES]
        )
        more = f"; and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise ConfigError(
            f"the run folder {folder} belongs to another config: {shown}{more}; choose another `run.id`, or the same "
            "values."
        )
    was, wanted = flatten(saved), flatten(config)
    for name in GROWING_KEYS:
        if was.get(name) is not None and wanted.get(name) is not None and wanted[name] < was[name]:
            raise ConfigError(
                f"the run folder {folder} was started with `{name}`={was[name]}, which may only grow, but "
                f"{wanted[name]} is asked for; "
                "choose another `run.id`, or at least that value."
            )
