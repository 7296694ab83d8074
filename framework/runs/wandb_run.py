"""Opens the Weights & Biases run of a run folder, for training and again to log the model."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from framework.config.command_schema import ExportConfig
from framework.runs.exporting import EXPORT_FOLDER, write_export
from framework.runs.folder import read_config
from framework.runs.trained import open_trained
from framework.tracking.logger_config import LoggerConfig
from framework.tracking.summary_file import read_summary
from framework.tracking.wandb.content import log_model
from framework.tracking.wandb.logger import build_wandb_logger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


def open_wandb_run(run_folder: Path, settings: LoggerConfig) -> "WandbLogger":
    """Opens the W&B run whose id is the name of the run folder, with its saved config. Call on rank 0 only.

    Secrets are masked in the saved config.
    """
    return build_wandb_logger(run_folder, run_folder.name, read_config(run_folder), settings)


def log_model_if_configured(run_folder: Path, settings: LoggerConfig, trust: Sequence[str]) -> None:
    """Exports a finished run into its folder, and logs the export as an artifact of its W&B run.

    Does nothing unless `logger.log_model` is true. The W&B run ended with the training and is opened again under its
    id. Offline, this creates another segment, which `wandb sync` joins to the first. Call on rank 0 only.

    Args:
        run_folder: Run folder.
        settings: Logger settings.
        trust: Modules that the config of this run names.
    """
    summary = read_summary(run_folder)
    if not settings.wandb or not settings.log_model or summary is None or summary["ended"] != "finished":
        return
    export = ExportConfig(run=str(run_folder.resolve()), trust=tuple(trust))
    write_export(run_folder / EXPORT_FOLDER, run_folder, export, open_trained(export))
    _wait_for_a_new_second(run_folder)
    run = open_wandb_run(run_folder, settings).experiment
    log_model(run, run_folder / EXPORT_FOLDER, {"steps": summary["steps"], "best": summary["best"]})
    run.finish()


def _wait_for_a_new_second(run_folder: Path) -> None:
    """Waits until the name of a new W&B segment is free, because W&B names its folder by the current second."""
    while list((run_folder / "wandb").glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
        time.sleep(0.1)
