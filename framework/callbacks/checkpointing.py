"""Writes checkpoints. A step is saved after its validation and its row; the last step is always saved.

A save hands the tensors to a thread, which copies them to host memory and then writes the copy. The copy runs during
the next step's forward and backward, which only read the tensors. The main thread waits for the copy just before
anything changes them; the optimizer announces this with `CombinedOptimizer.before_change`. The collectives of a write
use their own process group, because two threads that share one gloo group receive each other's messages.
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import copy
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.timings import Timings
from framework.checkpoint.retention import VALIDATION, Retention
from framework.checkpoint.save import SaveError, check_finite, write_checkpoint
from framework.checkpoint.staging import Staging, work_so_far
from framework.checkpoint.storage import Location
from framework.checkpoint.tensors import checkpoint_tensors
from framework.distributed.processes.agreement import on_every_rank, on_first_rank
from framework.distributed.processes.failure_report import REPORT, report_once
from framework.distributed.processes.position import POSITION, begin_activity
from framework.errors import CheckpointError
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.progress_file import PROGRESS_FILE, write_progress
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)

SCHEDULE = "schedule"
"""Key of state.json for `max_steps` and the learning-rate factors of the last and the next update."""

TERM_WEIGHTS = "term_weights"
"""Key of state.json for the weights of loss terms that change during training."""


class Checkpointing(pl.Callback):
    """Saves when the cadence requires it and when a stop was requested.

    Its position is after the callbacks that log and those that request stops. At most one checkpoint is written at a
    time: the next save first waits for the previous one. The last save, or the save of a planned stop, is completed
    before training ends. At the end of a write and its copy, the ranks agree on whether it succeeded. They read this
    result when they wait for the write, so that all of them continue or fail at the same step. A run that is killed
    before a step's validation has no checkpoint of that step, and repeats both the step and the validation.
    """

    def __init__(
        self,
        folder: Location,
        cadence: Cadence,
        timings: Timings,
        retention: Retention,
        background: bool = True,
        timeout_seconds: float = 600.0,
        run_folder: Path | None = None,
        console: Console | None = None,
    ) -> None:
        """Creates the callback.

        Args:
            folder: Folder of the run's checkpoints.
            cadence: Schedule of checkpoints and validations.
            timings: Lap timer, which gets the seconds that training waited and the seconds of complete saves.
            retention: Rule that selects the checkpoints to keep; the others are removed after a save.
            background: Copy to host memory and write while training continues; otherwise training waits.
            timeout_seconds: Time limit for waiting for the other ranks.
            run_folder: Folder for progress.json, which records the newest checkpoint; None: no record is written.
            console: Console for write errors; None: standard output.
        """
        self.folder = folder
        self.cadence = cadence
        self.timings = timings
        self.retention = retention
        self.timeout_seconds = timeout_seconds
        self.run_folder = run_folder
        self.console = console
        # If no save happens before the last step, none can run in the background, so no host memory is needed.
        self._staging = Staging() if background and cadence.checkpoint_every_n_steps is not None else None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._group: dist.ProcessGroup | None = None
        self._copying: Future[dict[str, Tensor]] | None = None
        self._in_flight: tuple[int, Future[str | None]] | None = None
        self._validated_step: int | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Creates the process group of the writes. Collective: all ranks must call."""
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_seconds))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Allocates the host memory of the copies now, so that a lack of it is detected early.

        The first save is then as fast as the others. Collective: all ranks must call.

        Raises:
            CheckpointError: Any rank has too little host memory; raised on all ranks.
        """
        staging = self._staging
        if staging is not None and trainer.global_step < self.cadence.max_steps:
            pl_module.optimizer.before_change = self.wait_for_copy
            tensors = checkpoint_tensors(pl_module.model, pl_module.optimizer)
            on_every_rank(lambda: staging.copy(tensors), self._group)

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

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Waits for a running write, before any callback reports how the run ended."""
        self.wait(trainer)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Waits for a running write, so that its checkpoint is kept. The threads of live peers take part in it.

        The write always ends: if a peer is gone or silent for `timeout_seconds`, it ends with an error. The exception
        that ends the run is reported first, because a launcher may not wait for a slow disk.
        """
        if self._in_flight is not None:
            if REPORT.is_open and not isinstance(exception, KeyboardInterrupt):
                report_once(exception)
            step, write = self._in_flight
            wait([write])
            if write.exception() is not None and trainer.is_global_zero:
                self._report(f"step {step}: its checkpoint is incomplete ({write.exception()}).")

    def save(self, trainer: pl.Trainer, pl_module: EncoderModule, waits: bool) -> None:
        """Starts a save of this step after the previous save has ended. Collective: all ranks must call.

        Args:
            trainer: Trainer, which has the step.
            pl_module: Module to save.
            waits: True: returns after the checkpoint is written; False: training may continue at once.

        Raises:
            SaveError: The last checkpoint of the run could not be written.
            CheckpointError: This save or the previous one failed for another reason.
        """
        runner = pl_module.runner
        runner.settle_last_step()
        self.wait(trainer)
        logger.info("checkpoint begins")
        begin_activity("starts a checkpoint")
        extra: dict[str, Any] = {"tokens": runner.num_tokens, "callbacks": callback_states(trainer)}
        step = trainer.global_step
        factors = {"factor": runner.schedule(max(step - 1, 0)), "next_factor": runner.schedule(step)}
        extra[SCHEDULE] = {"max_steps": trainer.max_steps, **factors}
        if runner.loss_scale is not None:
            extra["loss_scale"] = runner.loss_scale.state_dict()
        if runner.term_weights is not None:
            extra[TERM_WEIGHTS] = runner.term_weights.state_dict()
        if self._validated_step == step:
            metrics = pl_module.validation_metrics.items()
            extra[VALIDATION] = {name: value for name, value in metrics if math.isfinite(value)}
        tensors = checkpoint_tensors(pl_module.model, pl_module.optimizer)
        self.timings.begin("checkpoint")
        source: dict[str, Tensor] | Future[dict[str, Tensor]] = tensors
        if self._staging is not None and not waits:
            source = self._copying = self._writer.submit(self._staging.copy, tensors, work_so_far(tensors))
        # There is one writer thread, so the write begins after the copy has ended.
        self._in_flight = step, self._writer.submit(self._write, step, source, copy.deepcopy(extra))
        if waits or self._staging is None:
            self.wait(trainer)

    def wait_for_copy(self) -> None:
        """Waits until the tensors of the last save are copied. The write reports errors of the copy.

        The host waits, not a stream of the GPU. This works for tensors of any device. Meanwhile a GPU computes the
        gradients that were queued before the update.
        """
        if self._copying is None:
            return
        before = POSITION.activity
        begin_activity("waits for a checkpoint to be copied")  # on all ranks, even if the copy has ended already
        with self.timings.interruption("checkpoint_stall"):
            wait([self._copying])
        self._copying = None
        begin_activity(before)

    def wait(self, trainer: pl.Trainer) -> None:
        """Waits for the checkpoint that is being written, if any. Collective: all ranks must call.

        After a write error, such as a full disk, the run continues without this checkpoint, unless it is the last one.

        Raises:
            SaveError: The last checkpoint of the run could not be written; raised on all ranks.
            CheckpointError: The save failed for another reason; raised on all ranks.
        """
        if self._in_flight is None:
            return
        begin_activity("waits for a checkpoint to be written")
        step, write = self._in_flight
        self._in_flight = self._copying = None
        try:
            message = write.result()
        except SaveError as error:
            if step == self.cadence.max_steps:
                raise
            message = f"step {step}: {error} Training continues without this checkpoint."
        if message is not None and trainer.is_global_zero:
            self._report(message)

    def _save_if_due(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        step = trainer.global_step
        if self.cadence.saves(step) or trainer.should_stop:
            self.timings.lap("train")
            self.save(trainer, pl_module, waits=step == self.cadence.max_steps or trainer.should_stop)
            self.timings.lap("checkpoint_stall")

    def _write(
        self, step: int, source: dict[str, Tensor] | Future[dict[str, Tensor]], extra: dict[str, Any]
    ) -> str | None:
        """Runs in the writer thread and returns a message to report, if any. Collective: all ranks must call."""
        messages: list[str] = []

        def record_and_prune() -> None:
            try:
                if self.run_folder is not None:
                    write_progress(self.run_folder, step)
            except OSError as error:
                messages.append(f"{PROGRESS_FILE} could not be written ({error}). The next save retries.")
            try:
                self.retention.prune(self.folder)
            except (OSError, CheckpointError) as error:
                messages.append(f"An old checkpoint could not be removed ({error}). The next save retries.")

        try:
            tensors = on_every_rank(source.result, self._group) if isinstance(source, Future) else source
            check_finite(tensors, self._group)
            write_checkpoint(self.folder, step, tensors, extra, self._group)
            on_first_rank(record_and_prune, self._group)
            logger.info("checkpoint of step %d is complete", step)
        finally:
            self.timings.end("checkpoint")
        return messages[0] if messages else None

    def _report(self, text: str) -> None:
        logger.warning(text)
        print_line(text, self.console)


def callback_states(trainer: pl.Trainer) -> dict[str, dict]:
    """Returns the state that each callback needs after a resume, by class name."""
    states = {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {name: state for name, state in states.items() if state}
