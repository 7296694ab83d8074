"""Predictions for texts: `python -m framework.predict run=RUN input=FILE output=FILE.jsonl`, row for row.

The same under torchrun, where processes share the rows.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command, plain
from framework.config.command_schema import PredictConfig
from framework.config.nodes import check_arguments
from framework.config.trained import open_inference, open_trained
from framework.data.reading.rows import Row, read_rows
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError, DataError


@command("predict")
def predict(composed: DictConfig) -> None:
    """Predicts every text and writes JSONL in the order of the input."""
    settings = PredictConfig(**check_arguments("", plain(composed, PredictConfig), PredictConfig))
    if settings.input is not None:
        # A file that cannot be read costs no time.
        next(read_rows(Path(settings.input), settings.keep_columns, table_format=settings.format))
    trained = open_trained(settings, settings.task)
    rows = read_input(settings, trained.task.fields, trained.task.list_fields)
    column_of = column_names(settings, trained.task.fields)
    asked = [
        Row(row.number, row.line, {field: row.values[column] for field, column in column_of.items()}) for row in rows
    ]
    source = trained.task.build_source(asked, trained.tokenizer)
    with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
        predictions = inference.predict(source)
    if process_info().rank == 0:
        write_rows(settings.output, (row.values | new for row, new in zip(rows, predictions, strict=True)))


def column_names(settings: PredictConfig, fields: Sequence[str]) -> dict[str, str]:
    """The column of each field that the task reads.

    Raises:
        ConfigError: `columns` names a field that the task does not read.
    """
    given = settings.columns or {}
    for field in given:
        if field not in fields:
            raise ConfigError(f"`columns` names {field!r}, but this task reads {', '.join(fields)}; name one of these.")
    return {field: given.get(field, field) for field in fields}


def read_input(settings: PredictConfig, fields: Sequence[str], list_fields: Sequence[str] = ()) -> list[Row]:
    """The rows to predict, with the columns that the output keeps; values of `list_fields` may be lists.

    Raises:
        ConfigError: `columns` names a field that the task does not read, or texts are given to a task that reads more.
        DataError: The file cannot be used, or there is no text.
    """
    column_of = column_names(settings, fields)
    if settings.input is not None:
        lists = [column_of[field] for field in list_fields]
        columns = [*column_of.values(), *settings.keep_columns]
        return list(read_rows(Path(settings.input), columns, None, settings.format, lists))
    if tuple(fields) != ("text",):
        raise ConfigError(f"`text` is given, but this task reads {' and '.join(fields)}; give `input`, a file.")
    texts = [settings.text] if isinstance(settings.text, str) else list(settings.text or ())
    if not texts:
        raise DataError("`text` is an empty list; give at least one text.")
    return [Row(number, None, {column_of["text"]: text}) for number, text in enumerate(texts, start=1)]


def write_rows(output: str | None, rows: Iterable[dict[str, object]]) -> None:
    """Writes one JSON object a line; a file is there as a whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
        return
    temporary = Path(output + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    temporary.replace(output)


if __name__ == "__main__":
    predict()
