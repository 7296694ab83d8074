"""Metrics of a run, checkpoint or export on a split: `python -m framework.evaluate run=RUN split=test`.

The same under torchrun, where processes share the split.
"""

import json
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from framework.config.build import build_data_component
from framework.config.command import command, plain
from framework.config.command_schema import EvaluateConfig
from framework.config.nodes import check_arguments
from framework.config.trained import open_inference, open_trained
from framework.distributed.environment import process_info
from framework.errors import ConfigError
from framework.tracking.metric_names import describe


@command("evaluate")
def evaluate(composed: DictConfig) -> None:
    """Evaluates one split and prints its metrics, and a table of the classes where the task has classes."""
    config = plain(composed)
    settings = EvaluateConfig(**check_arguments("", config | {"data": config["data"] or None}, EvaluateConfig))
    trained = open_trained(settings)
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
        values, evaluation = inference.evaluate(source, trained.step_size)
    if process_info().rank > 0:
        return
    classes = evaluation.class_table()
    if settings.output is not None:
        report = {"run": settings.run, "split": settings.split, "metrics": values, "classes": classes}
        Path(settings.output).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console = Console()
    console.print(f"[bold]{settings.run}[/bold] on {settings.split}, {len(source):,} sequences")
    console.print(metric_table(values))
    if classes:
        console.print(class_table(classes))


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
