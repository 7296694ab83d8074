"""Writes the rows of a run to metrics.jsonl, perf.jsonl and the loggers: one row per step with a due metric."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.throughput import Throughput
from framework.modules.encoder_module import EncoderModule
from framework.tracking.metric_names import depends_on_clock
from framework.tracking.metrics_jsonl import METRICS_FILE, PERF_FILE, MetricsFile, RowsRecord


class RunLog(pl.Callback):
    """Collects the metrics of a step, with one wait for the device, and writes them on rank 0 after its validation.

    Attributes:
        latest: The newest value of each metric key.
    """

    def __init__(
        self, run_folder: Path, cadence: Cadence, throughput: Throughput, loggers: Sequence[Logger] = ()
    ) -> None:
        """Creates the run log.

        Args:
            run_folder: Run folder, which holds metrics.jsonl and perf.jsonl.
            cadence: Schedule of rows and validations.
            throughput: Source of the metrics that depend on the clock.
            loggers: Loggers that get each row with its step and are finalized with the run. Empty on all ranks but 0.
        """
        self.run_folder = run_folder
        self.cadence = cadence
        self.throughput = throughput
        self.loggers = list(loggers)
        self.latest: dict[str, float] = {}
        self._files: dict[bool, MetricsFile] = {}
        self._pending: dict[str, float] = {}
        self._added: dict[str, float] = {}
        self._joined: dict[str, float] = {}
        self._row_is_due = False
        self._hidden: frozenset[str] = frozenset()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Opens the files on rank 0 and removes the rows after the step at which the run resumes."""
        self._hidden = pl_module.hidden_metrics
        if trainer.is_global_zero:
            names = {False: METRICS_FILE, True: PERF_FILE}
            self._files = {
                clock: MetricsFile(self.run_folder / name, trainer.global_step) for clock, name in names.items()
            }

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Collects the training metrics if they are due. The row is written now unless validation will add to it."""
        step = trainer.global_step
        if self.cadence.logs(step) or self._row_is_due:
            self._collect(pl_module.runner.metrics, pl_module.device)
        if not self.cadence.validates(step):
            self._write(step)

    def write_earlier(self, trainer: pl.Trainer, metrics: Mapping[str, Tensor | float], device: torch.device) -> None:
        """Writes a row for the last completed step, for which none was due.

        Args:
            trainer: Trainer, which has the step.
            metrics: `StepRunner.metrics` of that step.
            device: Device of the run.
        """
        self._collect(metrics, device)
        self._write(trainer.global_step)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Adds the validation metrics and writes the row."""
        self._pending |= pl_module.validation_metrics
        self.latest |= pl_module.validation_metrics
        self._write(trainer.global_step)

    @override
    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Flushes the files to disk and returns count and hash of their rows. Empty on all ranks but 0."""
        return {file.path.name: asdict(file.record()) for file in self._files.values()}

    def row_problems(self, state: Mapping[str, Mapping[str, Any]], step: int) -> dict[str, str]:
        """Compares the rows up to a step with the record in a checkpoint.

        Args:
            state: Result of `state_dict` at that step.
            step: Step of the checkpoint.

        Returns:
            Description of the problem by file name; empty if all rows match.

        Raises:
            CheckpointError: A line is not a valid row.
        """
        problems = {
            name: RowsRecord(**record).problem_of(self.run_folder / name, step)
            for name, record in state.items()
            if name in (METRICS_FILE, PERF_FILE)
        }
        return {name: problem for name, problem in problems.items() if problem is not None}

    def add(self, values: Mapping[str, float], at_once: bool = False) -> None:
        """Adds metrics of another callback to the next row of training metrics.

        Args:
            values: Values by metric key.
            at_once: Write a row for the current step even if none is due.
        """
        self._added |= values
        self._row_is_due |= at_once

    def join(self, values: Mapping[str, float]) -> None:
        """Adds metrics to the row of the current step. The row is written even if no other metric is due."""
        self._joined |= values
        self.latest |= values

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Closes files and loggers at the end of a run."""
        self._close("success")

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Closes files and loggers after a failure."""
        self._close("failed")

    def _close(self, status: str) -> None:
        for file in self._files.values():
            file.close()
        for logger in self.loggers:
            logger.finalize(status)
        self._files, self.loggers = {}, []

    def _collect(self, metrics: Mapping[str, Tensor | float], device: torch.device) -> None:
        """Reads the metrics of a step, with one wait for the device, and closes the window of the throughput."""
        metrics = {key: value for key, value in metrics.items() if key not in self._hidden}
        on_device = {key: value for key, value in metrics.items() if isinstance(value, Tensor)}
        read = torch.stack([value.to(device).double() for value in on_device.values()]).tolist()
        values = {**metrics, **dict(zip(on_device, read, strict=True))}
        num_tokens = int(values["train/tokens"])
        self._pending |= {key: float(value) for key, value in values.items()} | {"train/tokens": num_tokens}
        self._pending |= self.throughput.take_window(num_tokens, device) | self._added
        self._added, self._row_is_due = {}, False
        self.latest |= self._pending

    def _write(self, step: int) -> None:
        self._pending |= self._joined
        for clock, file in self._files.items():
            row = {key: value for key, value in self._pending.items() if depends_on_clock(key) == clock}
            if row:
                file.append({"step": step, **row})
        if self._pending:
            for logger in self.loggers:
                logger.log_metrics(self._pending, step=step)
        self._pending, self._joined = {}, {}
