"""Validates at the end of a run whose length is not a multiple of the validation interval."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import lightning.pytorch as pl
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.modules.encoder_module import EncoderModule


class FinalValidation(pl.Callback):
    """Makes Lightning validate after the last step: a requested stop triggers a validation and ends the run."""

    def __init__(self, cadence: Cadence) -> None:
        self.cadence = cadence

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Requests the stop at the last step."""
        if trainer.global_step == self.cadence.max_steps and self.cadence.validates(trainer.global_step):
            trainer.should_stop = True
