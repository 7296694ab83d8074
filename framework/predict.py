"""Predictions for texts: `python -m framework.predict run=RUN input=FILE output=FILE.jsonl`, row for row."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig

from framework.config.command import command, plain
from framework.config.command_schema import PredictConfig
from framework.config.nodes import check_arguments
from framework.config.trained import build_trained_model, open_trained
from framework.data.reading.rows import read_rows
from framework.distributed.precision import resolve_precision
from framework.errors import DataError
from framework.modules.inference import run_split


@command("predict")
def predict(composed: DictConfig) -> None:
    """Predicts every text and writes JSONL in the order of the input."""
    settings = PredictConfig(**check_arguments("", plain(composed), PredictConfig))
    rows = read_input(settings)
    trained = open_trained(settings)
    texts = [row[settings.text_column] for row in rows]
    pairs = [row[settings.pair_column] if settings.pair_column else None for row in rows]
    source = trained.task.build_source(texts, pairs, None, trained.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(settings.precision.name, device.type)
    model = build_trained_model(trained, device)
    predictions: list[dict[str, object]] = [{} for _ in rows]
    for batch, outputs in run_split(model, source, settings.micro_batch_tokens, precision, device):
        places = batch.sequence_ids[: batch.num_sequences].tolist()
        for place, prediction in zip(places, trained.task.decode(outputs, batch), strict=True):
            predictions[place] = {**rows[place], **prediction}
    write_rows(settings.output, predictions)


def read_input(settings: PredictConfig) -> list[dict[str, str]]:
    """The rows to predict, each with the columns that the output keeps.

    Raises:
        DataError: The file cannot be used, or there is no text.
    """
    if settings.input is not None:
        extra = [settings.pair_column] if settings.pair_column else []
        columns = [settings.text_column, *extra, *settings.keep_columns]
        return [row.values for row in read_rows(Path(settings.input), columns)]
    texts = [settings.text] if isinstance(settings.text, str) else list(settings.text or ())
    if not texts:
        raise DataError("`text` is an empty list; give at least one text.")
    return [{settings.text_column: text} for text in texts]


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
