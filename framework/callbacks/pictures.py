"""Draws the plots of a run and its report when it ends."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from framework.tracking.analysis.report import REPORT_FILE, draw_pictures, write_report
from framework.tracking.console import open_console


class Pictures(pl.Callback):
    """Draws `plots/*.png` and report.html on rank 0 at the end of a run.

    A disk that refuses them costs the pictures, not the run.
    """

    def __init__(self, run_folder: Path, console: Console | None = None) -> None:
        self.run_folder = run_folder
        self.console = console or open_console()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Draws what the run's files have rows for."""
        if not trainer.is_global_zero:
            return
        for name, write in (("plots", draw_pictures), (REPORT_FILE, write_report)):
            try:
                write(self.run_folder)
            except (OSError, FrameworkError) as error:
                text = f"{self.run_folder / name} could not be written ({error}). Make it with framework.report."
                self.console.print(text, highlight=False, markup=False, soft_wrap=True)
