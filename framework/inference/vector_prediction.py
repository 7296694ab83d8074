"""Predicts the vectors of any number of rows: several processes take blocks of rows in turn, in bounded memory."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from framework.config.command_schema import PredictConfig
from framework.config.dry_check import print_check
from framework.distributed.processes.agreement import check_agreement
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError
from framework.files import new_digest
from framework.inference.input_rows import InputRow, no_row_error, stream_input_rows
from framework.inference.vector_files import Kept, VectorArray, VectorFile, VectorTable, write_vectors
from framework.models.config import EncoderConfig
from framework.modules.inference import Inference
from framework.runs.trained import Trained, describe_trained, open_inference
from framework.tracking.pass_bars import pass_bars


@runtime_checkable
class PredictsVectors(Protocol):
    """Additional method of a task that predicts a vector for each row, the first row of each object of `decode`."""

    def vector_size(self, config: EncoderConfig) -> int | None:
        """Returns the channels of a vector; None: the task predicts no vectors."""


@dataclass
class _Survey:
    """Facts of all input rows.

    Attributes:
        num_rows: Number of rows.
        num_bad: Number of rows that cannot be predicted.
        first_error: Reason for the first bad row; None: there is none.
        fingerprint: Checksum of the rows, in their order.
    """

    num_rows: int = 0
    num_bad: int = 0
    first_error: str | None = None
    fingerprint: str = ""


def predict_vectors(settings: PredictConfig, trained: Trained) -> None:
    """Writes the vectors of all rows to `settings.output`, in the order of the rows.

    Collective: all ranks must call.

    Args:
        settings: Settings of the command. The output is a file of vectors.
        trained: Trained model.

    Raises:
        ConfigError: The task predicts no vectors, or columns are kept beside an array.
        DataError: The input cannot be read, or the output cannot be written.
    """
    output, width = Path(settings.output or ""), _check_width(settings, trained)
    is_first = process_info().rank == 0
    survey = _survey(_rows(settings, trained))
    if survey.num_bad == survey.num_rows:
        raise no_row_error(settings.input or "text", survey.first_error)
    if settings.check:
        if is_first:
            print_check([*describe_trained(trained), ("rows", f"{survey.num_rows:,}")])
        return
    kind = VectorArray if output.suffix.lower() == ".npy" else VectorTable
    file: VectorFile = kind(output, survey.num_rows, width)
    record = {
        "rows": survey.fingerprint,
        "weights": _weights_fingerprint(trained),
        "task": repr((sorted(trained.task.to_record().items()), settings.task)),
        "precision": settings.precision.name,
        "keep_columns": list(settings.keep_columns),
    }
    with (
        open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference,
        pass_bars("rows", is_shown=is_first) as advance,
    ):
        check_agreement({"the fingerprint of the input": survey.fingerprint})
        alone = inference.alone()

        def compute(rows: list[InputRow], done: Callable[[int], None]) -> tuple[np.ndarray, Kept]:
            return _vectors(rows, trained, alone, width, done), [each.kept for each in rows]

        total = survey.num_rows
        write_vectors(
            file, record, lambda: _rows(settings, trained), compute, lambda done: advance("encode", done, total)
        )
    if survey.num_bad and is_first:
        sys.stderr.write(
            f"{survey.num_bad} of {survey.num_rows} rows have no vector. For example: {survey.first_error}\n"
        )


def _check_width(settings: PredictConfig, trained: Trained) -> int:
    """Checks that the task predicts vectors of which the output can hold all columns; returns their channels."""
    task = trained.task
    width = task.vector_size(trained.weights.config) if isinstance(task, PredictsVectors) else None
    if width is None:
        raise ConfigError(
            f"output={settings.output} is for vectors, but {type(task).__name__} predicts no vectors. Only "
            "embeddings are written so. Choose a name that ends in .jsonl, .csv or .tsv."
        )
    if Path(settings.output or "").suffix.lower() == ".npy" and settings.keep_columns:
        raise ConfigError(
            f"`keep_columns` is {list(settings.keep_columns)}, but output={settings.output} is an array, which has no "
            "columns. Choose a name that ends in .parquet, or remove `keep_columns`."
        )
    return width


def _rows(settings: PredictConfig, trained: Trained) -> Iterator[InputRow]:
    return stream_input_rows(settings, trained.task, trained.tokenizer, trained.file_layout)


def _survey(rows: Iterator[InputRow]) -> _Survey:
    survey, digest = _Survey(), new_digest()
    for each in rows:
        survey.num_rows += 1
        if each.row is None:
            survey.num_bad += 1
            survey.first_error = survey.first_error or each.error
        values = None if each.row is None else sorted(each.row.values.items())
        digest.update(repr((values, sorted(each.kept.items()))).encode("utf-8", "backslashreplace"))
    survey.fingerprint = digest.hexdigest()
    return survey


def _weights_fingerprint(trained: Trained) -> str:
    digest: hashlib.blake2b = new_digest()
    for part in (trained.weights.encoder, trained.weights.heads):
        for name in sorted(part):
            digest.update(name.encode())
            digest.update(part[name].detach().float().contiguous().numpy().data)
    return digest.hexdigest()


def _vectors(
    inputs: Sequence[InputRow], trained: Trained, alone: Inference, width: int, done: Callable[[int], None]
) -> np.ndarray:
    """Returns (rows, width) fp32; NaN for rows that cannot be predicted."""
    vectors = np.full((len(inputs), width), np.nan, dtype=np.float32)
    valid = [index for index, each in enumerate(inputs) if each.row is not None]
    if valid:
        source = trained.task.build_source([row for each in inputs if (row := each.row)], trained.tokenizer)
        vectors[valid] = np.stack([each[0] for each in alone.decode(source, done)])
    return vectors
