"""Predicts rows: `python -m framework.predict run=RUN input=FILE output=FILE.jsonl`, row for row.

The same command runs under torchrun, where processes share the rows.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.predict")  # imports this module, and so all of the below, when the config is composed

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.command_schema import PredictConfig
from framework.config.dry_check import print_check
from framework.config.input_rows import check_input, join_rows, read_input_rows, report_bad_rows
from framework.config.nodes import check_arguments
from framework.config.outputs import check_output_differs, open_output
from framework.config.prediction_files import PredictedRow, check_suffix, find_writer, json_lines
from framework.config.trained import describe_trained, open_inference, open_trained
from framework.distributed.processes.environment import process_info
from framework.errors import DataError


@command("predict")
def predict(composed: DictConfig) -> list[dict[str, Any]]:
    """Predicts every row, writes the rows in the order of the input, and returns them; none under `check`."""
    settings = PredictConfig(**check_arguments("", resolve_config(composed, PredictConfig), PredictConfig))
    check_suffix(settings.output)
    check_output_differs(settings.output, [settings.input])
    check_input(settings)
    is_first = process_info().rank == 0
    with open_output(settings.output) if is_first else nullcontext() as write:
        trained = open_trained(settings, settings.task)
        writer = find_writer(settings.output, trained.task.text_format)
        inputs = read_input_rows(settings, trained.task, trained.tokenizer, trained.file_layout)
        source = trained.task.build_source([each.row for each in inputs if each.row is not None], trained.tokenizer)
        if settings.check:
            if is_first:
                print_check([*describe_trained(trained), ("rows", f"{len(inputs):,}")])
            return []
        with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
            predictions = inference.predict(source)
        rows = join_rows(inputs, predictions)
        if write is None:
            return rows
        try:
            write(writer(rows))
        except DataError as error:
            raise _rescued(error, rows) from error
    report_bad_rows(inputs)
    return rows


run = predict.run


def _rescued(error: DataError, rows: Sequence[PredictedRow]) -> DataError:
    """Saves predictions that could not be written to their output in the temporary folder of the system, if possible.

    Returns:
        The error, extended by the path of that file.
    """
    if isinstance(error.__cause__, BrokenPipeError):
        return error  # the reader needs no more rows
    try:
        descriptor, name = tempfile.mkstemp(prefix="cloze-predictions-", suffix=".jsonl")
    except OSError:
        return error
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.writelines(json_lines(rows))
    except OSError:
        Path(name).unlink(missing_ok=True)
        return error
    return DataError(f"{error} The {len(rows)} rows are in {name}.")
