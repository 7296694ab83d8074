"""Opens Lightning's loggers for TensorBoard, CSV and MLflow, on rank 0 only. Their packages are imported when used.

The folder of a run keeps its own records with any logger. Each row is logged with its step, and a run that resumes goes
on in the same files or under the same id. `framework.tracking.wandb.logger` opens Weights & Biases.
"""

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import ConfigError
from framework.tracking.console import print_line
from framework.tracking.logger_config import LoggerConfig
from framework.tracking.metrics_jsonl import METRICS_FILE, PERF_FILE, read_rows
from framework.tracking.rank_log import RUN_LOGGER

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

_PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}
"""Packages of which a logger needs one."""

TENSORBOARD_FOLDER = "tensorboard"
CSV_FOLDER = "csv"
MLFLOW_FILE = "mlflow.json"
"""Holds the id of the MLflow run, so that a resumed run continues it."""

_MLFLOW_SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


def check_loggers(settings: LoggerConfig) -> None:
    """Checks that the packages of the chosen loggers are installed.

    Raises:
        ConfigError: A package is missing.
    """
    for name, packages in _PACKAGES.items():
        if getattr(settings, name) and not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(
                f"logger={name} is chosen, but {' or '.join(packages)} is not installed. The logger needs it. Install "
                f"it with pip install -e '.[{name}]', or choose another logger."
            )


def open_loggers(run_folder: Path, config: Mapping[str, Any], settings: LoggerConfig, step: int) -> "list[Logger]":
    """Opens the chosen loggers other than W&B. Call on rank 0 only.

    Args:
        run_folder: Run folder.
        config: Resolved config of the run with masked secrets.
        settings: Chosen loggers.
        step: Step from which the run starts or resumes. Rows after it are logged again.
    """
    loggers: list[Logger] = []
    if settings.tensorboard:
        loggers.append(_open_tensorboard(run_folder, config, step))
    if settings.csv:
        loggers.append(_open_csv(run_folder, step))
    if settings.mlflow:
        loggers.append(_open_mlflow(run_folder, config, settings))
    return loggers


def _open_tensorboard(run_folder: Path, config: Mapping[str, Any], step: int) -> "TensorBoardLogger":
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(
        run_folder,
        name="",
        version=TENSORBOARD_FOLDER,
        default_hp_metric=False,
        purge_step=step + 1 if step else None,  # hides the events of earlier starts from this step on
    )
    lines = json.dumps(config, indent=2, default=str).splitlines()
    logger.experiment.add_text("config", "\n".join(f"    {line}" for line in lines), step)
    return logger


def _open_csv(run_folder: Path, step: int) -> "CSVLogger":
    """Opens csv/metrics.csv. Lightning starts the file anew, so the rows up to the step are written to it again."""
    from lightning.pytorch.loggers import CSVLogger

    earlier: dict[int, dict[str, float]] = {}
    for name in (METRICS_FILE, PERF_FILE):
        for row in read_rows(run_folder / name):
            if row["step"] <= step:
                earlier.setdefault(row["step"], {}).update({key: each for key, each in row.items() if key != "step"})
    shutil.rmtree(run_folder / CSV_FOLDER, ignore_errors=True)  # else Lightning warns that it will delete the rows
    logger = CSVLogger(run_folder, name="", version=CSV_FOLDER, flush_logs_every_n_steps=1)
    for each, values in sorted(earlier.items()):
        logger.experiment.log_metrics(values, each)
    logger.save()
    return logger


def _open_mlflow(run_folder: Path, config: Mapping[str, Any], settings: LoggerConfig) -> "MLFlowLogger":
    """Opens the MLflow run: at the server of MLFLOW_TRACKING_URI, else in mlflow.db of the run folder."""
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    file = run_folder / MLFLOW_FILE
    run_id = json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run_folder / 'mlflow.db').resolve()}"
    tags = {"group": settings.group or os.environ.get("WANDB_RUN_GROUP"), "tags": ", ".join(settings.tags)}
    logger = _mlflow_class()(
        experiment_name=settings.project,
        run_name=run_folder.name,
        tracking_uri=address,
        run_id=run_id,
        tags={name: value for name, value in tags.items() if value},
    )
    if run_id is None:
        logger.log_hyperparams(dict(config))  # MLflow does not accept another value later.
        file.write_text(json.dumps({"run_id": logger.run_id}), encoding="utf-8")
    return logger


def _mlflow_class() -> "type[MLFlowLogger]":
    """Returns the logger class. It is defined in a function because MLflow takes seconds to import."""
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.exceptions import MlflowException

    class RunLogger(MLFlowLogger):
        """Stops logging after the server failed, because a run must not end with it."""

        failed = False

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if not self.failed:
                try:
                    super().log_metrics(metrics, step)
                except MlflowException as error:
                    self._fail(error)

        def finalize(self, status: str = "success") -> None:
            if not self.failed:
                try:
                    super().finalize(status)
                except MlflowException as error:
                    self._fail(error)

        def _fail(self, error: MlflowException) -> None:
            self.failed = True
            text = f"MLflow failed ({' '.join(str(error).split())[:200]}). The run continues without it."
            logging.getLogger(RUN_LOGGER).warning(text)
            print_line(text)

    return RunLogger
