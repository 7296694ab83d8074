"""Restores a run from its checkpoint."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.callbacks.checkpointing import SCHEDULE, TERM_WEIGHTS
from framework.callbacks.run_log import RunLog
from framework.checkpoint.integrity import Verify
from framework.checkpoint.layout import mark_damaged
from framework.checkpoint.load import Loaded, load_checkpoint, load_newest_intact
from framework.checkpoint.storage import Location
from framework.distributed.processes.agreement import on_first_rank
from framework.errors import CheckpointError
from framework.modules.encoder_module import EncoderModule
from framework.modules.resume import set_progress
from framework.tracking.console import print_line
from framework.tracking.metrics_jsonl import METRICS_FILE
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)


@dataclass(frozen=True)
class PhaseBegin:
    """Begin of a phase that follows another one in the same run.

    Attributes:
        name: Name of the phase.
        first_step: Steps of the run before the phase.
        resets_optimizer: True: the optimizer's state, except a moving average of the weights, begins anew.
    """

    name: str
    first_step: int
    resets_optimizer: bool


class Resume(pl.Callback):
    """Loads weights, optimizer and counters before the loop starts. It must be the first callback."""

    def __init__(
        self,
        checkpoint: Location,
        own_checkpoints: Location,
        verify: Verify = "checksums",
        falls_back: bool = True,
        accepts_missing_rows: bool = False,
        begins: PhaseBegin | None = None,
        console: Console | None = None,
    ) -> None:
        """Creates the callback.

        Args:
            checkpoint: A complete checkpoint folder.
            own_checkpoints: Folder of the run's checkpoints. Damaged ones in it are marked, because the run will
                write them again.
            verify: Extent of the comparison of files with their record.
            falls_back: True: instead of a damaged checkpoint the previous one is used; False: it is an error.
            accepts_missing_rows: Report rows of metrics.jsonl that are missing before the checkpoint; otherwise they
                are an error.
            begins: Phase that begins with the checkpoint of its first step; None: the run has no phases, or its first
                phase is trained.
            console: Console that shows the checkpoint resumed from; None: standard output.
        """
        self.checkpoint = checkpoint
        self.own_checkpoints = own_checkpoints
        self.verify = verify
        self.falls_back = falls_back
        self.accepts_missing_rows = accepts_missing_rows
        self.begins = begins
        self.console = console

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Restores everything. Collective: all ranks must call.

        Raises:
            CheckpointError: No checkpoint is usable, or rows of metrics.jsonl are missing; raised on all ranks.
        """
        loaded = load_undamaged(
            self.checkpoint, self.own_checkpoints, pl_module, self.verify, self.falls_back, self.console
        )
        state = loaded.state
        runner = pl_module.runner
        runner.num_tokens = state["tokens"]
        if runner.loss_scale is not None and "loss_scale" in state:
            runner.loss_scale.load_state_dict(state["loss_scale"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if type(callback).__name__ in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][type(callback).__name__])
            if isinstance(callback, RunLog) and _is_in(self.own_checkpoints, loaded.folder):
                self._check_rows(callback, state, loaded.folder)
        resumed = f"Resuming from step {state['step']:,} of {trainer.max_steps:,} ({loaded.folder})."
        if self.begins is not None and state["step"] == self.begins.first_step:
            resumed = f"Phase {self.begins.name} begins with step {state['step'] + 1:,} and ends after step "
            resumed += f"{trainer.max_steps:,}."
            if self.begins.resets_optimizer:
                resumed += " The optimizer begins without state."
                pl_module.optimizer.reset_state()
        if trainer.is_global_zero:
            self._report(resumed)
            self._report_schedule(trainer, pl_module, state)
        else:
            logger.info(resumed)
        set_progress(trainer, state["step"])
        trainer.datamodule.set_start(state["step"])  # type: ignore[attr-defined]

    def _check_rows(self, run_log: RunLog, state: Mapping[str, Any], folder: Location) -> None:
        """Compares the rows of the run with the record of its checkpoint. Collective: all ranks must call."""

        def check() -> None:
            records = state["callbacks"].get(RunLog.__name__, {})  # earlier versions wrote none
            problems = run_log.row_problems(records, state["step"])
            if METRICS_FILE in problems and not self.accepts_missing_rows:
                raise CheckpointError(
                    f"{problems[METRICS_FILE]} ({folder.name} records count and hash). A resumed run needs all its "
                    "rows. Restore the file, or set run.missing=accept to continue with the remaining rows."
                )
            for problem in problems.values():
                self._report(f"{problem}. Training continues with the remaining rows.")

        on_first_rank(check)

    def _report_schedule(self, trainer: pl.Trainer, pl_module: EncoderModule, state: Mapping[str, Any]) -> None:
        """Reports how the learning rate changes if the schedule differs from the checkpoint's."""
        step, before = state["step"], state.get(SCHEDULE)
        if self.begins is not None and step == self.begins.first_step:
            return
        factor = pl_module.runner.schedule(step)
        if before is None or step >= trainer.max_steps or math.isclose(before["next_factor"], factor, rel_tol=1e-9):
            return
        rate = pl_module.optimizer.param_groups[0]["initial_lr"]
        self._report(
            f"The schedule has changed: trainer.max_steps was {before['max_steps']:,} and is {trainer.max_steps:,}. "
            f"The learning rate changes from {rate * before['factor']:.3g} at step {step:,} to {rate * factor:.3g} at "
            f"step {step + 1:,}."
        )

    def _report(self, text: str) -> None:
        logger.info(text)
        print_line(text, self.console)


def _is_in(checkpoints: Location, folder: Location) -> bool:
    return folder.parent.resolve() == checkpoints.resolve()


def load_undamaged(
    newest: Location,
    own_checkpoints: Location,
    pl_module: EncoderModule,
    verify: Verify,
    falls_back: bool,
    console: Console | None,
) -> Loaded[dict[str, Any]]:
    """Loads weights, optimizer and weights of loss terms of a checkpoint; if it is damaged, of an older one.

    Collective: all ranks must call.

    Args:
        newest: Checkpoint to load.
        own_checkpoints: Folder of the run's checkpoints. Damaged ones in it are marked, because the run will write
            them again.
        pl_module: Module that receives the values.
        verify: Extent of the comparison of files with their record.
        falls_back: False if exactly this checkpoint is required.
        console: Console for the message about a replaced checkpoint; None: standard output.

    Raises:
        DamagedError: The checkpoint is damaged, and `falls_back` is False.
        CheckpointError: All checkpoints are damaged, or an undamaged one is of another model or optimizer.
    """
    model, optimizer = pl_module.model, pl_module.optimizer
    loaded = load_newest_intact(newest, lambda folder: load_checkpoint(folder, model, optimizer, verify), falls_back)

    if pl_module.runner.term_weights is not None and TERM_WEIGHTS in loaded.state:
        pl_module.runner.term_weights.load_state_dict(loaded.state[TERM_WEIGHTS])

    def report_damage() -> None:
        logger.warning("checkpoint: %s", loaded.damage_message)
        print_line(f"checkpoint: {loaded.damage_message}", console)
        for folder in loaded.damaged:
            if _is_in(own_checkpoints, folder):
                mark_damaged(folder)

    if loaded.damaged:
        on_first_rank(report_damage)
    return loaded
