"""Map-style dataset of the global steps of a run, and the sampler that seeks in it."""

from collections.abc import Iterator
from typing import TypeAlias

from torch.utils.data import Dataset, Sampler, get_worker_info

from framework.batch import StepBatch
from framework.data.planning.plan import StepPlan
from framework.errors import FrameworkError

Loaded: TypeAlias = StepBatch | FrameworkError
"""Step, or the error that a loader process met."""


class StepDataset(Dataset[Loaded]):
    """Dataset whose item `step` is one rank's share of that global step; items do not depend on earlier items.

    A loader process returns an error about the data, such as a damaged picture, instead of the step. torch would add
    its traceback to the message. `raise_error` raises it in the training process.

    Args:
        plan: Plan of the split.
        rank: Data-parallel rank whose share is built.
        num_steps: Number of steps of the whole run, or of the split in evaluation.
    """

    def __init__(self, plan: StepPlan, rank: int, num_steps: int) -> None:
        self.plan = plan
        self.rank = rank
        self.num_steps = num_steps
        self._announced: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Loaded:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is not within the {self.num_steps} steps of the run.")
        try:
            self._read_ahead(step)
            return StepBatch(step, self.plan.epoch(step), tuple(self.plan.batches(step, self.rank)))
        except FrameworkError as error:
            if get_worker_info() is None:
                raise
            return error

    def _read_ahead(self, step: int) -> None:
        """Announces each window of the order once to the source, before its sequences are read."""
        windows = [(epoch, ranges, (epoch, ranges.tobytes())) for epoch, ranges in self.plan.windows(step)]
        for epoch, ranges, name in windows:
            if name not in self._announced:
                for start, stop in ranges.tolist():
                    self.plan.source.read_ahead(epoch, start, stop)
        self._announced = [name for _, _, name in windows]


def raise_error(loaded: Loaded) -> StepBatch:
    """Returns a loaded step.

    Raises:
        FrameworkError: A loader process met this error.
    """
    if isinstance(loaded, FrameworkError):
        raise loaded
    return loaded


class SeekSampler(Sampler[int]):
    """Sampler of the steps from `start_step` to the end of the run.

    Its length is that of the whole run also after a seek. With the remaining length, Lightning 2.6 would end its epoch
    early and restart the data.

    Args:
        start_step: Index of the first step, which is the number of completed steps.
        num_steps: Number of steps of the whole run.
    """

    def __init__(self, start_step: int, num_steps: int) -> None:
        self.start_step = start_step
        self.num_steps = num_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start_step, self.num_steps))

    def __len__(self) -> int:
        return self.num_steps
