"""Tasks whose loss needs all sequences of a global step at once: contrastive ones, with negatives from the batch."""

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from framework.batch import DUMMY_SEQUENCE_ID, PackedBatch
from framework.tasks.task import Task

SEQUENCE_IDS = "sequence_ids"
"""The rows that say which sequence each row belongs to."""


class StepLevelTask(Task):
    """States its loss over rows, what the model gives for each sequence or for places in it, all of a step together.

    Rows of all ranks and micro-batches are brought together before the loss, so that it and its gradients do not depend
    on how the step was split. In validation a step is as large as in training, but for the last one of the split.
    """

    @abstractmethod
    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """The rows of one micro-batch.

        Args:
            outputs: Of the head.
            batch: One micro-batch.

        Returns:
            Tensors with one first dim, `rows`, the same names in every micro-batch. `sequence_ids` (rows,) int64 must
            be among them; rows of dummy sequences are dropped by it, rows of one sequence keep their order. Gradients
            flow through what is floating; it is turned into fp32. Whole numbers say what rows are (roles, labels).
        """

    @abstractmethod
    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum of each loss term over all targets of the step: fp32 scalars. Counts are `batch.counts`, added up.

        Args:
            rows: Those of `representations`, real ones of the whole step, ascending in their sequence ids. In the
                trials that look for a memory budget the same rows come several times.
        """

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """The sums if this micro-batch were the whole step."""
        return self.step_loss_sums(in_order(real_rows(self.representations(outputs, batch))))


def real_rows(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows without those of dummy sequences; waits for the device."""
    kept = (rows[SEQUENCE_IDS] != DUMMY_SEQUENCE_ID).nonzero()[:, 0]
    return {name: value.index_select(0, kept) for name, value in rows.items()}


def in_order(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows ascending in their sequence ids."""
    order = rows[SEQUENCE_IDS].argsort(stable=True)
    return {name: value.index_select(0, order) for name, value in rows.items()}
