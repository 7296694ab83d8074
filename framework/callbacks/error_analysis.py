"""Writes the error analysis of the last validation of a run with explanations, and draws its plots and report."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from torch.distributed.device_mesh import DeviceMesh
from typing_extensions import override

from framework.callbacks.early_stopping import EarlyStopping
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import TENSOR
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from framework.modules.evaluation import SplitEvaluation
from framework.modules.explanations.split_explanations import explain_split
from framework.modules.inference import Inference
from framework.tasks.examination import ExaminedSplit
from framework.tasks.explained_split import SplitExplanations
from framework.tracking.analysis.content import split_analysis, worst_rows, write_analysis
from framework.tracking.analysis.explanations import EXPLANATIONS, explanation_values
from framework.tracking.analysis.report import REPORT_FILE, draw_pictures, write_report
from framework.tracking.console import print_line

_MOST_TOKENS = 4096
"""Tokens of a micro-batch of explanations. Captured training steps may hold most of the memory of the device."""


@dataclass
class _Analysed:
    """Analysis of a validation that may be the last one.

    Attributes:
        step: Step of the validation.
        evaluation: Evaluation with the data of its items.
        split: Examined split.
        analysis: Analysis that was written.
    """

    step: int
    evaluation: SplitEvaluation
    split: ExaminedSplit
    analysis: dict[str, Any]


class ErrorAnalysis(pl.Callback):
    """Keeps the results of each row in a validation that may be the last one, so that no second pass is needed.

    Rank 0 writes `analysis/validation.json`. At the end of the run all ranks explain rows of this validation, and rank
    0 adds the explanations. Weights, metrics and random numbers do not change. If writing fails, the run continues
    without the analysis. Tasks that predict no rows have no analysis.

    Args:
        run_folder: Run folder that the analysis is written into.
        tokenizer: Tokenizer that decodes the tokens of rows without a text.
        num_examples: Number of worst rows that are kept with their texts.
        goes_to_wandb: True if the run's W&B logger uploads the report and its tables.
        console: Console for the notice about texts and for write errors; None: standard output.
        num_explanations: Number of evenly spaced rows that are explained in addition to the worst rows; 0: no
            explanations.
    """

    def __init__(
        self,
        run_folder: Path,
        tokenizer: Tokenizer,
        num_examples: int,
        goes_to_wandb: bool = False,
        console: Console | None = None,
        num_explanations: int = 0,
    ) -> None:
        self.run_folder = run_folder
        self.tokenizer = tokenizer
        self.num_examples = num_examples
        self.goes_to_wandb = goes_to_wandb
        self.console = console
        self.num_explanations = num_explanations
        self._last: _Analysed | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Announces that validation texts appear in reports, and how to prevent it."""
        if trainer.is_global_zero and self.num_examples and pl_module.task.examines_splits and self._validates(trainer):
            targets = "report.html and the W&B run" if self.goes_to_wandb else "report.html"
            words = ""
            if self.num_explanations and pl_module.task.explains_predictions:
                words = f" and words of up to {self.num_explanations} others"
            shown = "texts and pictures" if pl_module.task.patch_size else "texts"
            text = (
                f"texts: {targets} will show the {shown} of up to {self.num_examples} validation rows{words}. Set "
                f"trainer.report_examples=0 to leave {shown} out."
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
        """Writes the analysis. Its results are released if the run continues or explains nothing."""
        evaluation, pl_module.examined = pl_module.examined, None
        self._last = None
        explains = self.num_explanations > 0 and pl_module.task.explains_predictions
        if evaluation is None or not (trainer.is_global_zero or explains):
            return
        is_average = pl_module.optimizer.keeps_average
        facts = {"weights": f"step {trainer.global_step:,}{', moving average' if is_average else ''}"}
        split = evaluation.examine()
        analysis = split_analysis(split, facts, self.tokenizer, self.num_examples)
        if explains:
            self._last = _Analysed(trainer.global_step, evaluation, split, analysis)
        if trainer.is_global_zero:
            self._write(analysis)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Explains rows of the last validation, unless the run was stopped. Collective: all ranks must call.

        The run is saved by then. Validations compute no gradients, so this does not happen in their hook.
        """
        last, self._last = self._last, None
        stopped_early = any(
            isinstance(each, EarlyStopping) and each.why is not None and not each.is_pruned
            for each in _callbacks(trainer)
        )
        if last is None or last.step != trainer.global_step:
            return
        if not (stopped_early or trainer.global_step >= trainer.max_steps):
            return
        explanations = self._explain(trainer, pl_module, last)
        if trainer.is_global_zero:
            values = explanation_values(
                explanations, last.analysis["examples"], self.tokenizer, shows_texts=self.num_examples > 0
            )
            self._write(last.analysis | {EXPLANATIONS: values})

    def _explain(self, trainer: pl.Trainer, module: EncoderModule, last: _Analysed) -> SplitExplanations | str:
        mesh: DeviceMesh | None = trainer.strategy.mesh  # type: ignore[attr-defined]
        reason = _reason_against(module, mesh)
        if reason is not None:
            return f"{reason} `python -m framework.evaluate run={self.run_folder}` adds explanations."
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        inference = Inference(
            module.model,
            module.task,
            min(data.plans["train"].micro_batch_tokens, _MOST_TOKENS),
            module.precision,
            module.device,
            data.rank,
            mesh,
        )
        rows = worst_rows(last.split.examination.rows)[: self.num_examples]
        if trainer.is_global_zero:
            most = self.num_explanations + len(rows)
            text = f"explains up to {most} rows for report.html (trainer.report_explanations)"
            print_line(text, self.console)
        with module.validated_weights(), torch.compiler.set_stance("force_eager"):
            return explain_split(
                inference, self.tokenizer, last.evaluation, rows, self.num_explanations, self.num_examples > 0
            )

    def _write(self, analysis: dict[str, Any]) -> None:
        try:
            write_analysis(self.run_folder, "validation", analysis)
        except OSError as error:
            text = f"{self.run_folder / 'analysis'} could not be written ({error})."
            print_line(text, self.console)


def _reason_against(module: EncoderModule, mesh: DeviceMesh | None) -> str | None:
    """Returns the reason for which the model of a run cannot be explained while it is parallelized; None: it can."""
    if mesh is not None and TENSOR in (mesh.mesh_dim_names or ()):
        return "Tensor parallelism splits the heads and the words of the model over ranks."
    if module.precision.name == "float8":
        return "Training in float8 is too coarse for the gradients of words."
    return None


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
