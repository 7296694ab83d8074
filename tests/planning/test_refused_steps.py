"""Steps that read values of tensors cannot be planned, and are refused with one error."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from framework.batch import PackedBatch, StepBatch
from framework.data.planning.plan import StepPlan
from framework.errors import ConfigError
from framework.planning.step_record import RecordedModule, StepRecord
from framework.tasks.task import Task
from tests.support.training.toy_run import SEED, ToySource, ToyTask, build_module


class ReadingTask(ToyTask):
    """Task whose loss depends on values of tensors."""

    def __init__(self, read: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._read = read

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        self._read(outputs["pair"].detach())
        return super().loss_sums(outputs, batch)


def recorded(task: Task) -> StepRecord:
    step = StepBatch(0, 0, tuple(StepPlan(ToySource(37), SEED, 4, 64, 1, wraps_epochs=True).batches(0, 0)))
    return RecordedModule(build_module(task=task), "single", None, torch.device("cpu"), 1).record(step)


@pytest.mark.parametrize(
    "read",
    [
        lambda scores: scores[scores > 0],
        lambda scores: scores.numpy(),
    ],
    ids=["selected rows", "array"],
)
def test_a_task_whose_step_reads_values_is_refused(read: Callable[[Tensor], object]):
    with pytest.raises(ConfigError, match="a step of task ReadingTask under precision=fp32 reads values of tensors"):
        recorded(ReadingTask(read))


def test_other_errors_of_a_step_stay():
    def fail(scores: Tensor) -> None:
        raise RuntimeError("the loss has no value")

    with pytest.raises(RuntimeError, match="the loss has no value"):
        recorded(ReadingTask(fail))
