"""One line at the start of a run that begins from other weights: which of them its head has, and which are new."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import open_console


class WeightsLine(pl.Callback):
    """Shows the line on rank 0, before what draws a bar."""

    def __init__(self, text: str, console: Console | None = None) -> None:
        """Takes what is shown.

        Args:
            text: The line.
            console: Where to write; None: standard output.
        """
        self.text = text
        self.console = console or open_console()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Writes the line."""
        if trainer.is_global_zero:
            self.console.print(self.text, highlight=False, markup=False, soft_wrap=True)
