"""Multiple choice: each choice gets a score, and a softmax over the choices of a row tells the right one.

Devlin et al. 2019 (arXiv:1810.04805, section 4.4); `BertForMultipleChoice` in transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.metrics.classification import Accuracy
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.examination import Examination, ExaminedRow, FoundItems
from framework.tasks.multiple_choice.data import ChoiceData, ChoiceExample, filled, listed_choices
from framework.tasks.multiple_choice.features import LOSS_TERM, choice_source
from framework.tasks.pooling import check_pooled_scores
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import Task


class MultipleChoiceTask(Task):
    """One right choice a row, of any number of choices.

    Args:
        max_length: Most tokens of a sequence, special tokens included: a choice with the question, and the context.
        pooling: A name in `framework.tasks.pooling`: "cls" or "mean".
        classifier_dropout: Probability of dropping a channel before the classifier.

    Attributes:
        has_context: Whether questions are on contexts; known after `build_sources` or `restore`.

    Raises:
        ConfigError: `max_length` is below 5, the pooling is unknown, or the probability not in [0, 1).
    """

    best_metric = "accuracy"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "multiple_choice"
    allows_augmentation = True

    def __init__(self, max_length: int = 128, pooling: str = "cls", classifier_dropout: float = 0.1) -> None:
        check_pooled_scores(max_length, pooling, classifier_dropout)
        self.max_length = max_length
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        self.has_context = False
        self.loss_weights = {LOSS_TERM: 1.0}

    def build_sources(
        self,
        data: ChoiceData,
        tokenizer: Tokenizer,
        seed: int,  # noqa: ARG002  splits follow the data's own seed, so that runs of several seeds compare
    ) -> dict[str, SequenceSource]:
        """Reads and tokenises the rows of each split."""
        self.has_context = data.context_column is not None
        choices = data.load()
        return {
            split: with_facts(
                choice_source(examples, tokenizer, self.max_length),
                choices.facts[split],
                sorted(f"choice {example.right}" for example in examples),
            )
            for split, examples in choices.splits.items()
        }

    @property
    def fields(self) -> tuple[str, ...]:
        """Question and choices, and the context where there were some in training."""
        return ("question", "context", "choices") if self.has_context else ("question", "choices")

    @property
    def list_fields(self) -> tuple[str, ...]:
        """The choices."""
        return ("choices",)

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that no text is empty, and that the choices are a list of at least two different texts."""
        del tokenizer
        self._example(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Returns the choices of each row, without the right one."""
        return choice_source([self._example(row) for row in rows], tokenizer, self.max_length)

    def _example(self, row: Row) -> ChoiceExample:
        texts = [filled(row.location, name, row.values[name]) for name in self.fields[:-1]]
        choices = listed_choices(row.location, row.values["choices"])
        return ChoiceExample(row.location, texts[0], texts[1] if self.has_context else None, choices, None)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:  # noqa: ARG002  nothing is tied
        """The family's head of sequence classification with one score."""
        return build_sequence_classification_head(config, 1, self.pooling, self.classifier_dropout)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """The losses of rows, summed (`choice`)."""
        return {LOSS_TERM: self.sequence_losses(outputs, batch).sum()}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Cross-entropy of each row, at the sequence of its right choice: (sequences,) fp32, 0 for all others."""
        items = _items(batch)
        scores, labels = _by_item(outputs["logits"], batch)
        losses = nn.functional.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="none")
        return torch.where(batch.targets["is_right"] == 1, losses[items], 0.0)

    @property
    def class_scores(self) -> Mapping[str, str]:
        """None: the softmax is over sequences."""
        return {}

    def build_metrics(self) -> dict[str, Metric]:
        """The share of rows whose best choice is the right one; of equal scores the first is the best."""
        return {"accuracy": Accuracy()}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        metrics["accuracy"].update(*_by_item(outputs["logits"], batch))

    def side_config(self) -> dict[str, Any]:
        """Pooling, length, and whether there are contexts."""
        return {"pooling": self.pooling, "max_length": self.max_length, "has_context": self.has_context}

    def restore(self, side: Mapping[str, Any]) -> None:
        """Takes back whether there are contexts."""
        self.has_context = bool(side["has_context"])

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[list[float]]:
        """The probability of each choice."""
        scores, _ = _by_item(outputs["logits"], batch)
        sizes = torch.bincount(_items(batch)[: batch.num_sequences]).tolist() if batch.num_sequences else []
        rows = scores.softmax(dim=-1).tolist()
        return [row[:size] for row, size in zip(rows, sizes, strict=False)]

    def assemble(self, source: SequenceSource, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """The best choice of each row, and the probabilities of all."""
        assert isinstance(source, FlatSource)
        told = []
        for example, probabilities in zip(source.records, decoded, strict=True):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            told.append(
                {
                    "choices": list(example.choices),
                    "answer": example.choices[best],
                    "index": best,
                    "probability": probabilities[best],
                    "probabilities": probabilities,
                }
            )
        return told

    def examine(self, source: SequenceSource, found: FoundItems) -> Examination:
        """A row for each question."""
        assert isinstance(source, FlatSource)
        rows = []
        for place, (example, told) in enumerate(zip(source.records, self.assemble(source, found.decoded), strict=True)):
            texts = [*([example.context] if example.context is not None else []), example.question]
            rows.append(
                ExaminedRow(
                    length=int(found.lengths[place]),
                    loss=found.loss(place),
                    score=None if example.right is None else float(told["index"] == example.right),
                    confidence=told["probability"],
                    expected="" if example.right is None else example.choices[example.right],
                    predicted=told["answer"],
                    text="\n".join([*texts, *(f"- {choice}" for choice in example.choices)]),
                    location=example.location,
                )
            )
        return Examination(rows, "accuracy")


def _items(batch: PackedBatch) -> Tensor:
    """(sequences,) int64, the item of each sequence, counted from 0 in the micro-batch; a dummy is one of its own."""
    return (batch.targets["choice_places"] == 0).cumsum(0) - 1


def _by_item(logits: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """The few scores as a rectangle, as many rows as sequences, so that its shape does not depend on the choices.

    Args:
        logits: (sequences, 1).
        batch: With the targets.

    Returns:
        Scores (sequences, group_size) fp32, the lowest number where there is no choice, and the places of the right
        choices (sequences,), IGNORE_INDEX where there is none; the items come first.
    """
    places, items = batch.targets["choice_places"], _items(batch)
    scores = logits.new_full((len(places), batch.group_size), torch.finfo(torch.float32).min, dtype=torch.float32)
    scores = scores.index_put((items, places), logits[:, 0].float())
    right = torch.where(batch.targets["is_right"] == 1, places, IGNORE_INDEX)
    labels = torch.full_like(places, IGNORE_INDEX).scatter_reduce(0, items, right, "amax")
    return scores, labels
