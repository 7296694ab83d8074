"""Puts a run back to where its checkpoint was written."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import logging
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.checkpoint.integrity import Verify
from framework.checkpoint.layout import set_aside
from framework.checkpoint.load import Loaded, load_checkpoint, newest_whole
from framework.checkpoint.storage import Location
from framework.distributed.processes.agreement import on_first_rank
from framework.modules.encoder_module import EncoderModule
from framework.modules.resume import set_progress
from framework.tracking.console import open_console
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)


class Resume(pl.Callback):
    """Loads weights, optimizer and counters before the loop starts. Stands first."""

    def __init__(
        self,
        checkpoint: Location,
        own_checkpoints: Location,
        verify: Verify = "checksums",
        falls_back: bool = True,
        console: Console | None = None,
    ) -> None:
        """Takes where to go on from.

        Args:
            checkpoint: A complete checkpoint folder.
            own_checkpoints: Folder of the run's checkpoints; damaged ones there are set aside, as the run will write
                them again.
            verify: What of the files is compared with what was written.
            falls_back: Where the checkpoint is damaged, the one before it is used; else it is an error.
            console: Where to say that another checkpoint is used; None: standard output.
        """
        self.checkpoint = checkpoint
        self.own_checkpoints = own_checkpoints
        self.verify = verify
        self.falls_back = falls_back
        self.console = console or open_console()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Restores everything. Collective: all ranks must call."""
        loaded = load_whole(
            self.checkpoint, self.own_checkpoints, pl_module, self.verify, self.falls_back, self.console
        )
        state = loaded.state
        pl_module.num_tokens = state["tokens"]
        if pl_module.loss_scale is not None and "loss_scale" in state:
            pl_module.loss_scale.load_state_dict(state["loss_scale"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if type(callback).__name__ in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][type(callback).__name__])
        logger.info("resumes from %s", loaded.folder)
        set_progress(trainer, state["step"])
        trainer.datamodule.set_start(state["step"])  # type: ignore[attr-defined]


def load_whole(
    newest: Location,
    own_checkpoints: Location,
    pl_module: EncoderModule,
    verify: Verify,
    falls_back: bool,
    console: Console,
) -> Loaded[dict[str, Any]]:
    """Loads weights and optimizer of a checkpoint or, where it is damaged, of an older one, and says so.

    Collective: all ranks must call.

    Args:
        newest: To be used if it is whole.
        own_checkpoints: Folder of the run's checkpoints; damaged ones there are set aside, as the run will write them
            again.
        pl_module: Gets the values.
        verify: What of the files is compared with what was written.
        falls_back: False where this very checkpoint was asked for.
        console: Where to say that another checkpoint is used.

    Raises:
        DamagedError: It is damaged, and no other may take its place.
        CheckpointError: None is whole, or one that is whole is of another model or optimizer.
    """
    model, optimizer = pl_module.model, pl_module.optimizer
    loaded = newest_whole(newest, lambda folder: load_checkpoint(folder, model, optimizer, verify), falls_back)

    def pass_over() -> None:
        logger.warning("checkpoint: %s", loaded.remark)
        console.print(f"checkpoint: {loaded.remark}", highlight=False, markup=False, soft_wrap=True)
        for folder in loaded.damaged:
            if folder.parent.resolve() == own_checkpoints.resolve():
                set_aside(folder)

    if loaded.damaged:
        on_first_rank(pass_over)
    return loaded
