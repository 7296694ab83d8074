"""Plans of a command line and of changes to it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from framework.config.command import recompose, resolve_config
from framework.config.nodes import check_arguments
from framework.config.schema import TrainConfig
from framework.errors import ConfigError
from framework.planning.drawn_store import Lengths, write_drawn_store
from framework.planning.fake_run import PhaseRecord, record_phases
from framework.planning.hardware import Hardware
from framework.planning.report import required_bytes
from framework.planning.settings import PlanConfig, PlanSettings

_ALLOCATION_BYTES = 512
"""Bytes to a multiple of which torch's allocator for CUDA rounds a block up."""
_DRAWN_TOKENS = 400_000
_OWN_GROUPS = ("plan", "hardware")


@dataclass(frozen=True)
class Plan:
    """Plan of one config. A step of each phase is recorded when it is first needed.

    Attributes:
        changes: Overrides that were added to the command line.
        config: Resolved config of training.
        settings: Machines.
        lengths: Lengths of a corpus that is not at hand; None: the data of the config is read.
        hardware: Device.
    """

    changes: tuple[str, ...]
    config: Mapping[str, Any]
    settings: PlanSettings
    lengths: Lengths | None
    hardware: Hardware

    @cached_property
    def records(self) -> list[PhaseRecord]:
        """Records a step of each phase.

        Raises:
            FrameworkError: The config cannot be run on these ranks, or a step cannot be planned.
        """
        is_cuda = self.hardware.device == "cuda"
        if self.config["precision"]["name"] == "float8":
            self.hardware.peak_flops("float8")  # rejects a device without
        return record_phases(
            self.config,
            self.settings.first_rank,
            self.hardware.device,
            _ALLOCATION_BYTES if is_cuda else 1,
            self.hardware.usable_bytes if is_cuda else None,
        )

    @property
    def required_bytes(self) -> float:
        """Returns the memory of a rank in the phase that needs most, with fragments and reserves."""
        return max(required_bytes(each, self.hardware) for each in self.records)

    @property
    def fits(self) -> bool:
        """Returns True if a rank has memory for a step of each phase."""
        return self.required_bytes <= self.hardware.memory_bytes


class Planner:
    """Plans the command line of this process, and changes of it.

    Args:
        composed: Composed config of `framework.plan`.
        folder: Empty folder for token stores with drawn lengths.
    """

    def __init__(self, composed: DictConfig, folder: Path) -> None:
        self._composed = composed
        self._folder = folder

    def plan(self, changes: Sequence[str] = ()) -> Plan:
        """Checks the settings of a plan. Nothing is recorded yet.

        Args:
            changes: Overrides, each of which replaces one of the same key.

        Raises:
            FrameworkError: A key or a value is wrong.
        """
        composed = recompose("plan", changes) if changes else self._composed.copy()
        own = {name: composed[name] for name in _OWN_GROUPS}
        with open_dict(composed):
            for name in own:
                del composed[name]
        values = {name: dict(resolve_config(DictConfig(node))) for name, node in own.items()}
        own_config = PlanConfig(**check_arguments("", values, PlanConfig))
        lengths = own_config.lengths
        if lengths is not None:
            self._use_drawn_store(composed, lengths)
        typed = [*HydraConfig.get().overrides.task, *changes]
        config = resolve_config(composed, TrainConfig, typed)
        return Plan(tuple(changes), config, own_config.settings, lengths, own_config.hardware.build())

    def _use_drawn_store(self, composed: DictConfig, lengths: Lengths) -> None:
        """Sets the store of the config to one with drawn lengths.

        Raises:
            ConfigError: The data of the config is not a token store.
        """
        if "store" not in (composed.get("data") or {}).keys():  # noqa: SIM118  a value that is not given is not "in"
            raise ConfigError(
                "plan.lengths is set, but the data of this task is not a token store. Lengths can only replace a store "
                "of pre-training texts. Set plan.lengths to null and give the files of the data."
            )
        name = "-".join(f"{value}" for value in asdict(lengths).values())
        store = self._folder / f"store-{name}"
        if not store.exists():
            write_drawn_store(store, lengths, _DRAWN_TOKENS)
        composed.data.store = str(store)
