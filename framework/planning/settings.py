"""Settings of `framework.plan` besides those of training."""

from dataclasses import dataclass
from typing import Any

from framework.config.nodes import Component, check_arguments
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import check_at_least
from framework.planning.drawn_store import Lengths


@dataclass(frozen=True)
class PlanSettings:
    """Machines of a plan, and its data.

    Attributes:
        nodes: Number of nodes.
        gpus_per_node: Number of processes on each node, one for each device.
        lengths: Lengths of a corpus that is not at hand; None: the data of the config is read.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    lengths: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_at_least("plan.nodes", self.nodes, 1)
        check_at_least("plan.gpus_per_node", self.gpus_per_node, 1)

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
