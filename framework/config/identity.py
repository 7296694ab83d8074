"""Identity of a run: the config keys that determine its results. All other keys may change when a run resumes."""

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
    "privacy",
    "optimizer",
    "regularization",
    "schedule",
    "seed",
    "init_from",
    "init_weights",
    "init_average_last",
    "extend_vocabulary",
    "init_tiling",
    "init_layers",
    "trainer.global_batch_size",
    "trainer.global_batch_tokens",
    "trainer.batch_warmup_start",
    "trainer.batch_warmup_steps",
    "trainer.batch_warmup_tokens",
    "trainer.gradient_clip",
    "trainer.ema_decay",
    "trainer.freeze",
)
GROWING_KEYS = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs")
"""Keys that may grow but not shrink when a run resumes, because trained steps cannot be undone."""

_OF_PHASES = (*IDENTITY_KEYS, *GROWING_KEYS, "optimizer_state", "last_step")
"""Keys of the identity within a phase. Its length cannot change, because the next phase begins after it."""

_ADDED_KEYS = {
    "extend_vocabulary": False,
    "init_tiling": False,
    "init_layers": None,
    "data.canaries": 0,
    "data.teacher_column": None,
    "data.vector_column": None,
    "task.prompts": None,
    "data.more": None,
    "task.side": "query",
    "data.canary_repeats": [1, 4, 16],
    "data.list_separator": None,
    "task.masked_share": 0.8,
    "task.random_share": 0.1,
    "task.windows": None,
    "task.stride": None,
    "optimizer.weight_decay_times": "rate",
    "optimizer.adamw.weight_decay_times": "rate",
    "schedule.warmup_tokens": None,
    "schedule.decay_tokens": None,
    "trainer.batch_warmup_tokens": None,
}
"""Values that mean the same as in earlier versions, which did not have the keys."""

_CHANGED_DEFAULTS = {"data.format.quote": ('"', "auto")}
"""Default of an earlier version and of this one, by key. The data fingerprint shows if both read the same rows."""

_SHOWN_DIFFERENCES = 4


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by dotted key. Lists and empty groups count as values."""
    if not isinstance(node, Mapping) or not node:
        return {path: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat.update(flatten(value, f"{path}.{name}" if path else str(name)))
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the identity keys of a resolved config, by dotted key.

    Values that mean the same as a key that an earlier version did not have are omitted: empty lists and groups, and
    those of `_ADDED_KEYS`.
    """
    return {
        name: former_name(value)
        for name, value in flatten(config).items()
        if value not in ([], {}) and not (name in _ADDED_KEYS and value == _ADDED_KEYS[name]) and _is_fixed(name)
    }


def _is_fixed(name: str) -> bool:
    keys: tuple[str, ...] = IDENTITY_KEYS
    if name.startswith("phases."):
        name, keys = name.split(".", 2)[-1], _OF_PHASES
    return any(name == key or name.startswith(key + ".") for key in keys)


def identity_text(config: Mapping[str, Any]) -> str:
    """Returns the identity as canonical text. The id of an unnamed run is a hash of this text."""
    return json.dumps(identity(config), sort_keys=True, default=str)


def check_same_run(folder: str, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks that a run folder and a config belong to the same run.

    Args:
        folder: Run folder, for messages.
        saved: Resolved config in the run folder. Earlier versions did not mask typed secrets.
        config: Resolved config of this start with masked secrets.

    Raises:
        ConfigError: An identity key differs, or the run has become shorter. The message names the keys and both
            values.
    """
    before, now = identity(without_typed_secrets(saved)), identity(config)
    # A masked value is not compared: a secret may change, and earlier versions masked other values too.
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) not in (MASK, HIDDEN)]
    changed = [
        name
        for name in names
        if before.get(name) != now.get(name) and (before.get(name), now.get(name)) != _CHANGED_DEFAULTS.get(name)
    ]
    if changed:
        shown = "; ".join(
            f"`{name}` was {before.get(name)!r} and is now {now.get(name)!r}" for name in changed[:_SHOWN_DIFFERENCES]
        )
        more = f"; and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise ConfigError(
            f"the run folder {folder} belongs to another config: {shown}{more}. These keys must not change within a "
            "run. Choose another `run.id`, or restore the values."
        )
    old, new = flatten(saved), flatten(config)
    for name in GROWING_KEYS:
        if old.get(name) is not None and new.get(name) is not None and new[name] < old[name]:
            raise ConfigError(
                f"`{name}` is {new[name]}, but the run in {folder} was started with {old[name]}. This key may only "
                "grow. Choose at least the former value, or another `run.id`."
            )
