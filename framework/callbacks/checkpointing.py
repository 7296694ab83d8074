"""Writes checkpoints: in the step's order after validation and after the row, and always one at the end.

A save hands the tensors to a thread, which copies them to host memory and then writes the copy. The copy is made beside
the next step's forward and backward, which only read them; the main thread waits for it just before anything changes
them, which the optimizer tells (`CombinedOptimizer.before_change`). What the ranks say to each other about a write goes
over a process group of its own: two threads that use one gloo group take each other's messages.
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

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
from framework.distributed.processes.position import POSITION, mark
from framework.errors import CheckpointError
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.progress_file import PROGRESS_FILE, write_progress
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)

SCHEDULE = "schedule"
"""Key of state.json: `max_steps`, and the learning-rate factors of the last and of the next update."""


class Checkpointing(pl.Callback):
    """Saves where the cadence says so, and where a stop was asked for. Stands after what logs and what asks for it.

    At most one checkpoint is being written: the next save waits for it first, and the last one, or that of a planned
    leave, is waited for at once. How a write went, its copy included, is agreed by the ranks at its end and taken up
    where they wait for it, so that all of them go on or fail at the same step. A run that is killed before a step's
    validation has no checkpoint of that step: it does both again.
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
        """Takes where and when.

        Args:
            folder: Of the run's checkpoints.
            cadence: When a checkpoint is due.
            timings: Gets the seconds that training stood still, and those of whole saves.
            retention: Which checkpoints stay; the others are removed after a save.
            background: Copy to host memory and write beside the training; else training stands still.
            timeout_seconds: How long a rank waits for the others.
            run_folder: Folder for progress.json, which records the newest checkpoint; None: no record is written.
            console: Where to say that the disk refused; None: standard output.
        """
        self.folder = folder
        self.cadence = cadence
        self.timings = timings
        self.retention = retention
        self.timeout_seconds = timeout_seconds
        self.run_folder = run_folder
        self.console = console
        # Where no save falls between two steps there is nothing to write beside, and no memory to be spent on it.
        self._staging = Staging() if background and cadence.checkpoint_every_n_steps is not None else None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._group: dist.ProcessGroup | None = None
        self._copying: Future[dict[str, Tensor]] | None = None
        self._in_flight: tuple[int, Future[str | None]] | None = None
        self._validated_step: int | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Makes the process group of the writes. Collective: all ranks must call."""
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_seconds))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Takes the host memory of the copies now: too little of it shows here, and the first save is no slower.

        Collective: all ranks must call.

        Raises:
            CheckpointError: There is too little of it, on any rank; on all ranks.
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
        """Waits for what is still being written, before anything says how the run ended."""
        self.wait(trainer)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Lets a write come to its end, as its step is worth keeping: the peers' threads take part while they live.

        It ends in any case, with an error where a peer is gone or silent for `timeout_seconds`. The error that ends the
        run is the other one; it is told first, as a launcher may not wait for a slow disk.
        """
        if self._in_flight is not None:
            if REPORT.is_open and not isinstance(exception, KeyboardInterrupt):
                report_once(exception)
            step, write = self._in_flight
            wait([write])
            if write.exception() is not None and trainer.is_global_zero:
                self._say(f"step {step}: its checkpoint was not written to its end ({write.exception()}).")

    def save(self, trainer: pl.Trainer, pl_module: EncoderModule, waits: bool) -> None:
        """Starts a save of this step, after the one before has come to its end. Collective: all ranks must call.

        Args:
            trainer: Knows the step.
            pl_module: What is saved.
            waits: Until it is written; else training may go on at once.

        Raises:
            SaveError: The disk refused the last checkpoint of the run.
            CheckpointError: It failed for another reason, this one or the one before.
        """
        self.wait(trainer)
        logger.info("checkpoint begins")
        mark("hands a checkpoint over")
        extra: dict[str, Any] = {"tokens": pl_module.num_tokens, "callbacks": callback_states(trainer)}
        step = trainer.global_step
        factors = {"factor": pl_module.schedule(max(step - 1, 0)), "next_factor": pl_module.schedule(step)}
        extra[SCHEDULE] = {"max_steps": trainer.max_steps, **factors}
        if pl_module.loss_scale is not None:
            extra["loss_scale"] = pl_module.loss_scale.state_dict()
        if self._validated_step == step:
            metrics = pl_module.validation_metrics.items()
            extra[VALIDATION] = {name: value for name, value in metrics if math.isfinite(value)}
        tensors = checkpoint_tensors(pl_module.model, pl_module.optimizer)
        self.timings.begin("checkpoint")
        source: dict[str, Tensor] | Future[dict[str, Tensor]] = tensors
        if self._staging is not None and not waits:
            source = self._copying = self._writer.submit(self._staging.copy, tensors, work_so_far(tensors))
        # There is one thread: the write begins when the copy has come to its end.
        self._in_flight = step, self._writer.submit(self._write, step, source, copy.deepcopy(extra))
        if waits or self._staging is None:
            self.wait(trainer)

    def wait_for_copy(self) -> None:
        """Waits until the tensors of the last save are copied; how that went is a matter of the write.

        It is the host that waits, not a stream of the GPU: this does for tensors of any device, and before an update it
        costs a GPU nothing, as its queue is empty there: the host has just read whether the step is finite.
        """
        if self._copying is None:
            return
        before = POSITION.point
        mark("waits for a checkpoint to be copied")  # on all ranks, whether it still has to wait or not
        with self.timings.interruption("checkpoint_stall"):
            wait([self._copying])
        self._copying = None
        mark(before)

    def wait(self, trainer: pl.Trainer) -> None:
        """Waits for the checkpoint that is being written, if one is. Collective: all ranks must call.

        A full disk costs a run this checkpoint, not the run, unless it is the last one.

        Raises:
            SaveError: The disk refused the last checkpoint of the run; on all ranks.
            CheckpointError: It failed for another reason; on all ranks.
        """
        if self._in_flight is None:
            return
        mark("waits for a checkpoint to be written")
        step, write = self._in_flight
        self._in_flight = self._copying = None
        try:
            remark = write.result()
        except SaveError as error:
            if step == self.cadence.max_steps:
                raise
            remark = f"step {step}: {error} Training goes on without this checkpoint."
        if remark is not None and trainer.is_global_zero:
            self._say(remark)

    def _save_if_due(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        step = trainer.global_step
        if self.cadence.saves(step) or trainer.should_stop:
            self.timings.lap("train")
            self.save(trainer, pl_module, waits=step == self.cadence.max_steps or trainer.should_stop)
            self.timings.lap("checkpoint_stall")

    def _write(
        self, step: int, source: dict[str, Tensor] | Future[dict[str, Tensor]], extra: dict[str, Any]
    ) -> str | None:
        """Runs in the writer's thread; returns what is to be said. Collective: all ranks must call."""
        remarks: list[str] = []

        def record_and_prune() -> None:
            try:
                if self.run_folder is not None:
                    write_progress(self.run_folder, step)
            except OSError as error:
                remarks.append(f"{PROGRESS_FILE} could not be written ({error}). The next save retries.")
            try:
                self.retention.prune(self.folder)
            except (OSError, CheckpointError) as error:
                remarks.append(f"An old checkpoint could not be removed ({error}); the next save tries it again.")

        try:
            tensors = on_every_rank(source.result, self._group) if isinstance(source, Future) else source
            check_finite(tensors, self._group)
            write_checkpoint(self.folder, step, tensors, extra, self._group)
            on_first_rank(record_and_prune, self._group)
            logger.info("checkpoint of step %d is complete", step)
        finally:
            self.timings.end("checkpoint")
        return remarks[0] if remarks else None

    def _say(self, text: str) -> None:
        logger.warning(text)
        print_line(text, self.console)


def callback_states(trainer: pl.Trainer) -> dict[str, dict]:
    """What each callback wants to know again after a resume, by its class name."""
    states = {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {name: state for name, state in states.items() if state}
