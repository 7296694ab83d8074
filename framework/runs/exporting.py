"""Writes a trained model to a folder that transformers loads, for the export command and for runs that log exports."""

from pathlib import Path
from typing import Any

import numpy as np

from framework.config.command_schema import ExportConfig
from framework.data.tokenization.tokenizer import SEPARATORS_KEY
from framework.errors import ConfigError
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx_small import TokenRow
from framework.published.families import FAMILIES
from framework.runs.evaluation_data import open_split, portable_data
from framework.runs.facts import run_facts
from framework.runs.trained import DATA_KEY, Trained
from framework.tasks.explanation import one_item

EXPORT_FOLDER = "export"
_COMPARED_SPLIT, _MOST_COMPARED_ROWS = "validation", 1000


def write_export(folder: Path, run_folder: Path, settings: ExportConfig, trained: Trained) -> None:
    """Writes weights, tokenizer, model card, and the record of the task, which transformers does not read.

    Args:
        folder: Folder that is written.
        run_folder: Folder of the run that trained the model.
        settings: Export settings. The model card states which weights they select.
        trained: Trained model.
    """
    state = {f"encoder.{name}": tensor for name, tensor in trained.weights.encoder.items()}
    state.update({f"head.{name}": tensor for name, tensor in trained.weights.heads.items()})
    export_huggingface(
        folder,
        trained.weights.config,
        state,
        trained.task.head_kind,
        trained.tokenizer.folder,
        exported_record(trained),
        run_facts(trained, run_folder, settings),
        trained.task.extra_files(),
    )


def exported_record(trained: Trained) -> dict[str, Any]:
    """Returns the record of the task, with the pair separators and the format of the data, without paths."""
    record = {**trained.record, SEPARATORS_KEY: trained.tokenizer.pair_separators}
    if trained.data_record is not None:
        record[DATA_KEY] = portable_data(trained.data_record.node)
    return record


def onnx_rows(trained: Trained, settings: ExportConfig) -> list[TokenRow]:
    """Reads the rows of the data on which a smaller ONNX file is compared: at most 1,000 of the split `validation`.

    Args:
        trained: Run.
        settings: Export settings, for messages.

    Raises:
        ConfigError: The model reads pictures.
        DataError: The data of the run cannot be read.
    """
    if FAMILIES[trained.weights.config.family].pixels is not None or trained.task.patch_size:
        raise ConfigError(
            f"onnx={settings.onnx} is given, but {settings.run} reads pictures. Only encoders of texts are written in "
            "int8 or fp16. Use onnx=true."
        )
    source = open_split(trained, settings.run, None, _COMPARED_SPLIT, {})
    rows = []
    for item in np.unique(np.linspace(0, len(source) - 1, min(len(source), _MOST_COMPARED_ROWS)).astype(np.int64)):
        batch = one_item(source, int(item))
        ends = batch.cu_seqlens[1:-1].tolist()
        segments = batch.token_type_ids if batch.token_type_ids is not None else batch.input_ids * 0
        rows.append(TokenRow(*(np.split(each.numpy(), ends) for each in (batch.input_ids, segments))))
    return rows
