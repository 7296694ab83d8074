"""Exports a run or checkpoint for Hugging Face transformers: `python -m framework.export run=RUN`."""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.export")  # imports this module, and so all of the below, when the config is composed

from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.command_schema import ExportConfig
from framework.config.dry_check import print_check
from framework.config.nodes import check_arguments
from framework.config.outputs import write_to_stdout
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError, DistributedError
from framework.exports.adapters import check_adapter_target, export_adapter
from framework.exports.hub import check_access, push
from framework.exports.huggingface import check_target
from framework.exports.new_folder import check_new_folder
from framework.exports.onnx import check_onnx_installed, export_onnx
from framework.exports.onnx_pictures import export_picture_onnx
from framework.exports.onnx_small import export_small_onnx
from framework.inference.export_comparison import compare_with_transformers
from framework.runs.exporting import EXPORT_FOLDER, exported_record, onnx_rows, write_export
from framework.runs.trained import describe_trained, open_trained
from framework.runs.weights import find_adapter, find_run


@command("export")
def export(composed: DictConfig) -> Path:
    """Writes the files that transformers reads, a card and the record of the task; returns the folder."""
    if process_info().world_size > 1:
        raise DistributedError(
            f"the export was started in {process_info().world_size} processes. It runs in one. Start it without "
            "torchrun."
        )
    settings = ExportConfig(**check_arguments("", resolve_config(composed, ExportConfig), ExportConfig))
    if settings.onnx:
        check_onnx_installed()
    if settings.push is not None:
        check_access(settings.push)
    run = find_run(settings.run, Path(settings.runs))
    if run is None and Path(settings.run).is_dir():
        raise ConfigError(f"run={settings.run} is an export already. Only runs are exported. Give its original run.")
    default = "adapter" if settings.lora == "separate" else EXPORT_FOLDER
    folder = Path(settings.output) if settings.output is not None else run[0] / default if run is not None else None
    if folder is not None:
        # Check the output before reading weights.
        (check_adapter_target if settings.lora == "separate" else check_target)(folder)
        check_new_folder(folder)
    trained = open_trained(settings)
    if trained.folder is None or folder is None:
        raise ConfigError(f"run={settings.run} is an export already. Only runs are exported. Give its original run.")
    # Read the rows before anything is written.
    rows = onnx_rows(trained, settings) if isinstance(settings.onnx, str) else []
    if settings.check:
        print_check([*describe_trained(trained), ("export", f"{folder}")])
        return folder
    if settings.lora == "separate":
        adapter = find_adapter(settings.run, Path(settings.runs), settings.weights, settings.average_last)
        head_kind = trained.task.head_kind
        record = exported_record(trained)
        export_adapter(folder, trained.weights.config, adapter, head_kind, trained.tokenizer, record)
    else:
        write_export(folder, trained.folder, settings, trained)
    if isinstance(settings.onnx, str):
        small = export_small_onnx(folder, settings.onnx, rows, settings.onnx_min_agreement)
        write_to_stdout([f"{small.file}: {small.describe()}\n"])
    elif settings.onnx:
        export_onnx(folder)
        export_picture_onnx(folder)
    write_to_stdout([f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}\n"])
    if settings.compare and settings.lora != "separate":
        write_to_stdout([f"{folder}: {compare_with_transformers(folder, trained)}\n"])
    if settings.push is not None:
        write_to_stdout([f"{folder}: uploaded to {push(folder, settings.push, settings.push_private)}\n"])
    return folder


run = export.run
