"""Puts a run back to where its checkpoint was written."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.checkpoint.integrity import Verify
from framework.checkpoint.layout import set_aside
from framework.checkpoint.load import Loaded, load_newest_whole
from framework.distributed.agreement import on_first_rank
from framework.modules.encoder_module import EncoderModule
from framework.modules.resume import set_progress


class Resume(pl.Callback):
    """Loads weights, optimizer and counters before the loop starts. Stands first."""

    def __init__(
        self, checkpoint: Path, own_checkpoints: Path, verify: Verify = "sizes", console: Console | None = None
    ) -> None:
        """Takes where to go on from.

        Args:
            checkpoint: A complete checkpoint folder; where it is damaged, the one before it is used.
            own_checkpoints: The run's `checkpoints/`; damaged ones there are set aside, as the run will write them
                again.
            verify: What of the files is compared with what was written.
            console: Where to say that another checkpoint is used; None: standard output.
        """
        self.checkpoint = checkpoint
        self.own_checkpoints = own_checkpoints
        self.verify = verify
        self.console = console or Console()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Restores everything. Collective: all ranks must call."""
        loaded = load_newest_whole(self.checkpoint, pl_module.model, pl_module.optimizer, self.verify)
        if loaded.damaged:
            on_first_rank(lambda: self._pass_over(loaded))
        state = loaded.state
        pl_module.num_tokens = state["tokens"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if type(callback).__name__ in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][type(callback).__name__])
        set_progress(trainer, state["step"])
        trainer.datamodule.set_start(state["step"])  # type: ignore[attr-defined]

    def _pass_over(self, loaded: Loaded) -> None:
        reasons = "; ".join(f"{folder.name} is damaged ({reason})" for folder, reason in loaded.damaged.items())
        self.console.print(
            f"resume: {reasons}; {loaded.folder.name} is used instead", highlight=False, markup=False, soft_wrap=True
        )
        for folder in loaded.damaged:
            if folder.parent.resolve() == self.own_checkpoints.resolve():
                set_aside(folder)
