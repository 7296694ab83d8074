"""Writes the error analysis of the last validation of a run, and draws its plots and report at the end."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.callbacks.early_stopping import EarlyStopping
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from framework.tracking.analysis.content import split_analysis, write_analysis
from framework.tracking.analysis.report import REPORT_FILE, draw_pictures, write_report
from framework.tracking.console import print_line


class ErrorAnalysis(pl.Callback):
    """Keeps the results of each row in a validation that may be the last one, so that no second pass is needed.

    Rank 0 writes `analysis/validation.json`. If writing fails, the run continues without the analysis. Tasks that
    predict no rows have no analysis.

    Args:
        run_folder: Run folder that the analysis is written into.
        tokenizer: Tokenizer that decodes the tokens of rows without a text.
        num_examples: Number of worst rows that are kept with their texts.
        goes_to_wandb: True if the run's W&B logger uploads the report and its tables.
        console: Console for the notice about texts and for write errors; None: standard output.
    """

    def __init__(
        self,
        run_folder: Path,
        tokenizer: Tokenizer,
        num_examples: int,
        goes_to_wandb: bool = False,
        console: Console | None = None,
    ) -> None:
        self.run_folder = run_folder
        self.tokenizer = tokenizer
        self.num_examples = num_examples
        self.goes_to_wandb = goes_to_wandb
        self.console = console

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Announces that validation texts appear in reports, and how to prevent it."""
        if trainer.is_global_zero and self.num_examples and pl_module.task.examines_splits and self._validates(trainer):
            targets = "report.html and the W&B run" if self.goes_to_wandb else "report.html"
            text = (
                f"texts: {targets} will show the texts of up to {self.num_examples} validation rows. Set "
                "trainer.report_examples=0 to leave texts out."
            )
            print_line(text, self.console)

    def _validates(self, trainer: pl.Trainer) -> bool:
        return "validation" in trainer.datamodule.plans  # type: ignore[attr-defined]

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Tells the module before its pass whether to keep the results of each row. All ranks decide alike."""
        stops_early = any(isinstance(each, EarlyStopping) and each.may_end_next for each in _callbacks(trainer))
        may_be_last = trainer.global_step >= trainer.max_steps or stops_early
        pl_module.examines = may_be_last and pl_module.task.examines_splits

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Writes the analysis and releases the kept results."""
        evaluation, pl_module.examined = pl_module.examined, None
        if evaluation is None or not trainer.is_global_zero:
            return
        is_average = pl_module.optimizer.keeps_average
        facts = {"weights": f"step {trainer.global_step:,}{', moving average' if is_average else ''}"}
        analysis = split_analysis(evaluation.examine(), facts, self.tokenizer, self.num_examples)
        try:
            write_analysis(self.run_folder, "validation", analysis)
        except OSError as error:
            text = f"{self.run_folder / 'analysis'} could not be written ({error})."
            print_line(text, self.console)


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]  # its connector sets them


class Pictures(pl.Callback):
    """Draws `plots/*.png` and report.html on rank 0 at the end of a run.

    If writing fails, the error is printed and the run ends as usual.
    """

    def __init__(self, run_folder: Path, console: Console | None = None) -> None:
        self.run_folder = run_folder
        self.console = console

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Draws the plots for which the run has rows, and writes the report."""
        if not trainer.is_global_zero:
            return
        for name, write in (("plots", draw_pictures), (REPORT_FILE, write_report)):
            try:
                write(self.run_folder)
            except (OSError, FrameworkError) as error:
                text = (
                    f"{self.run_folder / name} could not be written ({error}). Create it later with framework.report."
                )
                print_line(text, self.console)
