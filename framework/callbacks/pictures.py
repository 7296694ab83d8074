"""Draws the plots of a run when it ends."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

from pathlib import Path

import lightning.pytorch as pl
from typing_extensions import override

from framework.modules.encoder_module import EncoderModule
from framework.tracking.plots import draw_plots


class Pictures(pl.Callback):
    """Draws `plots/*.png` on rank 0 at the end of a run."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Draws what the run's files have rows for."""
        if trainer.is_global_zero:
            draw_plots(self.run_folder, self.run_folder.name)
