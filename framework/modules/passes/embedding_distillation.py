"""Distillation of embeddings: vectors follow those of a teacher (Reimers and Gurevych 2020, arXiv:2004.09813)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.errors import ConfigError, check_at_least
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.modules.passes.teacher import Teacher
from framework.tasks.embedding.features import HAS_TEACHER_VECTOR, TEACHER_VECTORS
from framework.tasks.embedding.losses import vector_error_sum
from framework.tasks.task import Task, TaskModel

TERM = "distillation"
_OUTPUT, _PROJECTED = "embeddings", "projected"


class EmbeddingDistillation:
    """The terms of a task of embeddings, and the mean squared error between its vectors and those of a teacher.

    Vectors of another width are compared after a learned projection, which is not exported.

    Args:
        teacher: Run (id or folder), export, Hugging Face folder or hub name, which reads the texts of each step; None:
            the vectors of a column of the data (`data.vector_column`).
        weight: Weight of the error.
        task_weight: Factor on the weights of the task's own terms; 0 trains on the teacher alone.

    Attributes:
        followed: The teacher; None until `follow`, and for vectors of the data.

    Raises:
        ConfigError: A weight is negative.
    """

    reads_layers = False

    def __init__(self, teacher: str | None = None, weight: float = 1.0, task_weight: float = 1.0) -> None:
        check_at_least("regularization.weight", weight, 0)
        check_at_least("regularization.task_weight", task_weight, 0, "Set 0 to train on the teacher alone.")
        self.teacher = teacher
        self.weight = weight
        self.task_weight = task_weight
        self.followed: Teacher | None = None

    def check(self, task: Task, model: TaskModel) -> None:  # noqa: ARG002  part of the protocol
        """Checks that the task computes one vector for each text.

        Raises:
            ConfigError: It does not.
        """
        if task.head_kind != "embedding":
            raise ConfigError(
                f"{type(task).__name__} computes no embeddings of texts. regularization=embedding_distillation "
                "compares them with those of a teacher. Use task=embedding, or regularization=distillation."
            )

    def follow(self, teacher: Teacher | None, width: int, model: TaskModel) -> None:
        """Sets the teacher, and adds a projection to the model if the widths differ.

        Args:
            teacher: Teacher; None: vectors of the data.
            width: Channels of the teacher's vectors.
            model: Student on the meta device.
        """
        own = model.encoder.config.hidden_size
        if own != width:
            with torch.device("meta"):
                model.distillation = nn.ModuleDict({_OUTPUT: nn.Linear(own, width, bias=False)})
        self.followed = teacher

    def weights(self, task: Task) -> dict[str, float]:
        """Returns the weights of the task's terms, then that of the error."""
        return {term: weight * self.task_weight for term, weight in task.loss_weights.items()} | {TERM: self.weight}

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64 counts of one micro-batch on the host; the error counts texts with a vector."""
        num_taught = batch.num_sequences
        if self.followed is None:
            num_taught = int((batch.targets[HAS_TEACHER_VECTOR][: batch.num_sequences] == 1).sum())
        own = SumCountObjective(task.loss_weights).counts(batch)
        return torch.cat([own, own.new_tensor([num_taught])])

    def add_rows(
        self, passes: ModelPasses, batch: PackedBatch, rows: Mapping[str, Tensor], is_repeated: bool
    ) -> dict[str, Tensor]:
        """Adds the projected vectors and those of the teacher to the rows of a micro-batch.

        Args:
            passes: Passes of the step.
            batch: One micro-batch.
            rows: Rows of the task.
            is_repeated: True if only the gradient of the student is needed, so that the teacher does not run again.
        """
        added = dict(rows)
        if self.followed is not None and not is_repeated:
            added[TEACHER_VECTORS] = self.followed.outputs(batch, passes.precision)[_OUTPUT]
        if passes.model.distillation is not None:
            with passes.precision.autocast(batch.input_ids.device.type):
                added[_PROJECTED] = passes.model.distillation[_OUTPUT](rows[_OUTPUT]).float()
        return added

    def sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the sum of the error over the texts of a step that have a vector."""
        taught = rows[TEACHER_VECTORS]
        has_vector = None if self.followed is not None else rows[HAS_TEACHER_VECTOR] == 1
        return {TERM: vector_error_sum(rows.get(_PROJECTED, rows[_OUTPUT]), taught, has_vector)}
