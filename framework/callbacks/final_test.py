"""Evaluates the test split with the last weights of a run."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.run_log import RunLog
from framework.distributed.processes.position import begin_activity
from framework.modules.encoder_module import EncoderModule


class FinalTest(pl.Callback):
    """Adds `test/METRIC` to the row of the last step of a run, if the cadence says so. It comes before the run log.

    A run that ends before its last step is not evaluated.
    """

    def __init__(self, cadence: Cadence, run_log: RunLog) -> None:
        self.cadence = cadence
        self.run_log = run_log

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Evaluates the split if that is due. Collective: all ranks must call."""
        if not self.cadence.tests(trainer.global_step):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        begin_activity("evaluates the test split")
        values = pl_module.evaluate(data.plans["test"], data.rank)
        self.run_log.join({f"test/{name}": value for name, value in values.items()})
        self.run_log.throughput.timings.lap("validation")
