"""Relation extraction: one label for two marked entities of a text (Baldini Soares et al. 2019, arXiv:1906.03158)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.reading.files import Reading
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import check_at_least, check_fraction
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import at_least_fp32
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.explanation import Explained, TokenSpans
from framework.tasks.relation_extraction.data import RelationData, RelationExample
from framework.tasks.relation_extraction.features import LOSS_TERM, SHORTEST, locate_marked, relation_source
from framework.tasks.relation_extraction.head import build_relation_head
from framework.tasks.relation_extraction.marked_text import read_marked_text
from framework.tasks.sequence_classification.decode import chosen_scores, decode_labels, examine_labels
from framework.tasks.task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

    from framework.metrics.relation_f1 import RelationF1


class RelationExtractionTask(Task):
    """Classification of texts with two marked entities.

    Args:
        max_length: Most tokens of a sequence, special tokens and marks included. A longer text is truncated around its
            entities.
        classifier_dropout: Probability of dropping a channel before the classifier.
        excluded_label: Label of entities without a relation. It is learned like the others, but the mean F1 excludes
            it. None: there is no such label.

    Attributes:
        labels: Label set in the order of scores; empty before `build_sources` or `restore`.

    Raises:
        ConfigError: `max_length` is below 8, or the probability is not in [0, 1).
    """

    best_metric = "relation_f1"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "relation"
    fields = ("text",)
    head_rows: Mapping[str, str] = {"": "sequences"}

    def __init__(
        self, max_length: int = 128, classifier_dropout: float = 0.1, excluded_label: str | None = "Other"
    ) -> None:
        check_at_least("task.max_length", max_length, SHORTEST, "Special tokens and marks count too. Raise it.")
        check_fraction("task.classifier_dropout", classifier_dropout)
        self.max_length = max_length
        self.classifier_dropout = classifier_dropout
        self.excluded_label = excluded_label
        self.labels: tuple[str, ...] = ()
        self.loss_weights = {LOSS_TERM: 1.0}

    def build_sources(self, data: RelationData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the rows of each split; determines the label set unless an earlier run restored it."""
        relations = data.with_masks(tokenizer).load(self.labels or None)
        self.labels = relations.labels
        warnings = []
        if self.excluded_label is not None and self.excluded_label not in self.labels:
            warnings.append(
                f"task.excluded_label is {self.excluded_label!r}, which is not a label, so relation_f1 is the mean "
                "over all labels. Set it to the label of entities without a relation, or to null."
            )
        sources: dict[str, SequenceSource] = {}
        for split, examples in relations.splits.items():
            reading = Reading(data.on_bad_row, max_remembered=None)
            source = relation_source(examples, self.labels, tokenizer, self.max_length, reading)
            read = relations.facts[split]
            read = replace(
                read,
                rows=len(source),
                skipped=[*read.skipped, *reading.skipped],
                num_skipped=read.num_skipped + reading.num_skipped,
            )
            given = (each.label for each in source.records)
            sources[split] = with_facts(source, read, given, self.labels, warnings if split == "train" else ())
        return sources

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that both entities are marked and fit into a sequence."""
        self.build_source([row], tokenizer)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one sequence per row, without a label."""
        examples = [
            RelationExample(row.location, read_marked_text(row.location, row.values["text"]), None) for row in rows
        ]
        return relation_source(examples, self.labels, tokenizer, self.max_length, Reading())

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head with one score for each label."""
        return build_relation_head(config, len(self.labels), self.classifier_dropout)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the cross-entropy summed over sequences (`relation`)."""
        return {LOSS_TERM: self.sequence_losses(outputs, batch).sum()}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns the cross-entropy of each sequence: (sequences,) fp32, 0 for dummies."""
        return nn.functional.cross_entropy(
            at_least_fp32(outputs["logits"]), batch.targets["labels"], ignore_index=IGNORE_INDEX, reduction="none"
        )

    def build_metrics(self) -> dict[str, Metric]:
        """Builds the official score of SemEval-2010 task 8 and the accuracy."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.classification import Accuracy
        from framework.metrics.relation_f1 import RelationF1

        return {"relation_f1": RelationF1(self.labels, self.excluded_label), "accuracy": Accuracy()}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for metric in metrics.values():
            metric.update(outputs["logits"], batch.targets["labels"])

    def to_record(self) -> dict[str, Any]:
        """Returns label names in the order of scores, and the length."""
        return {"labels": list(self.labels), "max_length": self.max_length}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the label set of an earlier run."""
        self.labels = tuple(str(label) for label in record["labels"])

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[dict[str, Any]]:
        """Returns the best label and all probabilities."""
        return decode_labels(outputs["logits"][: batch.num_sequences], self.labels)

    def assemble(self, source: FlatSource, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the predictions with the texts of the entities, `e1` and `e2`."""
        texts = [record.text.entities for record in source.records]
        return [prediction | {"e1": e1, "e2": e2} for prediction, (e1, e2) in zip(decoded, texts, strict=True)]

    @property
    def explained_labels(self) -> tuple[str, ...]:
        """Returns the label set, because every relation has a logit."""
        return self.labels

    @property
    def single_labels(self) -> tuple[str, ...]:
        """Returns the label set, because every pair of entities has one relation."""
        return self.labels

    def explained(self, source: FlatSource, decoded: Sequence[Any], name: str | None) -> list[list[Explained]]:
        """Returns the predicted label of each sequence, or the given one, with its column."""
        labels = [each["label"] if name is None else name for each in decoded]
        return [[Explained(item, self.labels.index(label), label)] for item, label in enumerate(labels)]

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[int]) -> Tensor:
        """Returns the logit of each sequence in its column."""
        del batch
        return chosen_scores(outputs["logits"], targets)

    def explained_spans(
        self, source: FlatSource, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens in the text without its marks. The tokens of the marks have no span."""
        return locate_marked(source.records[explained.item], tokenizer, self.max_length)

    def class_table(
        self, metrics: Mapping[str, Metric], source: FlatSource, decoded: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Returns precision, recall, F1, wrong directions and number of sequences of each relation."""
        return cast("RelationF1", metrics["relation_f1"]).rows()

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds the error analysis with one row per text, including its marks."""
        texts = [record.text.marked for record in source.records]
        return examine_labels(source.records, texts, results, self.labels)
