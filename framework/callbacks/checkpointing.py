"""Writes checkpoints: in the step's order after validation and after the row, and always one at the end."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

from pathlib import Path

import lightning.pytorch as pl
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.timings import Timings
from framework.checkpoint.layout import prune
from framework.checkpoint.save import save_checkpoint
from framework.distributed.agreement import on_first_rank
from framework.modules.encoder_module import EncoderModule


class Checkpointing(pl.Callback):
    """Saves where the cadence says so. Stands after the callback that logs.

    A run that is killed before a step's validation has no checkpoint of that step: it does both again.
    """

    def __init__(self, folder: Path, cadence: Cadence, timings: Timings, keep_last: int) -> None:
        """Takes where and when.

        Args:
            folder: The run's `checkpoints/`.
            cadence: When a checkpoint is due.
            timings: Gets the seconds that training stood still.
            keep_last: Complete checkpoints that stay; older ones are removed.
        """
        self.folder = folder
        self.cadence = cadence
        self.timings = timings
        self.keep_last = keep_last

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
        self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        step = trainer.global_step
        if not self.cadence.saves(step):
            return
        self.timings.lap("train")
        extra = {"tokens": pl_module.num_tokens, "callbacks": callback_states(trainer)}
        save_checkpoint(self.folder, step, pl_module.model, pl_module.optimizer, extra)
        on_first_rank(lambda: prune(self.folder, self.keep_last))
        self.timings.lap("checkpoint")


def callback_states(trainer: pl.Trainer) -> dict[str, dict]:
    """What each callback wants to know again after a resume, by its class name."""
    states = {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {name: state for name, state in states.items() if state}
