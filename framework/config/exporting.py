"""Writes a trained model to a folder that transformers loads, for the export command and for runs that log exports."""

from pathlib import Path

from framework.config.command_schema import ExportConfig
from framework.config.evaluation_data import portable_data
from framework.config.run_facts import run_facts
from framework.config.trained import DATA_KEY, Trained
from framework.data.tokenization.tokenizer import SEPARATORS_KEY
from framework.exports.huggingface import export_huggingface

EXPORT_FOLDER = "export"


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
    record = {**trained.record, SEPARATORS_KEY: trained.tokenizer.pair_separators}
    if trained.data_record is not None:
        record[DATA_KEY] = portable_data(trained.data_record.node)
    export_huggingface(
        folder,
        trained.weights.config,
        state,
        trained.task.head_kind,
        trained.tokenizer.folder,
        record,
        run_facts(trained, run_folder, settings),
        trained.task.extra_files(),
    )
