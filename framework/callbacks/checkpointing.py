"""Writes checkpoints: in the step's order after validation and after the row, and always one at the end."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import math
from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.timings import Timings
from framework.checkpoint.retention import VALIDATION, Retention
from framework.checkpoint.save import SaveError, save_checkpoint
from framework.distributed.agreement import on_first_rank
from framework.modules.encoder_module import EncoderModule


class Checkpointing(pl.Callback):
    """Saves where the cadence says so, and where a stop was asked for. Stands after what logs and what asks for it.

    A run that is killed before a step's validation has no checkpoint of that step: it does both again.
    """

    def __init__(
        self, folder: Path, cadence: Cadence, timings: Timings, retention: Retention, console: Console | None = None
    ) -> None:
        """Takes where and when.

        Args:
            folder: The run's `checkpoints/`.
            cadence: When a checkpoint is due.
            timings: Gets the seconds that training stood still.
            retention: Which checkpoints stay; the others are removed after a save.
            console: Where to say that the disk refused; None: standard output.
        """
        self.folder = folder
        self.cadence = cadence
        self.timings = timings
        self.retention = retention
        self.console = console or Console()
        self._validated_step: int | None = None

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Saves, unless this step's validation comes first."""
        if not self.cadence.validates(trainer.global_step):
            self._save_if_due(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Saves after the validation of the step."""
        self._validated_step = trainer.global_step
        self._save_if_due(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Saves now, and removes what need not stay. Collective: all ranks must call.

        Raises:
            SaveError: The disk refused.
        """
        extra = {"tokens": pl_module.num_tokens, "callbacks": callback_states(trainer)}
        if self._validated_step == trainer.global_step:
            metrics = pl_module.validation_metrics.items()
            extra[VALIDATION] = {name: value for name, value in metrics if math.isfinite(value)}
        save_checkpoint(self.folder, trainer.global_step, pl_module.model, pl_module.optimizer, extra)
        on_first_rank(self._prune)

    def _save_if_due(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Saves where it is due. A full disk costs a run this checkpoint, not the run, unless it is the last one."""
        step = trainer.global_step
        if not (self.cadence.saves(step) or trainer.should_stop):
            return
        self.timings.lap("train")
        try:
            self.save(trainer, pl_module)
        except SaveError as error:
            if step == self.cadence.max_steps:
                raise
            if trainer.is_global_zero:
                self._say(f"step {step}: {error} Training goes on without this checkpoint.")
        self.timings.lap("checkpoint")

    def _prune(self) -> None:
        try:
            self.retention.prune(self.folder)
        except OSError as error:
            self._say(f"An old checkpoint could not be removed ({error}); it is tried again after the next save.")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def callback_states(trainer: pl.Trainer) -> dict[str, dict]:
    """What each callback wants to know again after a resume, by its class name."""
    states = {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {name: state for name, state in states.items() if state}
