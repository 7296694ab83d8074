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
from framework.config.outputs import open_output, write_to_stdout
from framework.data.planning.plan import SequenceSource
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError
from framework.inference.explained_rows import NOTHING_EXPLAINED, coloured, exact_explanation, explanation
from framework.inference.input_rows import InputRow, read_input_rows, read_settings
from framework.inference.joined_rows import join_rows, report_bad_rows
from framework.inference.prediction_files import find_writer, write_rows
from framework.inference.training_influence import TrainingRows, open_training_rows
from framework.modules.explanations.attribution import attribute
from framework.runs.trained import Trained, describe_trained, open_inference, open_trained
from framework.tasks.explained_fields import ExplainedFields
from framework.tasks.explanation import ExactlyExplained, TokenSpans
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
        check_exact(settings, trained.task)
        writer = find_writer(settings.output, None)
        fields = trained.task.explained_fields
        inputs = read_input_rows(settings, trained.task, trained.tokenizer, trained.file_layout, fields)
        source = trained.task.build_source([each.row for each in inputs if each.row is not None], trained.tokenizer)
        training = open_training_rows(settings, trained) if settings.training_rows else None
        if settings.check:
            if is_first:
                print_check([*describe_trained(trained), ("rows", f"{len(inputs):,}")])
            return []
        rows, spans = explained_rows(settings, trained, names, inputs, source, training)
        if write is None:
            return rows
        console = open_console()
        if settings.output is None and settings.text is not None and console.is_terminal:
            with console.capture() as printed:
                for row, each in zip(rows, spans, strict=True):
                    console.print(coloured(row, each))
            write_to_stdout([printed.get()])
        else:
            write_rows(write, writer, rows)
    report_bad_rows(inputs)
    report_cut(rows, spans)
    report_errors(rows)
    return rows


run = explain.run


def chosen_names(task: Task, choice: str) -> list[str | None]:
    """Returns the names of the scores to explain for each row; None stands for the prediction.

    Raises:
        ConfigError: The task has no scores to explain, or no label of this name.
    """
    if isinstance(task, ExactlyExplained) and choice == PREDICTED:
        return [None]
    if not task.explains_predictions:
        ExplainedFields.explained(task, None, [], None)  # raises the error
    labels = task.explained_labels
    if choice == PREDICTED:
        return [None]
    if not labels:
        raise ConfigError(
            f"`explain` is {choice!r}, but the scores of this task have no labels. Use explain={PREDICTED}, which "
            "explains the prediction."
        )
    if choice == ALL:
        return list(labels)
    if choice not in labels:
        raise ConfigError(
            f"`explain` is {choice!r}, which is no label of this run. Choose {PREDICTED}, {ALL} or one of "
            f"{', '.join(labels)}."
        )
    return [choice]


def check_exact(settings: ExplainConfig, task: Task) -> None:
    """Checks that no attribution is requested from a task that states the terms of its scores.

    Raises:
        ConfigError: Another method, or an influence of training rows, is set.
    """
    if isinstance(task, ExactlyExplained) and (settings.method != "integrated_gradients" or settings.training_rows):
        raise ConfigError(
            f"`method` is {settings.method} and `training_rows` is {settings.training_rows}, but a score of "
            f"{type(task).__name__} is a sum over its tokens, which needs no method. Remove both."
        )


def explained_rows(
    settings: ExplainConfig,
    trained: Trained,
    names: Sequence[str | None],
    inputs: Sequence[InputRow],
    source: SequenceSource,
    training: TrainingRows | None = None,
) -> tuple[list[dict[str, Any]], list[TokenSpans | None]]:
    """Predicts and explains rows. Collective: all ranks must call.

    Args:
        settings: Settings of the command.
        trained: Model.
        names: Scores to explain for each row, from `chosen_names`.
        inputs: Rows.
        source: Source of the rows that are not bad.
        training: Training rows whose influence is computed; None: no influence.

    Returns:
        One output row for each explained score, and the spans of its tokens. A row without such a score, such as a
        text without entities, has one output row with nulls, and so has a bad row.
    """
    task, tokenizer = trained.task, trained.tokenizer
    with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
        decoded = inference.decode(source)
        if isinstance(task, ExactlyExplained):
            return exactly_explained_rows(trained, inputs, source, decoded)
        by_name = [task.explained(source, decoded, name) for name in names]
        chosen = [[each for scores in row for each in scores] for row in zip(*by_name, strict=True)]
        scores = [each for row in chosen for each in row]
        attributions = iter(attribute(inference, tokenizer, source, scores, settings.method, settings.steps))
        influence = iter(() if training is None else training.influences(trained, inference, source, scores))
    predictions = task.assemble(source, decoded)
    repeated: list[InputRow] = []
    joined: list[dict[str, Any]] = []
    spans: list[TokenSpans | None] = []
    items = iter(zip(predictions, chosen, strict=True))
    for each in inputs:
        if each.row is None:
            repeated.append(each)
            spans.append(None)
            continue
        prediction, row_scores = next(items)
        repeated += [each] * max(len(row_scores), 1)
        if not row_scores:
            joined.append(prediction | NOTHING_EXPLAINED)
            spans.append(None)
        for score in row_scores:
            located = task.explained_spans(source, score, each.row.values, tokenizer)
            joined.append(prediction | explanation(score, next(attributions), located, tokenizer))
            if training is not None:
                joined[-1]["training_rows"] = training.strongest(next(influence), settings.training_rows, trained)
            spans.append(located)
    keys = dict.fromkeys(name for row in joined for name in row)
    return join_rows(repeated, [keys | row for row in joined]), spans


def exactly_explained_rows(
    trained: Trained, inputs: Sequence[InputRow], source: SequenceSource, decoded: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[TokenSpans | None]]:
    """Explains rows like `explained_rows`, by the terms that the task states."""
    task, tokenizer = trained.task, trained.tokenizer
    assert isinstance(task, ExactlyExplained)
    rows: list[dict[str, Any]] = []
    spans: list[TokenSpans | None] = []
    predictions = task.assemble(source, decoded)
    for each in inputs:
        if each.row is None:
            spans.append(None)
            continue
        item = len(rows)
        exact = task.exact_explanation(source, item, decoded[item], each.row.values, tokenizer)
        rows.append(predictions[item] | exact_explanation(exact, tokenizer))
        spans.append(exact.spans)
    return join_rows(inputs, rows), spans


def report_cut(rows: Sequence[Mapping[str, Any]], spans: Sequence[TokenSpans | None]) -> None:
    """Reports on standard error how many explained rows have text that the model does not read, and an example."""
    cut = [(number, each.cut[0]) for number, each in enumerate(spans, start=1) if each is not None and each.cut]
    if cut:
        number, part = cut[0]
        sys.stderr.write(
            f"{len(cut)} of {len(rows)} explanations are of texts that are longer than task.max_length allows. The "
            f"model does not read their rest. For example, it does not read the characters {part.start} to {part.end} "
            f"of `{part.field}` in row {number} of the output.\n"
        )


def report_errors(rows: Sequence[Mapping[str, Any]]) -> None:
    """Reports on standard error how many explanations are inexact."""
    errors = [error for row in rows if (error := row.get("completeness_error")) is not None]
    inexact = [each for each in errors if each > _LARGEST_ERROR]
    if inexact:
        sys.stderr.write(
            f"In {len(inexact)} of {len(errors)} explanations the scores of the words miss the difference to the "
            f"baseline by more than {_LARGEST_ERROR:.0%}, at most by {max(inexact):.1%}. Raise `steps`.\n"
        )
