"""Settings that are fitted to the memory of the devices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from framework.errors import ConfigError
from framework.planning.alternatives import combinations, fitted, nearest_fits
from framework.planning.planner import Planner
from framework.planning.settings import PlanSettings


@dataclass
class StandIn:
    """Plan whose fit is a function of its nodes."""

    changes: tuple[str, ...]
    settings: PlanSettings
    fit: Callable[[int], bool]

    @property
    def fits(self) -> bool:
        return self.fit(self.settings.nodes)


class StandInPlanner:
    """Planner that counts the plans whose steps it records."""

    def __init__(self, fit: Callable[[int], bool], nodes: int = 1) -> None:
        self.fit, self.nodes, self.tried = fit, nodes, list[int]()

    def plan(self, changes: Sequence[str] = ()) -> StandIn:
        nodes = next((int(each.removeprefix("plan.nodes=")) for each in changes if "nodes=" in each), self.nodes)

        def fit(count: int) -> bool:
            self.tried.append(count)
            return self.fit(count)

        return StandIn(tuple(changes), PlanSettings(nodes), fit)


def fewest(planner: StandInPlanner) -> Any:
    return fitted(cast(Planner, planner), ["strategy=fsdp2"], "nodes")


@pytest.mark.parametrize("needed", [*range(1, 20), 512, 513, 1000, 1024])
def test_the_fewest_nodes_that_fit_are_found_with_few_plans(needed: int):
    planner = StandInPlanner(lambda nodes: nodes >= needed)
    assert fewest(planner).changes == ("strategy=fsdp2", f"plan.nodes={needed}")
    assert len(planner.tried) <= 4 + 9


def test_numbers_of_nodes_that_training_rejects_are_skipped():
    def fit(nodes: int) -> bool:
        if nodes % 2:
            raise ConfigError(f"{nodes} nodes")
        return nodes >= 6

    assert fewest(StandInPlanner(fit)).settings.nodes == 6

    def reject(nodes: int) -> bool:
        raise ConfigError("no text")

    with pytest.raises(ConfigError, match="no text"):
        fewest(StandInPlanner(reject))


def test_a_run_that_fits_on_no_nodes_is_planned_as_given():
    planner = StandInPlanner(lambda nodes: False, nodes=3)
    assert (fewest(planner).settings.nodes, fewest(planner).changes) == (3, ("strategy=fsdp2",))


@dataclass
class Described:
    """Plan whose memory is a function of its changes."""

    changes: tuple[str, ...]
    settings: PlanSettings
    config: dict[str, Any]
    fits: bool
    records: tuple[()] = ()


class DescribedPlanner:
    """Planner of runs that fit with at least one of some sets of changes."""

    def __init__(self, strategy: str, *fitting: set[str]) -> None:
        self.strategy, self.fitting = strategy, fitting

    def plan(self, changes: Sequence[str] = ()) -> Described:
        keys = dict(change.split("=") for change in changes)
        strategy = keys.pop("strategy", self.strategy)
        nodes = int(keys.pop("plan.nodes", 1))
        if "strategy.gradient_sync" in keys and strategy not in ("fsdp2", "fsdp2_tp"):
            raise ConfigError("only shards")
        reached = {*changes} | {f"plan.nodes={number}" for number in range(nodes + 1)}
        fits = any(each <= reached for each in self.fitting)
        return Described(tuple(changes), PlanSettings(nodes), {"strategy": {"name": strategy}, **keys}, fits)


@pytest.mark.parametrize(
    ("strategy", "fitting", "expected"),
    [
        ("ddp", [{"trainer.micro_batch_tokens=auto"}], [["trainer.micro_batch_tokens=auto"]]),
        # Changes that were tried before and are not needed are left out.
        ("ddp", [{"strategy=fsdp2"}], [["strategy=fsdp2"]]),
        (
            "ddp",
            [{"strategy=fsdp2", "strategy.gradient_sync=every", "strategy.activation_checkpointing.mode=full"}],
            [["strategy.activation_checkpointing.mode=full", "strategy=fsdp2", "strategy.gradient_sync=every"]],
        ),
        # The fewest nodes, or host memory.
        ("fsdp2", [{"strategy.cpu_offload=true"}, {"plan.nodes=3"}], [["plan.nodes=3"], ["strategy.cpu_offload=true"]]),
        ("fsdp2", [], []),
    ],
)
def test_the_nearest_settings_that_fit_are_few_changes(
    strategy: str, fitting: list[set[str]], expected: list[list[str]]
):
    planner = DescribedPlanner(strategy, *fitting)
    found = nearest_fits(cast(Planner, planner), cast(Any, planner.plan()))
    common = ["trainer.micro_batch_tokens=auto", "strategy.activation_checkpointing.mode=full"]
    common += ["strategy.gradient_sync=every"]
    all_changes = [[*common, *each] if len(expected) > 1 else each for each in expected]
    assert [list(each.changes) for each in found] == all_changes


def test_the_largest_micro_batch_is_that_of_training():
    planned = fitted(cast(Planner, StandInPlanner(lambda nodes: True)), [], "micro_batch")
    assert planned.changes == ("trainer.micro_batch_tokens=auto",)


def test_combinations_are_overrides_of_the_command_line():
    assert combinations({"strategy": ["ddp", "fsdp2"], "data.weights": [None], "trainer.ema_decay": [0.5]}) == [
        ("strategy=ddp", "data.weights=null", "trainer.ema_decay=0.5"),
        ("strategy=fsdp2", "data.weights=null", "trainer.ema_decay=0.5"),
    ]
    assert combinations({"strategy.cpu_offload": [True, False]}) == [
        ("strategy.cpu_offload=true",),
        ("strategy.cpu_offload=false",),
    ]
