"""A run or checkpoint as a folder that Hugging Face transformers loads: `python -m framework.export run=RUN`."""

from pathlib import Path

from omegaconf import DictConfig

from framework.checkpoint.export import export_huggingface
from framework.config.command import command, plain
from framework.config.command_schema import ExportConfig
from framework.config.nodes import check_arguments
from framework.config.trained import open_trained
from framework.distributed.environment import process_info
from framework.errors import ConfigError, DistributedError


@command("export")
def export(composed: DictConfig) -> None:
    """Writes config.json, safetensors and tokenizer files, and beside them what transformers has no place for."""
    if process_info().world_size > 1:
        raise DistributedError(
            f"this command runs in one process, but there are {process_info().world_size}; start it without torchrun."
        )
    settings = ExportConfig(**check_arguments("", plain(composed), ExportConfig))
    trained = open_trained(settings)
    if trained.folder is None:
        raise ConfigError(f"run={settings.run} is an export already; give the run that it came from.")
    folder = Path(settings.output) if settings.output is not None else trained.folder / "export"
    state = {f"encoder.{name}": tensor for name, tensor in trained.weights.encoder.items()}
    state.update({f"head.{name}": tensor for name, tensor in trained.weights.heads.items()})
    export_huggingface(
        folder, trained.weights.config, state, trained.task.head_kind, trained.tokenizer.folder, trained.record
    )
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    export()
