"""Nearest settings under which a run that needs too much memory fits."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framework.distributed.mesh import SHARDED
from framework.errors import FrameworkError

Change = tuple[str, str, Mapping[str, Any]]
"""Override of the command line, its group, and the values of the group."""

CHANGES: tuple[Change, ...] = (
    ("trainer.micro_batch_tokens=auto", "trainer", {"micro_batch_tokens": "auto"}),
    (
        "strategy.activation_checkpointing.mode=full",
        "strategy",
        {"activation_checkpointing": {"mode": "full", "every_nth_layer": 1}},
    ),
    ("strategy=fsdp2", "strategy", {"name": "fsdp2"}),
    ("strategy.gradient_sync=every", "strategy", {"gradient_sync": "every"}),
    ("strategy.cpu_offload=true", "strategy", {"cpu_offload": True}),
)
"""Changes that cost time and change no result, the cheapest first. A later one is made on top of the earlier ones."""


def nearest_fit(config: Mapping[str, Any], fits: Callable[[dict[str, Any]], bool]) -> Sequence[str] | None:
    """Returns the overrides of the first changed config that fits; None: none of them does.

    Args:
        config: Resolved config of training.
        fits: Function that plans a config and returns True if it fits.
    """
    changed = copy.deepcopy(dict(config))
    overrides: list[str] = []
    for override, group, values in CHANGES:
        node = changed[group]
        if all(node.get(name) == value for name, value in values.items()):
            continue
        if override == "strategy=fsdp2" and node["name"] not in ("ddp", "hsdp"):
            continue
        is_of_shards = "gradient_sync" in values or "cpu_offload" in values
        if is_of_shards and node["name"] not in SHARDED:
            continue
        changed[group] = {**node, **values}
        if values.get("name") == "fsdp2":
            changed[group].pop("replicate_size", None)
        overrides.append(override)
        try:
            if fits(copy.deepcopy(changed)):
                return overrides
        except FrameworkError:  # another rule of training forbids this change
            changed[group] = node
            overrides.pop()
    return None
