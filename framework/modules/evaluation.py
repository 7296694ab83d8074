"""Loss and metrics of one split.

Each loss term has one global denominator, so it is no mean of means over batches or ranks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch
from framework.data.planning.plan import SequenceSource
from framework.distributed.mesh import data_parallel_groups, data_parallel_size
from framework.distributed.processes.agreement import gather
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.passes.contributions import Rows, rows_of_step
from framework.modules.passes.objective import SumCountObjective
from framework.optim.shards import is_distributed
from framework.tasks.examination import ExaminedSplit, ItemResults
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task


class SplitEvaluation:
    """Accumulator of one pass over a split; each pass uses a new instance.

    Attributes:
        decoded: Objects of `Task.decode` for each item of the split, in its order, set by `compute`. Empty unless the
            task scores predictions or the pass examines the split.
        values: Loss and metrics by name, set by `compute`.
        losses: Loss of each item, set by `compute` like `decoded`. Each is None if the task has no loss per sequence or
            the pass does not examine the split.
    """

    def __init__(
        self,
        task: Task,
        source: SequenceSource,
        device: torch.device,
        mesh: DeviceMesh | None = None,
        examines: bool = False,
    ) -> None:
        """Starts a pass.

        Args:
            task: Task with the loss and the metrics.
            source: The split.
            device: Device of the model.
            mesh: Mesh over all processes; None: a single process.
            examines: True keeps the data of each item that `examine` needs.
        """
        self.task = task
        self.source = source
        self.values: dict[str, float] = {}
        self.decoded: list[Any] = []
        self.losses: list[float | None] = []
        self.examines = examines
        self._by_item: dict[int, tuple[Any, float | None]] = {}
        self.objective = SumCountObjective(task.validation_weights)
        self.metrics = {name: metric.to(device) for name, metric in task.build_metrics().items()}
        self.mesh = mesh
        groups = data_parallel_groups(mesh)
        for metric in self.metrics.values():
            # Tensor-parallel ranks process the same data: a metric over all ranks would count it repeatedly.
            metric.sync_on_compute = bool(groups)
            metric.process_group = groups[0] if groups else None
        self._sums = torch.zeros(len(self.objective.weights), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(self.objective.weights), dtype=torch.float64)
        self._rows: list[Rows] = []

    def update(self, outputs: Mapping[str, Tensor], contribution: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch, without waiting for the device unless items are decoded.

        Collective if outputs are sharded: all ranks that share them must call.

        Args:
            outputs: Outputs of the head by name.
            contribution: The sum of each loss term, or the rows of a step-level task, which `end_step` processes.
            batch: The micro-batch.
        """
        if isinstance(self.task, StepLevelTask):
            self._rows.append(contribution)
        else:
            self._sums += self.objective.stack(contribution)
        self._counts += self.objective.counts(batch)
        # Metrics do not support sharded logits.
        full = {name: value.full_tensor() if is_distributed(value) else value for name, value in outputs.items()}
        self.task.update_metrics(self.metrics, full, batch)
        if self.task.scores_predictions or self.examines:
            losses = self.task.sequence_losses(full, batch) if self.examines else None
            results = zip(self.task.decode(full, batch), _item_losses(losses, batch), strict=True)
            self._by_item.update(zip(batch.item_indices(), results, strict=True))

    def end_step(self) -> None:
        """Ends a step after its last micro-batch. Collective for step-level tasks: all ranks must call."""
        if isinstance(self.task, StepLevelTask):
            sums = self.task.step_loss_sums(rows_of_step(self._rows, self.mesh))
            # Every rank has the sums over all ranks, and `compute` adds them up once more.
            self._sums += self.objective.stack(sums) / data_parallel_size(self.mesh)
            self._rows = []

    def compute(self) -> dict[str, float]:
        """Returns the loss, its terms and the metrics over all ranks, by name. Collective: all ranks must call."""
        totals = sum_over_data_ranks(torch.cat([self._sums, self._counts.to(self._sums.device)]), self.mesh)
        sums, counts = totals.chunk(2)
        named = {name: float(value) for name, value in self.objective.values(sums, counts).items()}
        named.update({name: float(metric.compute()) for name, metric in self.metrics.items()})
        if self.task.scores_predictions or self.examines:
            # Tensor-parallel ranks have the same items.
            by_item = {item: result for part in gather(self._by_item) for item, result in part.items()}
            self.decoded = [by_item[item][0] for item in range(len(self.source))]
            self.losses = [by_item[item][1] for item in range(len(self.source))]
        if self.task.scores_predictions:
            named.update(self.task.score(self.source, self.decoded))
        self.values = named
        return named

    def class_table(self) -> list[dict[str, Any]]:
        """Returns one row of scores per class; call it after `compute`."""
        return self.task.class_table(self.metrics, self.source, self.decoded)

    def examine(self) -> ExaminedSplit:
        """Returns the error analysis of the split; call it after `compute` on a pass with `examines`."""
        items = np.arange(len(self.source))
        losses = None if None in self.losses else np.array(self.losses, dtype=np.float64)
        lengths = self.source.lengths(np.zeros_like(items), items)
        examination = self.task.examine(self.source, ItemResults(self.decoded, losses, lengths))
        return ExaminedSplit(self.source, self.task.best_metric, self.values, self.class_table(), examination)


def _item_losses(losses: Tensor | None, batch: PackedBatch) -> list[float | None]:
    """Sums the losses over the sequences of each real item, on the host."""
    items = batch.item_indices()
    if losses is None:
        return [None] * len(items)
    sums = dict.fromkeys(items, 0.0)
    real = slice(batch.num_sequences)
    for sequence_id, loss in zip(batch.sequence_ids[real].tolist(), losses[real].tolist(), strict=True):
        sums[sequence_id // batch.group_size] += loss
    return [*sums.values()]
