"""A run whose parts are built and checked against each other, before it uses a device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from framework.checkpoint.layout import step_of
from framework.config.phases import Phase
from framework.config.schema import TrainConfig
from framework.datamodules.datamodule import EncoderDataModule
from framework.modules.encoder_module import EncoderModule
from framework.runs.build import Parts
from framework.runs.folder import RunFolder, find_run_folder


@dataclass(frozen=True)
class AssembledPhase:
    """A phase of a run, or a whole run without phases, that passed all checks that need no device.

    Attributes:
        phase: Name and number.
        config: Resolved config of the phase with masked secrets.
        settings: The same config as typed settings.
        parts: Components.
        data: LightningDataModule.
        module: LightningModule, its weights on the meta device.
        graph_obstacle: Reason why the steps are not captured as CUDA graphs, which the config asks for; None: they are
            captured, or need not be.
    """

    phase: Phase
    config: Mapping[str, Any]
    settings: TrainConfig
    parts: Parts
    data: EncoderDataModule
    module: EncoderModule
    graph_obstacle: str | None


@dataclass(frozen=True)
class AssembledRun:
    """A run that passed all checks that need no device and no other process.

    Attributes:
        phases: Phases that are not finished in their order; a run without phases has one.
        configs: Resolved config of each phase with masked secrets.
        max_steps: Optimizer steps of the whole run.
        folder: Run folder and the checkpoint to resume from.
    """

    phases: tuple[AssembledPhase, ...]
    configs: tuple[Mapping[str, Any], ...]
    max_steps: int
    folder: RunFolder

    @property
    def settings(self) -> TrainConfig:
        """Returns the settings of the first phase that is left; groups that phases cannot change apply to the run."""
        return self.phases[0].settings

    def from_step_in(self, folder: RunFolder) -> "AssembledRun":
        """Returns the run without the phases that a run folder has finished, except the last one."""
        step = 0 if folder.checkpoint is None else step_of(folder.checkpoint)
        left = tuple(each for each in self.phases if step < each.parts.max_steps)
        return replace(self, phases=left or self.phases[-1:], folder=folder)

    def find_folder(self) -> RunFolder:
        """Reads the run folder, in which another start, or the phase before, may have trained."""
        return find_run_folder(self.settings.run, self.configs)
