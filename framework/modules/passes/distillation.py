"""Distillation: the student is trained to agree with a teacher on the batches of its own task."""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.errors import ConfigError, check_above_zero, check_at_least
from framework.models.config import EncoderConfig
from framework.models.layer_record import LayerRecord, record_layers
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.modules.passes.teacher import Teacher
from framework.nn.distillation import hidden_error_sum, logit_divergence_sum, relation_divergence_sum
from framework.tasks.rewriting import RewritingHead
from framework.tasks.task import Task, TaskModel

Match = Literal["logits", "hidden", "relations"]
TERM = "distillation"


class Distillation:
    """The task's terms, and terms for the difference between the student and a teacher on the same packed batch.

    Args:
        teacher: Run (id or folder), export, Hugging Face folder or hub name.
        match: Outputs to compare. "logits": divergence of the predicted classes or words at the targets of the task
            (Hinton et al. 2015, arXiv:1503.02531; DistilBERT, arXiv:1910.01108). "hidden": squared error of the hidden
            states of layers, with a learned projection where widths differ (TinyBERT, arXiv:1909.10351). "relations":
            divergence of self-attention relations between queries, keys and values (MiniLMv2, arXiv:2012.15828).
        weight: Weight of the terms that compare.
        task_weight: Factor on the weights of the task's own terms; 0 trains on the teacher alone.
        temperature: Temperature of the logits.
        layers: Layer of the teacher by layer of the student, both counted from 1; 0 are the embeddings. None: for
            hidden states, layers at the same relative depth; for relations, the last layers.
        relation_heads: Number of heads into which the vectors of all attention heads are split; None: the attention
            heads of the teacher.

    Attributes:
        followed: The teacher; None until `follow`.

    Raises:
        ConfigError: A weight is negative, or the temperature is not above 0.
    """

    def __init__(
        self,
        teacher: str,
        match: Match = "logits",
        weight: float = 1.0,
        task_weight: float = 1.0,
        temperature: float = 2.0,
        layers: Mapping[int, int] | None = None,
        relation_heads: int | None = None,
    ) -> None:
        check_at_least("regularization.weight", weight, 0)
        check_at_least("regularization.task_weight", task_weight, 0, "Set 0 to train on the teacher alone.")
        check_above_zero("regularization.temperature", temperature, 2.0)
        if relation_heads is not None:
            check_at_least("regularization.relation_heads", relation_heads, 1)
        self.teacher = teacher
        self.match: Match = match
        self.weight = weight
        self.task_weight = task_weight
        self.temperature = temperature
        self.layers = {_layer_number(key): value for key, value in (layers or {}).items()}
        self.relation_heads = relation_heads
        self.followed: Teacher | None = None

    @property
    def reads_layers(self) -> bool:
        """Returns True if values within the encoder are compared, which compiled layers do not provide."""
        return self.match != "logits"

    def check(self, task: Task, model: TaskModel) -> None:
        """Checks that student and teacher read the same batch, and that the task has class scores if they are compared.

        Raises:
            ConfigError: The head rewrites the batch, or the task has no class scores.
        """
        if isinstance(model.head, RewritingHead):
            raise ConfigError(
                f"{type(task).__name__} rewrites the batch before the student reads it. A teacher reads the batch of "
                "the data. Choose regularization=none, or task=pretraining."
            )
        if self.match == "logits" and not task.class_scores:
            raise ConfigError(
                f"{type(task).__name__} has no class scores. regularization.match=logits compares them with those of "
                "the teacher. Choose regularization.match=hidden or relations."
            )

    def follow(self, teacher: Teacher, model: TaskModel) -> None:
        """Sets the teacher, and adds to the model the projections that it needs.

        Args:
            teacher: Teacher with the head of the student's task if logits are compared.
            model: Student on the meta device.

        Raises:
            ConfigError: `layers` or `relation_heads` does not fit both encoders.
        """
        own, other = model.encoder.config, teacher.config
        if self.reads_layers:
            self.layers = self.layers or self._default_layers(own, other)
            self._check_layers(own, other)
        if self.match == "relations":
            self.relation_heads = self.relation_heads or other.num_heads
            _check_relation_heads(self.relation_heads, own, other)
        if self.match == "hidden" and own.hidden_size != other.hidden_size:
            with torch.device("meta"):
                model.distillation = nn.ModuleDict(
                    {str(layer): nn.Linear(own.hidden_size, other.hidden_size, bias=False) for layer in self.layers}
                )
        self.followed = teacher

    def _default_layers(self, own: EncoderConfig, other: EncoderConfig) -> dict[int, int]:
        if self.match == "relations":
            return {own.num_layers: other.num_layers}
        if other.num_layers % own.num_layers:
            raise ConfigError(
                f"the teacher has {other.num_layers} layers and the student {own.num_layers}, so not every layer of "
                "the student has one at the same relative depth. Set regularization.layers to pairs of a student layer "
                f"and a teacher layer, for example {{{own.num_layers}: {other.num_layers}}}."
            )
        return {layer: layer * other.num_layers // own.num_layers for layer in range(1, own.num_layers + 1)}

    def _check_layers(self, own: EncoderConfig, other: EncoderConfig) -> None:
        first = 0 if self.match == "hidden" else 1
        for name, config, used in (
            ("student", own, self.layers.keys()),
            ("teacher", other, self.layers.values()),
        ):
            wrong = [layer for layer in used if not first <= layer <= config.num_layers]
            if wrong:
                raise ConfigError(
                    f"regularization.layers names layer {wrong[0]} of the {name}. Its layers are {first} to "
                    f"{config.num_layers} for match={self.match}. Correct the number."
                )

    def weights(self, task: Task) -> dict[str, float]:
        """Returns the weights of the task's terms, then those of the terms that compare."""
        own = {term: weight * self.task_weight for term, weight in task.loss_weights.items()}
        return own | dict.fromkeys(self._terms(task), self.weight)

    def _terms(self, task: Task) -> list[str]:
        if self.match != "logits" or len(task.class_scores) == 1:
            return [TERM]
        return [f"{TERM}_{name}" for name in task.class_scores]

    def counts(self, task: Task, batch: PackedBatch) -> Tensor:
        """Returns (terms,) float64; terms of layers count real tokens, and terms of logits their targets."""
        own = SumCountObjective(task.loss_weights).counts(batch)
        if self.reads_layers:
            return torch.cat([own, own.new_tensor([_num_tokens(batch)])])
        targets = [(batch.targets[labels] != IGNORE_INDEX).sum() for labels in task.class_scores.values()]
        compared = torch.stack(targets).double()
        return torch.cat([own.to(compared.device, non_blocking=True), compared])

    def run(self, passes: ModelPasses, batch: PackedBatch, counts: Tensor, is_last: bool) -> Mapping[str, Tensor]:
        """Runs the teacher, and a forward and a backward pass of the student; returns the sum of each term."""
        assert self.followed is not None
        if self.match == "logits":
            sums = self._with_logits(self.followed, passes, batch)
        else:
            sums = self._with_layers(self.followed, passes, batch)
        passes.backward(SumCountObjective(self.weights(passes.task)).loss(sums, counts), is_last)
        return sums

    def _with_logits(self, teacher: Teacher, passes: ModelPasses, batch: PackedBatch) -> dict[str, Tensor]:
        """Runs teacher and student; returns the sums of the task's terms and of the divergence of each output."""
        taught = teacher.outputs(batch, passes.precision)
        outputs, sums = passes.forward(batch, passes.dropout_keys(batch))
        scores = passes.task.class_scores
        compared = {
            term: logit_divergence_sum(outputs[name], taught[name], batch.targets[labels], self.temperature)
            for term, (name, labels) in zip(self._terms(passes.task), scores.items(), strict=True)
        }
        return {**sums, **compared}

    def _with_layers(self, teacher: Teacher, passes: ModelPasses, batch: PackedBatch) -> dict[str, Tensor]:
        """Runs teacher and student; returns the sums of the task's terms and of the difference of all layers."""
        taught = teacher.layers(batch, passes.precision, *self._recorded(self.layers.values()))
        with record_layers(passes.model.encoder, *self._recorded(self.layers.keys())) as own:
            _, sums = passes.forward(batch, passes.dropout_keys(batch))
        with passes.precision.autocast(batch.input_ids.device.type):
            parts = [
                self._layer_sum(passes.model, (own, layer), (taught, other), batch)
                for layer, other in self.layers.items()
            ]
        return {**sums, TERM: torch.stack(parts).sum()}

    def _recorded(self, layers: Collection[int]) -> tuple[Collection[int], Collection[int]]:
        """Returns the layers whose hidden states and whose projections are recorded."""
        return (layers, ()) if self.match == "hidden" else ((), layers)

    def _layer_sum(
        self, model: TaskModel, own: tuple[LayerRecord, int], taught: tuple[LayerRecord, int], batch: PackedBatch
    ) -> Tensor:
        """Returns the difference between a layer of the student and one of the teacher, summed over tokens."""
        (record, layer), (other_record, other) = own, taught
        if self.match == "relations":
            assert self.relation_heads is not None
            projections, taught_projections = record.projections[layer], other_record.projections[other]
            return relation_divergence_sum(
                projections, taught_projections, self.relation_heads, batch.lengths, batch.num_sequences
            )
        num_tokens = _num_tokens(batch)
        states = record.hidden_states[layer][:num_tokens]
        if model.distillation is not None:
            states = model.distillation[str(layer)](states)
        return hidden_error_sum(states, other_record.hidden_states[other][:num_tokens])


def _layer_number(key: object) -> int:
    try:
        return int(str(key))
    except ValueError as error:
        raise ConfigError(
            f"regularization.layers has the key {key!r}. It maps numbers of student layers to numbers of teacher "
            "layers. Write, for example, {2: 6, 4: 12}."
        ) from error


def _num_tokens(batch: PackedBatch) -> int:
    """Returns the number of real tokens of the encoder, which come first."""
    return sum(batch.lengths[: batch.num_sequences])


def _check_relation_heads(num_heads: int, own: EncoderConfig, other: EncoderConfig) -> None:
    """Checks that relation heads are at least as many as the student's heads, and divide the width of both models.

    Raises:
        ConfigError: They do not.
    """
    if num_heads < own.num_heads:
        raise ConfigError(
            f"the teacher has {other.num_heads} attention heads, the student {own.num_heads}, and relations have "
            f"{num_heads} heads. Each head of the student needs at least one relation head. Set "
            f"regularization.relation_heads to a common divisor of {own.hidden_size} and {other.hidden_size} of at "
            f"least {own.num_heads}, or choose another teacher."
        )
    for name, config in (("student", own), ("teacher", other)):
        if config.hidden_size % num_heads:
            raise ConfigError(
                f"relations have {num_heads} heads, which do not divide the width {config.hidden_size} of the {name}. "
                "Each relation head has the same number of channels. Set regularization.relation_heads to a common "
                f"divisor of {own.hidden_size} and {other.hidden_size}."
            )
