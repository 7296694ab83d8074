"""Loss and metrics of one split, from one global denominator: no mean of means, whatever the batches and ranks held."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from framework.batch import PackedBatch
from framework.data.plan import SequenceSource
from framework.distributed.agreement import gather
from framework.distributed.mesh import data_parallel_groups, data_parallel_size
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.objective import SumCountObjective
from framework.modules.passes.step_level import Rows, rows_of_step
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task


class SplitEvaluation:
    """Accumulates one pass over a split; each pass makes a new one, so that nothing is left over from the last.

    Attributes:
        decoded: After `compute`: what the task keeps of each item of the split, in its order; empty where it does not
            score predictions.
    """

    def __init__(
        self, task: Task, source: SequenceSource, device: torch.device, mesh: DeviceMesh | None = None
    ) -> None:
        self.task = task
        self.source = source
        self.decoded: list[Any] = []
        self._by_place: dict[int, Any] = {}
        self.objective = SumCountObjective(task.validation_weights)
        self.metrics = {name: metric.to(device) for name, metric in task.build_metrics().items()}
        self.mesh = mesh
        groups = data_parallel_groups(mesh)
        for metric in self.metrics.values():
            # Ranks of tensor parallel saw the same data: a metric over all ranks would count them again.
            metric.sync_on_compute = bool(groups)
            metric.process_group = groups[0] if groups else None
        self._sums = torch.zeros(len(self.objective.weights), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(self.objective.weights), dtype=torch.float64)
        self._rows: list[Rows] = []

    def update(self, outputs: Mapping[str, Tensor], contribution: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch. The host does not wait.

        Collective where outputs are sharded: all ranks that share them must call.

        Args:
            outputs: Of the head.
            contribution: The sum of each loss term; of a step-level task its rows, which `end_step` takes in.
            batch: The micro-batch.
        """
        if isinstance(self.task, StepLevelTask):
            self._rows.append(contribution)
        else:
            self._sums += self.objective.stack(contribution)
        self._counts += torch.tensor(self.objective.counts(batch), dtype=torch.float64)
        # Metrics know whole logits only.
        whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in outputs.items()}
        self.task.update_metrics(self.metrics, whole, batch)
        if self.task.scores_predictions:
            self._by_place.update(zip(batch.item_places(), self.task.decode(whole, batch), strict=True))

    def end_step(self) -> None:
        """Says that all micro-batches of a step were added. Collective for step-level tasks: all ranks must call."""
        if isinstance(self.task, StepLevelTask):
            sums = self.task.step_loss_sums(rows_of_step(self._rows, self.mesh))
            # Every rank has the sums of all of them, which `compute` adds up over ranks.
            self._sums += self.objective.stack(sums) / data_parallel_size(self.mesh)
            self._rows = []

    def compute(self) -> dict[str, float]:
        """Loss, its terms and the metrics over all ranks, by name. Collective: all ranks must call."""
        totals = sum_over_data_ranks(torch.cat([self._sums, self._counts.to(self._sums.device)]), self.mesh)
        sums, counts = totals.chunk(2)
        named = {name: float(value) for name, value in self.objective.values(sums, counts).items()}
        named.update({name: float(metric.compute()) for name, metric in self.metrics.items()})
        if self.task.scores_predictions:
            # Ranks of tensor parallel bring the same items.
            everything = {place: result for part in gather(self._by_place) for place, result in part.items()}
            self.decoded = [everything[place] for place in range(len(self.source))]
            named.update(self.task.score(self.source, self.decoded))
        return named

    def class_table(self) -> list[dict[str, Any]]:
        """What was found for each class; after `compute`."""
        return self.task.class_table(self.metrics, self.source, self.decoded)
