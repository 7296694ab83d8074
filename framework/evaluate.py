"""Metrics of a run, checkpoint or export on a split: `python -m framework.evaluate run=RUN split=test`.

The same under torchrun, where processes share the split.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.build import build_data_component
from framework.config.command import command, plain
from framework.config.command_schema import EvaluateConfig
from framework.config.nodes import check_arguments
from framework.config.trained import Trained, open_inference, open_trained
from framework.data.fact_warnings import warnings_of
from framework.data.facts import facts_of
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError
from framework.tracking.analysis.content import split_analysis, write_analysis
from framework.tracking.analysis.report import draw_pictures, write_report
from framework.tracking.console import open_console
from framework.tracking.metric_names import describe

logger = logging.getLogger(__name__)

_SHOWN_OF_FINGERPRINT = 8


@command("evaluate")
def evaluate(composed: DictConfig) -> None:
    """Evaluates one split, prints its metrics and a table of its classes, and adds it to the report of the run."""
    config = plain(composed, EvaluateConfig)
    settings = EvaluateConfig(**check_arguments("", config | {"data": config["data"] or None}, EvaluateConfig))
    trained = open_trained(settings, settings.task)
    data = settings.data or trained.data
    if data is None:
        raise ConfigError(
            f"run={settings.run} is an export, which brings no data; choose some, for example data=table "
            "data.train=FILE."
        )
    sources = trained.task.build_sources(build_data_component(trained.task, data), trained.tokenizer, seed=0)
    if settings.split not in sources:
        raise ConfigError(
            f"split={settings.split} is not there, the data has {', '.join(sources)}; choose one of these."
        )
    source = sources[settings.split]
    with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
        folder = report_folder(settings, trained)
        values, evaluation = inference.evaluate(source, trained.step_size, examines=folder is not None)
    if process_info().rank > 0:
        return
    for warning in warnings_of(facts_of({settings.split: source})):
        logger.warning(warning)
    classes = evaluation.class_table()
    facts = {"weights": told_weights(settings, trained)}
    if settings.task:
        facts["task"] = json.dumps(settings.task, ensure_ascii=False)
    if settings.output is not None:
        report = {"run": settings.run, "split": settings.split, **facts, "metrics": values, "classes": classes}
        Path(settings.output).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console = open_console()
    console.print(f"[bold]{settings.run}[/bold] on {settings.split}, {len(source):,} sequences")
    console.print(metric_table(values))
    if classes:
        console.print(class_table(classes))
    if folder is not None:
        analysis = split_analysis(evaluation.examine(), facts, trained.tokenizer, settings.report_examples)
        is_own = settings.data is None or trained.data_record is None
        name = settings.split if is_own else f"{settings.split}_{source.fingerprint[:_SHOWN_OF_FINGERPRINT]}"
        console.print(add_to_report(folder, name, analysis), highlight=False, markup=False, soft_wrap=True)


def report_folder(settings: EvaluateConfig, trained: Trained) -> Path | None:
    """The folder whose report gets this split: the run's, or for an export one beside `output`; None: there is none."""
    if not settings.report or not trained.task.examines_splits:
        return None
    if trained.folder is not None or settings.output is None:
        return trained.folder
    output = Path(settings.output)
    return output.with_name(f"{output.stem}_report")


def told_weights(settings: EvaluateConfig, trained: Trained) -> str:
    """Which weights were evaluated, in words."""
    if trained.folder is None:
        return trained.weights.source
    mean = f", mean of {settings.average_last} checkpoints" if settings.average_last > 1 else ""
    return f"{trained.weights.source.rstrip('/').rpartition('/')[2]}, {settings.weights}{mean}"


def add_to_report(folder: Path, name: str, analysis: Mapping[str, Any]) -> str:
    """Keeps an analysis and draws the report of its folder again; returns the line that says so, or that it failed."""
    try:
        write_analysis(folder, name, analysis)
        draw_pictures(folder)
        return f"report      {write_report(folder)}"
    except OSError as error:
        return f"the report in {folder} could not be written: the disk refused ({error})."


def metric_table(values: dict[str, float]) -> Table:
    """Loss terms and metrics, one a row."""
    table = Table("metric", show_header=True)
    table.add_column("value", justify="right")
    for name, value in values.items():
        table.add_row(describe(f"val/{name}").label, f"{value:.4f}")
    return table


def class_table(classes: list[dict[str, object]]) -> Table:
    """One row a class, columns as the task names them."""
    table = Table()
    for place, name in enumerate(classes[0]):
        table.add_column(name, justify="right" if place else "left")
    for row in classes:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    evaluate()
