"""Settings of the config group `logger`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoggerConfig:
    """Tracking of metrics outside the run folder. Several loggers may be on.

    Attributes:
        wandb: Log to Weights & Biases.
        tensorboard: Write event files for TensorBoard into the run folder.
        csv: Write csv/metrics.csv into the run folder.
        mlflow: Log to MLflow.
        project: Project on the server of W&B; experiment of MLflow.
        group: Group of runs on the server; null: in a sweep the name of the sweep, else none.
        job_type: Kind of run within its group; null: in a sweep the values of the job, else "train".
        tags: Tags for searching the run.
        mode: W&B: "online", "offline", or "auto": online if an API key is configured.
        log_model: W&B: export the run when it has finished, and log the export as an artifact.
    """

    wandb: bool = False
    tensorboard: bool = False
    csv: bool = False
    mlflow: bool = False
    project: str = "cloze"
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline"] = "auto"
    log_model: bool = False
