"""Predicts rows: `python -m framework.predict run=RUN input=FILE output=FILE.jsonl`, row for row.

The same command runs under torchrun, where processes share the rows.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.predict")  # imports this module, and so all of the below, when the config is composed

from contextlib import nullcontext
from typing import Any

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command
from framework.config.command_schema import PredictConfig
from framework.config.dry_check import print_check
from framework.config.outputs import open_output
from framework.distributed.processes.environment import process_info
from framework.inference.adapter_prediction import open_adapter_rows
from framework.inference.input_rows import read_input_rows, read_settings
from framework.inference.joined_rows import join_rows, report_bad_rows
from framework.inference.prediction_files import find_writer, with_columns, write_rows
from framework.inference.vector_files import holds_vectors
from framework.inference.vector_prediction import predict_vectors
from framework.runs.trained import describe_trained, open_inference, open_model, open_trained


@command("predict")
def predict(composed: DictConfig) -> list[dict[str, Any]]:
    """Predicts every row, and writes the rows in the order of the input.

    Returns:
        The rows; none under `check`, or for a file of vectors.
    """
    settings = read_settings(composed, PredictConfig)
    if settings.adapters is not None:
        return predict_with_adapters(settings)
    if holds_vectors(settings.output):
        predict_vectors(settings, open_model(settings, settings.task))
        return []
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
        rows = with_columns(join_rows(inputs, predictions), settings.output_columns)
        if write is None:
            return rows
        write_rows(write, writer, rows)
    report_bad_rows(inputs)
    return rows


def predict_with_adapters(settings: PredictConfig) -> list[dict[str, Any]]:
    """Predicts each row with its own adapter, like `predict`."""
    is_first = process_info().rank == 0
    with open_output(settings.output) if is_first else nullcontext() as write:
        opened = open_adapter_rows(settings)
        if settings.check:
            if is_first:
                print_check([("base", opened.base.source), *opened.facts])
            return []
        rows = with_columns(join_rows(opened.inputs, opened.predict(settings)), settings.output_columns)
        if write is None:
            return rows
        write_rows(write, find_writer(settings.output, opened.adapters[0].trained.task.text_format), rows)
    report_bad_rows(opened.inputs)
    return rows


run = predict.run
