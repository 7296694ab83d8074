"""Other settings of a run: those to compare, the nearest that fits, and the largest or fewest that fit."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from framework.distributed.mesh import SHARDED
from framework.errors import ConfigError, FrameworkError
from framework.planning.planner import Plan, Planner
from framework.planning.settings import Fit

CHANGES = (
    "trainer.micro_batch_tokens=auto",
    "strategy.activation_checkpointing.mode=full",
    "strategy=fsdp2",
    "strategy.gradient_sync=every",
    "strategy.cpu_offload=true",
)
"""Changes that cost time and change no result, the cheapest first. A later one is made on top of the earlier ones."""

_OF_SHARDS = ("strategy.gradient_sync=every", "strategy.cpu_offload=true")
_MAX_DOUBLINGS = 10
"""Doublings of the nodes within which the fewest nodes are searched: up to 1,024."""


def nearest_fit(planner: Planner, plan: Plan) -> Plan | None:
    """Returns the plan with the fewest changes that fits; None: none of them does.

    Args:
        planner: Planner of the command line.
        plan: Plan that does not fit.
    """
    for override in CHANGES:
        name = plan.config["strategy"]["name"]
        if override == "strategy=fsdp2" and name not in ("ddp", "hsdp"):
            continue
        if override in _OF_SHARDS and name not in SHARDED:
            continue
        try:
            changed = planner.plan([*plan.changes, override])
            if changed.config == plan.config:
                continue
            if changed.fits:
                return changed
        except FrameworkError:  # another rule of training forbids this change
            continue
        plan = changed
    return None


def fitted(planner: Planner, changes: Sequence[str], fit: Fit | None) -> Plan:
    """Returns the plan of a command line with its micro-batch or its nodes fitted to the memory.

    Args:
        planner: Planner of the command line.
        changes: Overrides that are added to it.
        fit: "micro_batch" for the largest micro-batch that fits, "nodes" for the fewest nodes; None: nothing is fitted.

    Raises:
        FrameworkError: The config cannot be planned on any number of nodes.
    """
    if fit is None:
        return planner.plan(changes)
    if fit == "micro_batch":
        return planner.plan([*changes, CHANGES[0]])
    found = _fewest_nodes(planner, changes, [2**power for power in range(_MAX_DOUBLINGS + 1)])
    if found is None:
        return planner.plan(changes)
    nodes = found.settings.nodes
    return _fewest_nodes(planner, changes, range(nodes // 2 + 1, nodes)) or found


def _fewest_nodes(planner: Planner, changes: Sequence[str], counts: Sequence[int]) -> Plan | None:
    """Returns the plan with the first of ascending numbers of nodes that fits, by bisection: more need no more memory.

    Raises:
        FrameworkError: The config cannot be planned on any number of nodes that was tried.
    """
    found: Plan | None = None
    errors: list[FrameworkError] = []
    num_planned = 0
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        plan = planner.plan([*changes, f"plan.nodes={counts[middle]}"])
        try:
            is_fitting = plan.fits
            num_planned += 1
        except FrameworkError as error:  # training cannot be divided by this number of ranks
            errors.append(error)
            is_fitting = False
        if is_fitting:
            found, high = plan, middle
        else:
            low = middle + 1
    if errors and not num_planned:
        raise errors[0]
    return found


def combinations(compare: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the overrides of each combination of the values of keys.

    Raises:
        ConfigError: A key has no list of plain values.
    """
    choices = []
    for key, values in compare.items():
        if not isinstance(values, list) or not values or not all(map(_is_plain, values)):
            raise ConfigError(
                f"plan.compare has {key}: {values!r}. Each key has a list of texts, numbers or null. Give for example "
                "plan.compare='{strategy: [ddp,fsdp2], plan.nodes: [1,2,4]}'."
            )
        choices.append([f"{key}={text_of(value)}" for value in values])
    return list(product(*choices))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def text_of(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
