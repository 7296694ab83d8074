"""Multiple choice: each choice has a score, and the prediction is a softmax over the choices of a row.

Devlin et al. 2019 (arXiv:1810.04805, section 4.4); `BertForMultipleChoice` in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.answers import require_text
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import at_least_fp32
from framework.tasks.examination import Examination, ExaminedRow, ItemResults
from framework.tasks.explanation import Explained, TokenSpans
from framework.tasks.multiple_choice.data import ChoiceData, ChoiceExample, parse_choices
from framework.tasks.multiple_choice.features import LOSS_TERM, choice_source, locate_choice
from framework.tasks.pooling import check_pooled_scores
from framework.tasks.sequence_classification.decode import chosen_scores
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric


class MultipleChoiceTask(Task):
    """Multiple choice with one right choice per row and any number of choices.

    Args:
        max_length: Most tokens of a sequence (choice, question and context), special tokens included.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        classifier_dropout: Probability of dropping a channel before the classifier.

    Attributes:
        has_context: True if questions have contexts; known after `build_sources` or `restore`.

    Raises:
        ConfigError: `max_length` is below 5, the pooling is unknown, or the probability is not in [0, 1).
    """

    best_metric = "accuracy"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "multiple_choice"
    list_fields = ("choices",)
    allows_augmentation = True
    head_rows: Mapping[str, str] = {"": "sequences"}

    def __init__(self, max_length: int = 128, pooling: str = "cls", classifier_dropout: float = 0.1) -> None:
        check_pooled_scores(max_length, pooling, classifier_dropout)
        self.max_length = max_length
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        self.has_context = False
        self.loss_weights = {LOSS_TERM: 1.0}

    def build_sources(self, data: ChoiceData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the rows of each split."""
        self.has_context = data.context_column is not None
        choices = data.with_masks(tokenizer).load()
        return {
            split: with_facts(
                choice_source(examples, tokenizer, self.max_length, self.keeps_texts and split == "train"),
                choices.facts[split],
                sorted(f"choice {example.right}" for example in examples),
            )
            for split, examples in choices.splits.items()
        }

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns the fields of question and choices, and that of the context if the training data had contexts."""
        return ("question", "context", "choices") if self.has_context else ("question", "choices")

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that no text is empty and that the choices are a list of at least two different texts."""
        self._example(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds the sequences of each row's choices, with the right choice unknown."""
        return choice_source([self._example(row) for row in rows], tokenizer, self.max_length)

    def _example(self, row: Row) -> ChoiceExample:
        texts = [require_text(row.location, name, row.values[name]) for name in self.fields[:-1]]
        choices = parse_choices(row.location, row.values["choices"])
        return ChoiceExample(row.location, texts[0], texts[1] if self.has_context else None, choices, None)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the family's head of sequence classification with one score."""
        return build_sequence_classification_head(config, 1, self.pooling, self.classifier_dropout)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the sum of the losses of rows (`choice`)."""
        return {LOSS_TERM: self.sequence_losses(outputs, batch).sum()}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns (sequences,) fp32: the row's cross-entropy at the sequence of its right choice, 0 at all others."""
        items = _items(batch)
        scores, labels = _by_item(outputs["logits"], batch)
        losses = nn.functional.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="none")
        return torch.where(batch.targets["is_right"] == 1, losses[items], 0.0)

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Returns an empty mapping, because the softmax is over sequences."""
        return {}

    def build_metrics(self) -> dict[str, Metric]:
        """Builds the fraction of rows whose best choice is the right one; of equal scores the first is the best."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.classification import Accuracy

        return {"accuracy": Accuracy()}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        metrics["accuracy"].update(*_by_item(outputs["logits"], batch))

    def to_record(self) -> dict[str, Any]:
        """Returns pooling, length, and the flag for contexts."""
        return {"pooling": self.pooling, "max_length": self.max_length, "has_context": self.has_context}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the flag for contexts."""
        self.has_context = bool(record["has_context"])

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[list[float]]:
        """Returns the probability of each choice of each row."""
        scores, _ = _by_item(outputs["logits"], batch)
        sizes = torch.bincount(_items(batch)[: batch.num_sequences]).tolist() if batch.num_sequences else []
        rows = scores.softmax(dim=-1).tolist()
        return [row[:size] for row, size in zip(rows, sizes, strict=False)]

    def assemble(self, source: FlatSource, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the best choice of each row and the probabilities of all choices."""
        predictions = []
        for example, probabilities in zip(source.records, decoded, strict=True):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            predictions.append(
                {
                    "choices": list(example.choices),
                    "answer": example.choices[best],
                    "index": best,
                    "probability": probabilities[best],
                    "probabilities": probabilities,
                }
            )
        return predictions

    def explained(self, source: FlatSource, decoded: Sequence[Any], name: str | None) -> list[list[Explained]]:
        """Returns the score of the best choice of each row, named by the choice."""
        predictions = self.assemble(source, decoded)
        return [[Explained(item, each["index"], each["answer"])] for item, each in enumerate(predictions)]

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[int]) -> Tensor:
        """Returns the logit of the chosen choice of each row."""
        scores, _ = _by_item(outputs["logits"], batch)
        return chosen_scores(scores, targets)

    def explained_spans(
        self, source: FlatSource, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens of the chosen choice's sequence.

        Offsets of the field `choices` count the characters of that choice. The tokens of other choices do not count.
        """
        return locate_choice(source, explained.item, explained.target, tokenizer)

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds the error analysis with one row per question."""
        rows = []
        predictions = self.assemble(source, results.decoded)
        for index, (example, prediction) in enumerate(zip(source.records, predictions, strict=True)):
            texts = [*([example.context] if example.context is not None else []), example.question]
            rows.append(
                ExaminedRow(
                    length=int(results.lengths[index]),
                    loss=results.loss(index),
                    score=None if example.right is None else float(prediction["index"] == example.right),
                    confidence=prediction["probability"],
                    expected="" if example.right is None else example.choices[example.right],
                    predicted=prediction["answer"],
                    text="\n".join([*texts, *(f"- {choice}" for choice in example.choices)]),
                    location=example.location,
                )
            )
        return Examination(rows, "accuracy")


def _items(batch: PackedBatch) -> Tensor:
    """Returns (sequences,) int64 item indices of the sequences in the micro-batch; each dummy is its own item."""
    return (batch.targets["choice_places"] == 0).cumsum(0) - 1


def _by_item(logits: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Arranges the scores in one row per item, padded to as many rows as sequences, which fixes the shape.

    Args:
        logits: (sequences, 1).
        batch: Micro-batch with its targets.

    Returns:
        Scores (sequences, group_size) fp32, padded with the lowest fp32 number, and the index of the right choice
        (sequences,), IGNORE_INDEX if unknown. The rows of items come first.
    """
    choices, items, own = batch.targets["choice_places"], _items(batch), at_least_fp32(logits[:, 0])
    scores = logits.new_full((len(choices), batch.group_size), torch.finfo(torch.float32).min, dtype=own.dtype)
    scores = scores.index_put((items, choices), own)
    right = torch.where(batch.targets["is_right"] == 1, choices, IGNORE_INDEX)
    labels = torch.full_like(choices, IGNORE_INDEX).scatter_reduce(0, items, right, "amax")
    return scores, labels
