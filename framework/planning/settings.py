"""Settings of `framework.plan` besides those of training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.config.nodes import Component, check_arguments
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError, check_at_least
from framework.planning.drawn_store import Lengths

Fit = Literal["micro_batch", "nodes"]


@dataclass(frozen=True)
class PlanSettings:
    """Machines of a plan, its data, and the settings that it compares.

    Attributes:
        nodes: Number of nodes.
        gpus_per_node: Number of processes on each node, one for each device.
        lengths: Lengths of a corpus that is not at hand; None: the data of the config is read.
        compare: Keys of the config with lists of values, all combinations of which are planned; None: one plan.
        fit: Setting that is fitted to the memory: the largest micro-batch, or the fewest nodes.
        output: Folder for a picture of the comparison.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    lengths: dict[str, Any] | None = None
    compare: dict[str, Any] | None = None
    fit: Fit | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        check_at_least("plan.nodes", self.nodes, 1)
        check_at_least("plan.gpus_per_node", self.gpus_per_node, 1)
        if self.output is not None and self.compare is None:
            raise ConfigError(
                f"plan.output is {self.output}, but plan.compare is null. The picture shows compared plans. Set "
                "plan.compare, or set plan.output to null."
            )

    @property
    def first_rank(self) -> ProcessInfo:
        """Returns rank 0 of the planned ranks."""
        return ProcessInfo(world_size=self.nodes * self.gpus_per_node, local_world_size=self.gpus_per_node)


@dataclass(frozen=True)
class PlanConfig:
    """Keys of `framework.plan` that training does not have.

    Attributes:
        plan: Machines and data.
        hardware: Device (`framework.planning.hardware.Hardware`).
    """

    plan: dict[str, Any]
    hardware: Component

    @property
    def settings(self) -> PlanSettings:
        """Returns the checked settings of the plan."""
        return PlanSettings(**check_arguments("plan", self.plan, PlanSettings))

    @property
    def lengths(self) -> Lengths | None:
        """Returns the checked lengths; None: the data of the config is read."""
        given = self.settings.lengths
        return None if given is None else Lengths(**check_arguments("plan.lengths", given, Lengths))
