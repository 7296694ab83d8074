"""Contributions of micro-batches to the loss of a step, for training and evaluation."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.distributed.gather_rows import gather_rows
from framework.tasks.step_level import StepLevelTask, in_order, real_rows
from framework.tasks.task import Task

Rows = Mapping[str, Tensor]


def contribution(task: Task, outputs: dict[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
    """Returns a micro-batch's contribution to the loss: the sums of its terms, or the rows of a step-level task."""
    return task.representations(outputs, batch) if isinstance(task, StepLevelTask) else task.loss_sums(outputs, batch)


def rows_of_step(parts: Sequence[Rows], mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Gathers all real rows of a step over all ranks, in the order of their sequences. Collective: all ranks must call.

    The call waits for the device, because the number of rows varies. Floating-point rows are gathered in fp32.
    Gradients flow to this rank's own rows.

    Args:
        parts: Rows of each of this rank's micro-batches.
        mesh: Mesh of the strategy; None: a single process.
    """
    own = {name: torch.cat([full_precision(part[name]) for part in parts]) for name in parts[0]}
    return in_order(gather_rows(real_rows(own), mesh))


def full_precision(rows: Tensor) -> Tensor:
    """Converts floating-point rows to fp32; returns other rows unchanged."""
    return rows.float() if rows.is_floating_point() else rows
