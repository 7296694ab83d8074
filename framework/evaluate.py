"""Evaluates a run, checkpoint or export on a split: `python -m framework.evaluate run=RUN split=test`.

The same command runs under torchrun, where processes share the split.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.evaluate")  # imports this module, and so all of the below, when the config is composed

import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

import framework.distributed.processes.early_check  # must come before Lightning
import framework.metrics.import_torchmetrics  # noqa: F401  must come before Lightning
from framework.config.command import command
from framework.config.command_schema import EvaluateConfig
from framework.config.dry_check import print_check
from framework.config.outputs import open_output, write_to_stdout
from framework.data.fact_warnings import warnings_of
from framework.data.facts import facts_of, without_texts
from framework.distributed.processes.environment import process_info
from framework.modules.evaluation import SplitEvaluation
from framework.modules.explanations.split_explanations import explain_split
from framework.modules.inference import Inference
from framework.runs.evaluation_data import describe_weights, open_split, read_data_settings
from framework.runs.trained import Trained, describe_trained, open_inference, open_model
from framework.tasks.explained_split import SplitExplanations
from framework.tracking.analysis.content import split_analysis, worst_rows, write_analysis
from framework.tracking.analysis.explanations import EXPLANATIONS, explanation_values
from framework.tracking.analysis.report import draw_pictures, write_report
from framework.tracking.console import open_console, print_line
from framework.tracking.metric_names import describe

logger = logging.getLogger(__name__)

_FINGERPRINT_CHARACTERS = 8
"""Characters of a data fingerprint in the name of an analysis."""


@command("evaluate")
def evaluate(composed: DictConfig) -> dict[str, float]:
    """Evaluates one split, prints its metrics and a table of its classes, and adds it to the report of the run.

    Returns:
        Metrics by name; empty under `check`.
    """
    settings, split, changes = read_data_settings(composed, EvaluateConfig)
    is_first = process_info().rank == 0
    with open_output(settings.output) if is_first and settings.output is not None else nullcontext() as write:
        trained = open_model(settings, settings.task)
        source = open_split(trained, settings.run, settings.data, split, changes)
        if settings.check:
            if is_first:
                print_check([*describe_trained(trained), (f"{split} split", f"{len(source):,} sequences")])
            return {}
        with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
            folder = report_folder(settings, trained)
            values, evaluation = inference.evaluate(source, trained.step_size, examines=folder is not None)
            explained = None if folder is None else explain(settings, trained, inference, evaluation)
        if not is_first:
            return values
        data_facts = facts_of({split: source})
        for warning in warnings_of(data_facts if settings.report_examples else without_texts(data_facts)):
            logger.warning(warning)
        classes = evaluation.class_table()
        facts = {"weights": describe_weights(settings, trained)}
        if settings.task:
            facts["task"] = json.dumps(settings.task, ensure_ascii=False)
        if write is not None:
            report = {"run": settings.run, "split": split, **facts, "metrics": values, "classes": classes}
            write([json.dumps(report, indent=2, ensure_ascii=False) + "\n"])
    console = open_console()
    with console.capture() as printed:
        console.print(f"[bold]{settings.run}[/bold] on {split}, {len(source):,} sequences")
        console.print(metric_table(values))
        if classes:
            console.print(class_table(classes))
        if folder is not None:
            analysis = split_analysis(evaluation.examine(), facts, trained.tokenizer, settings.report_examples)
            if explained is not None:
                shows_texts = settings.report_examples > 0
                explanations = explanation_values(explained, analysis["examples"], trained.tokenizer, shows_texts)
                analysis |= {EXPLANATIONS: explanations}
            is_own = not changes and (settings.data is None or trained.data_record is None)
            name = split if is_own else f"{split}_{source.fingerprint[:_FINGERPRINT_CHARACTERS]}"
            print_line(add_to_report(folder, name, analysis), console)
    write_to_stdout([printed.get()])
    return values


run = evaluate.run


def explain(
    settings: EvaluateConfig, trained: Trained, inference: Inference, evaluation: SplitEvaluation
) -> SplitExplanations | str | None:
    """Explains rows of the split for the report. Collective: all ranks must call.

    Returns:
        The explanations, or the reason for which there are none; None if the report shows nothing about them.
    """
    if not settings.report_explanations or not trained.task.explains_predictions:
        return None
    rows = worst_rows(evaluation.examine().examination.rows)[: settings.report_examples]
    shows_texts = settings.report_examples > 0
    return explain_split(inference, trained.tokenizer, evaluation, rows, settings.report_explanations, shows_texts)


def report_folder(settings: EvaluateConfig, trained: Trained) -> Path | None:
    """Returns the folder of the report to extend: the run folder, or for an export a folder next to `output`.

    None means that no report is written.
    """
    if not settings.report or not trained.task.examines_splits:
        return None
    if trained.folder is not None or settings.output is None:
        return trained.folder
    output = Path(settings.output)
    return output.with_name(f"{output.stem}_report")


def add_to_report(folder: Path, name: str, analysis: Mapping[str, Any]) -> str:
    """Saves an analysis and redraws the report of its folder; returns a line with the report's path or the failure."""
    try:
        write_analysis(folder, name, analysis)
        draw_pictures(folder)
        return f"report      {write_report(folder)}"
    except OSError as error:
        return f"the report in {folder} could not be written: the disk refused ({error})."


def metric_table(values: dict[str, float]) -> Table:
    """Builds a table with one row per loss term or metric."""
    table = Table("metric", show_header=True)
    table.add_column("value", justify="right")
    for name, value in values.items():
        table.add_row(describe(f"val/{name}").label, f"{value:.4f}")
    return table


def class_table(classes: list[dict[str, object]]) -> Table:
    """Builds a table with one row per class and the columns of the task."""
    table = Table()
    for index, name in enumerate(classes[0]):
        table.add_column(name, justify="right" if index else "left")
    for row in classes:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table
