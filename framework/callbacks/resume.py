"""Puts a run back to where its checkpoint was written."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

from pathlib import Path

import lightning.pytorch as pl
from typing_extensions import override

from framework.checkpoint.load import load_checkpoint
from framework.modules.encoder_module import EncoderModule
from framework.modules.resume import set_progress


class Resume(pl.Callback):
    """Loads weights, optimizer and counters before the loop starts. Stands first."""

    def __init__(self, checkpoint: Path) -> None:
        """Takes a complete checkpoint folder."""
        self.checkpoint = checkpoint

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Restores everything. Collective: all ranks must call."""
        state = load_checkpoint(self.checkpoint, pl_module.model, pl_module.optimizer)
        pl_module.num_tokens = state["tokens"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if type(callback).__name__ in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][type(callback).__name__])
        set_progress(trainer, state["step"])
        trainer.datamodule.set_start(state["step"])  # type: ignore[attr-defined]
