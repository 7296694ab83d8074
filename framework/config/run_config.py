"""Settings of the config group `run`."""

from dataclasses import dataclass
from typing import Literal

from framework.checkpoint.integrity import Verify
from framework.checkpoint.storage import location
from framework.errors import ConfigError, check_at_least

Missing = Literal["error", "accept"]


@dataclass(frozen=True)
class RunConfig:
    """Identity and location of a run.

    Attributes:
        id: Name of the run folder; null: from SLURM, a torchrun run id, or a hash of the config's identity.
        dir: Folder that holds the run folders.
        resume: "auto": resume from the newest complete checkpoint of the run folder; "never": the run folder must be
            new; else the path of a run folder or checkpoint whose weights, optimizer state and step are loaded.
        verify: Check of the checkpoint's files: "checksums" reads all bytes, shared among the ranks; "sizes" compares
            sizes only. A damaged checkpoint is skipped in favour of the previous one.
        missing: Handling of a run whose checkpoints are all missing, or whose metrics.jsonl lacks rows before the
            checkpoint: "error"; or "accept": start again at step 0, or continue with the remaining rows.
        checkpoints: Location of checkpoints; null: the run folder; else a folder or an fsspec URL such as
            s3://bucket/folder, in which each run has a folder named after its id.
        wait_seconds: Seconds that a start waits for another process that trains in the run folder. A requeued or
            restarted job waits at least `trainer.timeout_seconds`.
    """

    id: str | None = None
    dir: str = "runs"
    resume: str = "auto"
    verify: Verify = "checksums"
    missing: Missing = "error"
    checkpoints: str | None = None
    wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_at_least("`run.wait_seconds`", self.wait_seconds, 0)
        if "://" in self.dir:
            raise ConfigError(
                f"`run.dir` is {self.dir!r}, which is a URL. Run folders must be local. Set `run.checkpoints` to the "
                "URL instead."
            )
        if self.checkpoints is not None:
            location(self.checkpoints)  # raises ConfigError for an unusable location
