"""Logs the events of a run to each rank's log file, and records the activity between steps."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import logging

import lightning.pytorch as pl
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.run_log import RunLog
from framework.distributed.processes.failure_report import REPORT, first_failure
from framework.distributed.processes.position import begin_activity
from framework.modules.encoder_module import EncoderModule
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)

_LOGGED_KEYS = (
    "train/loss",
    "optim/grad_norm",
    "optim/lr",
    "train/tokens",
    "perf/tokens_per_second",
    "perf/memory_bytes",
)


class RankLines(pl.Callback):
    """Logs start, rows, validations and the end on every rank.

    It must be the last callback: it records the end of a step after all others have run.
    """

    def __init__(self, run_log: RunLog, cadence: Cadence) -> None:
        """Creates the callback.

        Args:
            run_log: Run log, which has the newest values.
            cadence: Schedule of rows and validations.
        """
        self.run_log = run_log
        self.cadence = cadence

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Logs the step at which training begins or resumes."""
        event = "training resumes" if trainer.global_step else "training begins"
        logger.info("%s after step %d of %d", event, trainer.global_step, self.cadence.total_steps)
        self._begin_next(trainer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Logs the row if one is due."""
        if self.cadence.logs(trainer.global_step):
            latest = self.run_log.latest
            logger.info("row: %s", ", ".join(f"{key} {latest[key]:.6g}" for key in _LOGGED_KEYS if key in latest))
        if not self.cadence.validates(trainer.global_step):
            self._begin_next(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Logs that validation begins."""
        logger.info("validation begins")
        begin_activity("validates")

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: EncoderModule, batch: StepBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Records each batch, so that the watchdog does not take a long validation for a hang."""
        begin_activity(f"validates batch {batch_idx + 1}")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Logs the validation metrics."""
        values = pl_module.validation_metrics.items()
        logger.info("validation: %s", ", ".join(f"{key} {value:.6g}" for key, value in values))
        self._begin_next(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Logs the step at which training ended."""
        logger.info("training ended after step %d of %d", trainer.global_step, self.cadence.total_steps)

    def _begin_next(self, trainer: pl.Trainer) -> None:
        if trainer.global_step < trainer.max_steps and not trainer.should_stop:
            begin_activity("waits for its batch", trainer.global_step + 1)
        else:
            begin_activity("ends the run")


def failure_text(error: BaseException) -> str:
    """Returns one line: the first failure among the ranks if they are watched, else this rank's own failure."""
    return str(first_failure(error) if REPORT.is_open else REPORT.describe(error))
