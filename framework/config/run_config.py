"""The group `run` of a training config."""

from dataclasses import dataclass
from typing import Literal

from framework.checkpoint.integrity import Verify
from framework.checkpoint.storage import location
from framework.errors import ConfigError

Missing = Literal["error", "accept"]


@dataclass(frozen=True)
class RunConfig:
    """Which run this is and where it is kept.

    Attributes:
        id: The name of the run folder; null: from SLURM, a torchrun run id, or a hash of the config's identity.
        dir: The folder that holds the run folders.
        resume: "auto": go on from the newest complete checkpoint of the run folder; "never": the run folder must be
            new; else the path of a run folder or of a checkpoint whose weights, optimizer state and step are taken.
        verify: What of the checkpoint's files is compared with what was written: "checksums", for which the ranks
            share the reading of all bytes, or "sizes" only; where it is damaged, the one before it is used.
        missing: What a start does where all checkpoints of the run are gone, or rows of metrics.jsonl below its
            checkpoint: "error"; or "accept": it starts again at step 0, or goes on with the rows that are left.
        checkpoints: Where checkpoints are kept: null: in the run folder; else a folder or an fsspec URL such as
            s3://bucket/folder, below which each run has a folder of its id.
        wait_seconds: How long a start waits for another process that trains in the run folder; a requeued or restarted
            one waits at least `trainer.timeout_seconds`.
    """

    id: str | None = None
    dir: str = "runs"
    resume: str = "auto"
    verify: Verify = "checksums"
    missing: Missing = "error"
    checkpoints: str | None = None
    wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.wait_seconds < 0:
            raise ConfigError(f"`run.wait_seconds` is {self.wait_seconds}. It must be at least 0. Raise it.")
        if "://" in self.dir:
            raise ConfigError(
                f"`run.dir` is {self.dir!r}, but a run folder is local; give the URL as `run.checkpoints`."
            )
        if self.checkpoints is not None:
            location(self.checkpoints)  # raises where it cannot be used
