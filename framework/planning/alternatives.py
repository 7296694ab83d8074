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
)
"""Changes that cost time and change no result, the cheapest first. A later one is made on top of the earlier ones."""

_OFFLOAD = "strategy.cpu_offload=true"
_UNSHARDED = ("single", "ddp", "hsdp")
"""Strategies whose weights more nodes do not split further."""
_MAX_DOUBLINGS = 10
"""Doublings of the nodes within which the fewest nodes are searched: up to 1,024."""


def nearest_fits(planner: Planner, plan: Plan) -> list[Plan]:
    """Returns plans with few changes that fit.

    They are one plan on the same devices, or if only host memory would help there, also one on the fewest nodes; none
    if neither fits.

    Args:
        planner: Planner of the command line.
        plan: Plan that does not fit.
    """
    given = plan
    for override in CHANGES:
        changed = _changed(planner, plan, override)
        if changed is not None and changed.fits:
            return [_needed(planner, given, changed)]
        plan = changed or plan
    found = [_fitting_nodes(planner, plan.changes, 2 * plan.settings.nodes), _changed(planner, plan, _OFFLOAD)]
    return [each for each in found if each is not None and each.fits]


def _needed(planner: Planner, given: Plan, plan: Plan) -> Plan:
    """Returns a plan that fits without the changes that it does not need; the costliest are left out first."""
    for override in reversed(plan.changes[len(given.changes) : -1]):
        try:
            smaller = planner.plan([each for each in plan.changes if each != override])
            plan = smaller if smaller.fits else plan
        except FrameworkError:  # a later change needs it
            continue
    return plan


def _changed(planner: Planner, plan: Plan, override: str) -> Plan | None:
    """Returns a plan with one more change; None: it changes nothing, or a rule of training forbids it."""
    name = plan.config["strategy"]["name"]
    is_of_shards = override in (_OFFLOAD, "strategy.gradient_sync=every")
    if (is_of_shards and name not in SHARDED) or (override == "strategy=fsdp2" and name not in _UNSHARDED):
        return None
    try:
        changed = planner.plan([*plan.changes, override])
        if changed.config == plan.config:
            return None
        changed.records  # noqa: B018  which are recorded now
    except FrameworkError:
        return None
    return changed


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
    return _fewest_nodes(planner, changes, 1) or planner.plan(changes)


def _fitting_nodes(planner: Planner, changes: Sequence[str], least: int) -> Plan | None:
    """Returns the plan with the fewest nodes that fits; None: none does, or training rejects all of them."""
    try:
        return _fewest_nodes(planner, changes, least)
    except FrameworkError:
        return None


def _fewest_nodes(planner: Planner, changes: Sequence[str], least: int) -> Plan | None:
    """Returns the plan with the fewest nodes that fits, not below half of a number; None: none does.

    Raises:
        FrameworkError: The config cannot be planned on any number of nodes that was tried.
    """
    doublings = [least * 2**power for power in range(_MAX_DOUBLINGS + 1) if least * 2**power <= 2**_MAX_DOUBLINGS]
    found = _first_fit(planner, changes, doublings)
    if found is None:
        return None
    nodes = found.settings.nodes
    return _first_fit(planner, changes, range(nodes // 2 + 1, nodes)) or found


def _first_fit(planner: Planner, changes: Sequence[str], counts: Sequence[int]) -> Plan | None:
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
