"""Settings of the config group `logger`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoggerConfig:
    """Tracking of metrics outside the run folder.

    Attributes:
        name: "none", or "wandb" (Weights & Biases).
        project: Project on the server.
        group: Group of runs on the server; null: in a sweep the name of the sweep, else none.
        job_type: Kind of run within its group; null: in a sweep the values of the job, else "train".
        tags: Tags for searching the run.
        mode: "online", "offline", or "auto": online if an API key is configured.
        log_model: Export the run when it has finished, and log the export as an artifact.
    """

    name: Literal["none", "wandb"]
    project: str = "cloze"
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline"] = "auto"
    log_model: bool = False
