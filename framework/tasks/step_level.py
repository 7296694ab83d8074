"""Base class of tasks whose loss needs all sequences of a global step at once.

Examples are contrastive losses with in-batch negatives.
"""

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from framework.batch import DUMMY_SEQUENCE_ID, PackedBatch
from framework.tasks.task import Task

SEQUENCE_IDS = "sequence_ids"
"""Name of the tensor with the sequence id of each row."""


class StepLevelTask(Task):
    """A task whose loss is computed over all rows of a step; a row is an output for a sequence or a position in it.

    The rows of all ranks and micro-batches are gathered before the loss, so loss and gradients do not depend on how the
    step was split. A validation step is as large as a training step, except the last one of the split.
    """

    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the rows of one micro-batch: by default a row per sequence, with its outputs, index and targets.

        Args:
            outputs: Outputs of the head by name.
            batch: One micro-batch.

        Returns:
            Tensors that share their first dim, `rows`, and have the same names in every micro-batch. `sequence_ids`
            (rows,) int64 must be among them. It identifies rows of dummy sequences, which are dropped; rows of one
            sequence keep their order. Floating-point tensors are converted to fp32 and carry gradients. Integer tensors
            describe the rows (roles, labels). By default `members` is the index of a sequence within its item.
        """
        members = batch.sequence_ids % batch.group_size
        return {SEQUENCE_IDS: batch.sequence_ids, **outputs, "members": members, **batch.targets}

    def weight_factors(self, step: int) -> Mapping[str, float]:  # noqa: ARG002  constant by default
        """Returns the factors of the weights of terms at a training step, by term; terms without an entry have 1.

        Args:
            step: Number of steps completed before it. Factors depend on nothing else, and are above 0.
        """
        return {}

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Returns no outputs, because rows are embeddings and not logits."""
        return {}

    @abstractmethod
    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the sum of each loss term over all targets of the step: fp32 scalars.

        The counts are the sums of `batch.counts` over the step.

        Args:
            rows: Tensors of `representations` with the real rows of the whole step, ordered by sequence id. In trials
                of the memory budget the same rows occur several times.
        """

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the sums for this micro-batch, treated as a whole step."""
        return self.step_loss_sums(in_order(real_rows(self.representations(outputs, batch))))


def real_rows(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops the rows of dummy sequences; waits for the device."""
    kept = (rows[SEQUENCE_IDS] != DUMMY_SEQUENCE_ID).nonzero()[:, 0]
    return {name: value.index_select(0, kept) for name, value in rows.items()}


def in_order(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sorts the rows by their sequence ids; the sort is stable."""
    order = rows[SEQUENCE_IDS].argsort(stable=True)
    return {name: value.index_select(0, order) for name, value in rows.items()}
