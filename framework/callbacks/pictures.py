"""Draws the plots of a run when it ends."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.modules.encoder_module import EncoderModule
from framework.tracking.plots import draw_plots


class Pictures(pl.Callback):
    """Draws `plots/*.png` on rank 0 at the end of a run. A disk that refuses them costs the pictures, not the run."""

    def __init__(self, run_folder: Path, console: Console | None = None) -> None:
        self.run_folder = run_folder
        self.console = console or Console()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Draws what the run's files have rows for."""
        if not trainer.is_global_zero:
            return
        try:
            draw_plots(self.run_folder, self.run_folder.name)
        except OSError as error:
            text = f"{self.run_folder / 'plots'} could not be written: the disk refused ({error})."
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
