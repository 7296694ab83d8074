"""A model over one split in one process, without gradients and without dropout."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.plan import SequenceSource, StepPlan
from framework.distributed.precision import Precision
from framework.modules.evaluation import SplitEvaluation
from framework.tasks.task import Task, TaskModel

_SEQUENCES_AT_ONCE = 1024
"""Among so many sequences those of like length may share a micro-batch."""


def run_split(
    model: TaskModel, source: SequenceSource, micro_batch_tokens: int, precision: Precision, device: torch.device
) -> Iterator[tuple[PackedBatch, dict[str, Tensor]]]:
    """Runs the model over every sequence once.

    Args:
        model: With its weights, on the device.
        source: The split.
        micro_batch_tokens: Token budget of a forward pass; raised to the longest sequence where it is below.
        precision: Of the forward pass.
        device: Where the model is.

    Yields:
        Micro-batches with the head's outputs; `PackedBatch.item_places` are places in the source, not in ascending
        order.
    """
    budget = max(micro_batch_tokens, source.max_length)
    plan = StepPlan(source, seed=0, global_batch_size=_SEQUENCES_AT_ONCE, micro_batch_tokens=budget, shuffle=False)
    for step in range(len(plan)):
        for share in plan.micro_batches(step, rank=0):
            batch = source.build(share.epochs, share.indices, share.sequence_ids, step).to(device)
            with torch.inference_mode(), precision.autocast(device.type):
                outputs = model(batch)
            # Outside the block: a generator would leave its modes switched on for the caller.
            yield batch, outputs


def predict_split(
    model: TaskModel,
    task: Task,
    source: SequenceSource,
    micro_batch_tokens: int,
    precision: Precision,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Predictions for the rows of a source that `Task.build_source` made, in their order."""
    decoded: list[Any] = [None] * len(source)
    for batch, outputs in run_split(model, source, micro_batch_tokens, precision, device):
        for place, result in zip(batch.item_places(), task.decode(outputs, batch), strict=True):
            decoded[place] = result
    return task.assemble(source, decoded)


def evaluate_split(
    model: TaskModel,
    task: Task,
    source: SequenceSource,
    micro_batch_tokens: int,
    precision: Precision,
    device: torch.device,
) -> SplitEvaluation:
    """Loss and metrics of one split; `compute` of what is returned gives them."""
    evaluation = SplitEvaluation(task, source, device)
    for batch, outputs in run_split(model, source, micro_batch_tokens, precision, device):
        with torch.inference_mode():
            evaluation.update(outputs, task.loss_sums(outputs, batch), batch)
    return evaluation
