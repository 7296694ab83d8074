"""Explains predictions by their words: `python -m framework.explain run=RUN input=FILE output=FILE.jsonl`.

The same command runs under torchrun, where processes share the rows.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.explain")  # imports this module, and so all of the below, when the config is composed

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command
from framework.config.command_schema import ExplainConfig
from framework.config.dry_check import print_check
from framework.config.explained_rows import coloured, explanation
from framework.config.input_rows import InputRow, join_rows, read_input_rows, read_settings, report_bad_rows
from framework.config.outputs import open_output, write_to_stdout
from framework.config.prediction_files import find_writer, write_rows
from framework.config.trained import Trained, describe_trained, open_inference, open_trained
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError
from framework.modules.attribution import Explained, attribute
from framework.tasks.task import Task
from framework.tracking.console import open_console

PREDICTED, ALL = "label", "all"
"""Values of `explain` that are not names of labels."""

_LARGEST_ERROR = 0.01
"""Completeness error above which a row is reported."""


@command("explain")
def explain(composed: DictConfig) -> list[dict[str, Any]]:
    """Explains the prediction of every row, writes the rows in the order of the input, and returns them.

    Under `check` it only checks, and returns no rows.
    """
    settings = read_settings(composed, ExplainConfig)
    is_first = process_info().rank == 0
    with open_output(settings.output) if is_first else nullcontext() as write:
        trained = open_trained(settings, settings.task)
        names = chosen_names(trained.task, settings.explain)
        writer = find_writer(settings.output, None)
        inputs = read_input_rows(settings, trained.task, trained.tokenizer, trained.file_layout)
        if settings.check:
            if is_first:
                print_check([*describe_trained(trained), ("rows", f"{len(inputs):,}")])
            return []
        rows, texts = explained_rows(settings, trained, names, inputs)
        if write is None:
            return rows
        console = open_console()
        if settings.output is None and settings.text is not None and console.is_terminal:
            with console.capture() as printed:
                for row, values in zip(rows, texts, strict=True):
                    console.print(coloured(row, values))
            write_to_stdout([printed.get()])
        else:
            write_rows(write, writer, rows)
    report_bad_rows(inputs)
    report_errors(rows)
    return rows


run = explain.run


def chosen_names(task: Task, choice: str) -> list[str | None]:
    """Returns the names of the scores to explain for each row; None stands for the prediction.

    Raises:
        ConfigError: The task has no scores to explain, or no label of this name.
    """
    if not task.explains_predictions:
        task.explained({}, None)  # raises the error of the task
    if choice == PREDICTED:
        return [None]
    if choice == ALL:
        return list(task.explained_labels)
    if choice not in task.explained_labels:
        raise ConfigError(
            f"`explain` is {choice!r}, which is no label of this run. Choose {PREDICTED}, {ALL} or one of "
            f"{', '.join(task.explained_labels)}."
        )
    return [choice]


def explained_rows(
    settings: ExplainConfig, trained: Trained, names: Sequence[str | None], inputs: Sequence[InputRow]
) -> tuple[list[dict[str, Any]], list[Mapping[str, str]]]:
    """Predicts and explains rows. Collective: all ranks must call.

    Args:
        settings: Settings of the command.
        trained: Model.
        names: Scores to explain for each row, from `chosen_names`.
        inputs: Rows.

    Returns:
        One output row for each explained score, and the texts of each by field.
    """
    task, tokenizer = trained.task, trained.tokenizer
    given = [each.row for each in inputs if each.row is not None]
    source = task.build_source(given, tokenizer)
    with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
        predictions = inference.predict(source)
        chosen = [[pair for name in names for pair in task.explained(prediction, name)] for prediction in predictions]
        scores = [Explained(item, target) for item, pairs in enumerate(chosen) for _, target in pairs]
        attributions = iter(attribute(inference, tokenizer, source, scores, settings.method, settings.steps))
    texts = [task.explained_texts(row.values) for row in given]
    explained = [
        [explanation(name, next(attributions), texts[item], tokenizer) for name, _ in pairs]
        for item, pairs in enumerate(chosen)
    ]
    repeated: list[InputRow] = []
    joined: list[dict[str, Any]] = []
    shown: list[Mapping[str, str]] = []
    items = iter(range(len(given)))
    for each in inputs:
        if each.row is None:
            repeated.append(each)
            continue
        item = next(items)
        repeated += [each] * len(explained[item])
        joined += [predictions[item] | row for row in explained[item]]
        shown += [texts[item]] * len(explained[item])
    return join_rows(repeated, joined), shown


def report_errors(rows: Sequence[Mapping[str, Any]]) -> None:
    """Reports on standard error how many explanations are inexact."""
    errors = [error for row in rows if (error := row.get("completeness_error")) is not None]
    inexact = [each for each in errors if each > _LARGEST_ERROR]
    if inexact:
        sys.stderr.write(
            f"In {len(inexact)} of {len(errors)} explanations the scores of the words miss the difference to the "
            f"baseline by more than {_LARGEST_ERROR:.0%}, at most by {max(inexact):.1%}. Raise `steps`.\n"
        )
