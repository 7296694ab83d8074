"""A run or checkpoint as a folder that Hugging Face transformers loads: `python -m framework.export run=RUN`."""

from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.checkpoint.adapters import export_adapter
from framework.checkpoint.onnx import check_onnx_installed, export_onnx
from framework.config.command import command, plain
from framework.config.command_schema import ExportConfig
from framework.config.export_comparison import compare_with_transformers
from framework.config.exporting import EXPORT_FOLDER, write_export
from framework.config.nodes import check_arguments
from framework.config.trained import Trained, open_trained
from framework.config.weights import find_adapter
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError, DistributedError


@command("export")
def export(composed: DictConfig) -> None:
    """Writes what transformers loads, a card, and beside them what transformers has no place for."""
    if process_info().world_size > 1:
        raise DistributedError(
            f"this command runs in one process, but there are {process_info().world_size}; start it without torchrun."
        )
    settings = ExportConfig(**check_arguments("", plain(composed, ExportConfig), ExportConfig))
    if settings.onnx:
        check_onnx_installed()
    trained = open_trained(settings)
    if trained.folder is None:
        raise ConfigError(f"run={settings.run} is an export already; give the run that it came from.")
    if settings.lora == "separate":
        folder = Path(settings.output) if settings.output is not None else trained.folder / "adapter"
        export_separate(folder, settings, trained)
        return
    folder = Path(settings.output) if settings.output is not None else trained.folder / EXPORT_FOLDER
    write_export(folder, trained.folder, settings, trained)
    if settings.onnx:
        export_onnx(folder)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if settings.compare:
        print(f"{folder}: {compare_with_transformers(folder, trained)}")


def export_separate(folder: Path, settings: ExportConfig, trained: Trained) -> None:
    """Writes what an adapter trained, and nothing that the base model has."""
    adapter = find_adapter(settings.run, Path(settings.runs), settings.weights, settings.average_last)
    head_kind = trained.task.head_kind
    export_adapter(folder, trained.weights.config, adapter, head_kind, trained.tokenizer, trained.record)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    export()
