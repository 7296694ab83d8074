"""Sequence classification: one label for a text or a pair (Devlin et al. 2019, arXiv:1810.04805, section 4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import Metric

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.layout import SHORTEST_PAIR
from framework.data.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.table import TableData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.metrics.classification import Accuracy, MacroF1
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import cross_entropy_sum
from framework.tasks.pooling import POOLINGS
from framework.tasks.sequence_classification.decode import class_scores, decode_labels
from framework.tasks.sequence_classification.features import classification_source
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import Task


class SequenceClassificationTask(Task):
    """One label for each text or pair of texts.

    Args:
        max_length: Most tokens of a sequence, special tokens included; longer texts lose their end, pairs that of the
            longer text.
        pooling: A name in `framework.tasks.pooling`: "cls" or "mean".
        classifier_dropout: Probability of dropping a channel before the classifier.

    Attributes:
        labels: The label set in the order of scores; empty until `build_sources` or `restore` gave it.
        has_pairs: Whether sequences are pairs of texts; known as the labels are.

    Raises:
        ConfigError: `max_length` is below 5, the pooling unknown, or the probability not in [0, 1).
    """

    best_metric = "accuracy"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "sequence_classification"

    def __init__(self, max_length: int = 128, pooling: str = "cls", classifier_dropout: float = 0.1) -> None:
        if max_length < SHORTEST_PAIR:
            raise ConfigError(
                f"max_length is {max_length}, it must be at least {SHORTEST_PAIR}, special tokens included."
            )
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is {pooling!r}, it must be one of {', '.join(POOLINGS)}.")
        if not 0 <= classifier_dropout < 1:
            raise ConfigError(f"classifier_dropout is {classifier_dropout}, it must be at least 0 and below 1.")
        self.max_length = max_length
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        self.labels: tuple[str, ...] = ()
        self.has_pairs = False
        self.loss_weights = {"classification": 1.0}

    def build_sources(
        self,
        data: TableData,
        tokenizer: Tokenizer,
        seed: int,  # noqa: ARG002  splits follow the data's own seed, so that runs of several seeds compare
    ) -> dict[str, SequenceSource]:
        """Reads and tokenises the rows of each split; finds the label set unless it is known from an earlier run."""
        table = data.load(self.labels or None)
        self.labels = table.labels
        self.has_pairs = data.pair_column is not None
        place = {label: index for index, label in enumerate(self.labels)}
        sources: dict[str, SequenceSource] = {}
        for split, rows in table.splits.items():
            labels = np.array([place[row.label] for row in rows], dtype=np.int64)
            pairs = [row.pair for row in rows if row.pair is not None] or None
            sources[split] = classification_source(
                [row.text for row in rows], pairs, labels, tokenizer, self.max_length
            )
        return sources

    @property
    def fields(self) -> tuple[str, ...]:
        """The text, and the second one of a pair."""
        return ("text", "pair") if self.has_pairs else ("text",)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """One sequence a row, without a label."""
        texts = [row.values["text"] for row in rows]
        pairs = [row.values["pair"] for row in rows] if self.has_pairs else None
        return classification_source(texts, pairs, None, tokenizer, self.max_length)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:  # noqa: ARG002  nothing is tied
        """The head of the encoder's family, with one score for each label."""
        return build_sequence_classification_head(config, len(self.labels), self.pooling, self.classifier_dropout)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Cross-entropy summed over sequences (`classification`)."""
        return {"classification": cross_entropy_sum(outputs["logits"], batch.targets["labels"])}

    def build_metrics(self) -> dict[str, Metric]:
        """Accuracy and macro F1."""
        return {"accuracy": Accuracy(), "macro_f1": MacroF1(len(self.labels))}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for metric in metrics.values():
            metric.update(outputs["logits"], batch.targets["labels"])

    def side_config(self) -> dict[str, Any]:
        """Label names in the order of scores, pooling, length, and whether texts come in pairs."""
        return {
            "labels": list(self.labels),
            "pooling": self.pooling,
            "max_length": self.max_length,
            "has_pairs": self.has_pairs,
        }

    def restore(self, side: Mapping[str, Any]) -> None:
        """Takes the label set of an earlier run."""
        self.labels = tuple(str(label) for label in side["labels"])
        self.has_pairs = bool(side.get("has_pairs", False))

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[dict[str, Any]]:
        """The best label of each sequence and the probability of each label."""
        return decode_labels(outputs["logits"][: batch.num_sequences], self.labels)

    def class_table(
        self, metrics: Mapping[str, Metric], source: SequenceSource, decoded: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Precision, recall, F1 and number of sequences of each label."""
        del source, decoded
        macro_f1 = metrics["macro_f1"]
        assert isinstance(macro_f1, MacroF1)
        return class_scores(macro_f1.confusion.view(len(self.labels), -1), self.labels)
