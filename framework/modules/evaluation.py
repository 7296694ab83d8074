"""Loss and metrics of one split, from one global denominator: no mean of means, whatever the batches and ranks held."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from framework.batch import PackedBatch
from framework.data.planning.plan import SequenceSource
from framework.distributed.mesh import data_parallel_groups, data_parallel_size
from framework.distributed.processes.agreement import gather
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.passes.objective import SumCountObjective
from framework.modules.passes.step_level import Rows, rows_of_step
from framework.tasks.examination import ExaminedSplit, FoundItems
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task


class SplitEvaluation:
    """Accumulates one pass over a split; each pass makes a new one, so that nothing is left over from the last.

    Attributes:
        decoded: After `compute`: what the task keeps of each item of the split, in its order; empty where it neither
            scores predictions nor is examined.
        values: What `compute` gave.
        losses: Likewise the loss of each item; each None where the task has none, or is not examined.
    """

    def __init__(
        self,
        task: Task,
        source: SequenceSource,
        device: torch.device,
        mesh: DeviceMesh | None = None,
        examines: bool = False,
    ) -> None:
        """Begins a pass.

        Args:
            task: States the loss and what is measured.
            source: The split.
            device: Where the model is.
            mesh: Over all processes; None: there is only this one.
            examines: Keep of each item what `examine` needs.
        """
        self.task = task
        self.source = source
        self.values: dict[str, float] = {}
        self.decoded: list[Any] = []
        self.losses: list[float | None] = []
        self.examines = examines
        self._by_place: dict[int, tuple[Any, float | None]] = {}
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
        if self.task.scores_predictions or self.examines:
            losses = self.task.sequence_losses(whole, batch) if self.examines else None
            found = zip(self.task.decode(whole, batch), _item_losses(losses, batch), strict=True)
            self._by_place.update(zip(batch.item_places(), found, strict=True))

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
        if self.task.scores_predictions or self.examines:
            # Ranks of tensor parallel bring the same items.
            everything = {place: result for part in gather(self._by_place) for place, result in part.items()}
            self.decoded = [everything[place][0] for place in range(len(self.source))]
            self.losses = [everything[place][1] for place in range(len(self.source))]
        if self.task.scores_predictions:
            named.update(self.task.score(self.source, self.decoded))
        self.values = named
        return named

    def class_table(self) -> list[dict[str, Any]]:
        """What was found for each class; after `compute`."""
        return self.task.class_table(self.metrics, self.source, self.decoded)

    def examine(self) -> ExaminedSplit:
        """What was found, with what the task tells of each row; after `compute`, where the pass had `examines`."""
        places = np.arange(len(self.source))
        losses = None if None in self.losses else np.array(self.losses, dtype=np.float64)
        lengths = self.source.lengths(np.zeros_like(places), places)
        examination = self.task.examine(self.source, FoundItems(self.decoded, losses, lengths))
        return ExaminedSplit(self.source, self.task.best_metric, self.values, self.class_table(), examination)


def _item_losses(losses: Tensor | None, batch: PackedBatch) -> list[float | None]:
    """Sums over the sequences of each real item, on the host."""
    places = batch.item_places()
    if losses is None:
        return [None] * len(places)
    sums = dict.fromkeys(places, 0.0)
    real = slice(batch.num_sequences)
    for sequence_id, loss in zip(batch.sequence_ids[real].tolist(), losses[real].tolist(), strict=True):
        sums[sequence_id // batch.group_size] += loss
    return [*sums.values()]
